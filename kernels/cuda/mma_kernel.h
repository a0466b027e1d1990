// Tiles of rows by mma.sync, operands by cp.async through shared memory; any sm_80 and up.
//
//     a block: kBlockRows × 128 results, warps of (kBlockRows / kWarpRows) × 32      64 k a stage, 4 stages
//
//       shared memory, one stage            a warp
//     ┌──────────────┬──────────────┐     ┌────┬────┬────┬────┐ 16 rows × 8 columns a fragment,
//     │ A rows × 64  │ W 128 × 64 k │     │    │    │    │    │ 4 sums a lane
//     └──────────────┴──────────────┘     └────┴────┴────┴────┘
//
// Lives on IMMA.16832.S8.S8. INT4 and INT2 units stay packed in shared memory: a lane's word of a unit holds
// just the k of its fragment, and one or two logic operations make an operand of it. Rows of shared memory
// are an odd multiple of 16 bytes apart, so that ldmatrix has no bank conflicts.
//
// Group-wise weights: at the end of each group its sums are scaled and added to y in registers, in ascending
// order (numerics §2). Otherwise K may be cut into slices among blocks; sums meet by atomics in L2.
//
// Thread-safety: device code.
#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/row_sink.h"
#include "kernels/cuda/weight_unit.h"

namespace qmatmul::cuda {

template <DataType kWeight, int kBlockRows, int kWarpRows, bool kGrouped>
class MmaKernel {
 public:
  static constexpr int kColumns = 128, kThreads = kBlockRows / kWarpRows * 4 * kWarp;
  static constexpr int kStageK = 64, kStages = 4;

 private:
  using U = Unit<kWeight>;
  static constexpr int kTiles = kWarpRows / 16;              // of mma, down a warp; across it are 4
  static constexpr int kWeightBytes = kStageK / U::kFields;  // of a column, in a stage
  static constexpr int kRowPitch = kStageK + 16;
  static constexpr int kColumnPitch = kWeightBytes == 16 ? 16 : kWeightBytes + 16;
  static constexpr int kStageBytes = kBlockRows * kRowPitch + kColumns * kColumnPitch;

 public:
  static constexpr int kSharedBytes = kStages * kStageBytes;

  static QMATMUL_DEVICE void Run(const ProductArgs& p) {
    Tile tile;
    tile.row0 = simt::Block().z * kBlockRows;
    tile.column0 = simt::Block().x * kColumns;
    tile.warp_row = simt::Thread() / kWarp / 4 * kWarpRows;
    tile.warp_column = simt::Thread() / kWarp % 4 * 32;
    const int64_t stages = (p.operand_bytes + kStageK - 1) / kStageK, slice = simt::Block().y;
    const int64_t begin = stages * slice / p.slices, end = stages * (slice + 1) / p.slices;
    for (int s = 0; s < kStages - 1; ++s) {
      if (begin + s < end) Load(p, tile, begin + s, s);
      simt::CommitCopies();
    }
    for (int64_t s = begin; s < end; ++s) {
      simt::WaitCopies<kStages - 2>();
      simt::SyncThreads();
      const int64_t next = s + kStages - 1;
      if (next < end) Load(p, tile, next, int((next - begin) % kStages));
      simt::CommitCopies();
      Multiply(p, &tile, s, int((s - begin) % kStages));
    }
    simt::WaitCopies<0>();
    if (p.slices > 1 && !Gather(p, &tile)) return;
    Put(p, tile);
  }

 private:
  struct Tile {
    int row0, column0, warp_row, warp_column;
    int32_t acc[kTiles][4][4] = {};
    float y[kGrouped ? kTiles : 1][4][4] = {};
    int group = 0, steps_in_group = 0;

    QMATMUL_DEVICE int row(int i, int half) const {
      return row0 + warp_row + 16 * i + 8 * half + simt::Thread() % kWarp / 4;
    }
    QMATMUL_DEVICE int column(int j, int e) const {
      return column0 + warp_column + 8 * j + simt::Thread() % 4 * 2 + e;
    }
  };

  // Starts the copies of stage `s` of K to place `slot`. Whatever lies past an edge is zero.
  static QMATMUL_DEVICE void Load(const ProductArgs& p, const Tile& tile, int64_t s, int slot) {
    unsigned char* rows = simt::Shared() + slot * kStageBytes;
    for (int i = simt::Thread(); i < kBlockRows * 4; i += kThreads) {
      const int64_t row = tile.row0 + i / 4, byte = s * kStageK + i % 4 * 16;
      const bool valid = row < p.row_count && byte < p.operand_bytes;
      simt::CopyAsync(rows + i / 4 * kRowPitch + i % 4 * 16,
                      p.operands + (valid ? row * p.operand_bytes + byte : 0), valid);
    }
    unsigned char* columns = rows + kBlockRows * kRowPitch;
    constexpr int pieces = kWeightBytes / 16;
    for (int i = simt::Thread(); i < kColumns * pieces; i += kThreads) {
      const int64_t n = tile.column0 + i / pieces, byte = s * kWeightBytes + i % pieces * 16;
      const bool valid = n < p.weight.n && byte < p.weight.row_bytes;
      simt::CopyAsync(columns + i / pieces * kColumnPitch + i % pieces * 16,
                      p.weight.data + (valid ? n * p.weight.row_bytes + byte : 0), valid);
    }
  }

  // The operands of 32 columns for one step of 32 k.
  static QMATMUL_DEVICE void LoadColumns(const unsigned char* columns, int step,
                                         uint32_t (&b)[4][2]) {
    const int lane = simt::Thread() % kWarp, matrix = lane / 8, line = lane % 8;
    uint32_t r[4];
    if constexpr (kWeight == DataType::kInt8) {
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const int column = 8 * j + matrix / 2 * 8 + line;
        simt::LoadMatrices(r, columns + column * kColumnPitch + step * kStepK + matrix % 2 * 16);
        b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
      }
    } else {
      const int fields = U::kFields == 2 ? 0 : 2 * step;  // of the first operand
      const int unit = U::kFields == 2 ? step : 0;
      simt::LoadMatrices(r, columns + (8 * matrix + line) * kColumnPitch + unit * kUnitBytes);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        b[j][0] = U::Field(r[j], fields);
        b[j][1] = U::Field(r[j], fields + 1);
      }
    }
  }

  static QMATMUL_DEVICE void Multiply(const ProductArgs& p, Tile* tile, int64_t s, int slot) {
    const unsigned char* rows = simt::Shared() + slot * kStageBytes;
    const unsigned char* columns = rows + kBlockRows * kRowPitch + tile->warp_column * kColumnPitch;
    rows += tile->warp_row * kRowPitch;
    const int lane = simt::Thread() % kWarp, matrix = lane / 8, line = lane % 8;
#pragma unroll
    for (int step = 0; step < kStageK / kStepK; ++step) {
      uint32_t a[kTiles][4], b[4][2];
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        simt::LoadMatrices(a[i], rows + (16 * i + matrix % 2 * 8 + line) * kRowPitch +
                                     step * kStepK + matrix / 2 * 16);
      LoadColumns(columns, step, b);
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) simt::Mma(tile->acc[i][j], a[i], b[j][0], b[j][1]);
      if constexpr (kGrouped) {
        const bool inside = s * kStageK + step * kStepK < p.operand_bytes;
        if (inside && ++tile->steps_in_group == p.weight.group_pad / kStepK) EndGroup(p, tile);
      }
    }
  }

  // A group's sums to their part of y.
  static QMATMUL_DEVICE void EndGroup(const ProductArgs& p, Tile* tile) {
    const int64_t first = int64_t(tile->group) * p.weight.n;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile->row(i, half);
        const bool any = row < p.row_count;
        const uint32_t correction = any ? uint32_t(p.states[row].correction) : 0;
        uint64_t check = 0;
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const int n = tile->column(c / 2, c % 2);
          int32_t& acc = tile->acc[i][c / 2][2 * half + c % 2];
          float& y = tile->y[i][c / 2][2 * half + c % 2];
          if (any && n < p.weight.n) {
            auto sum = uint32_t(acc >> U::kShift);
            if (correction != 0) sum -= correction * uint32_t(p.weight.sums[first + n]);
            if (p.check_vector != nullptr)
              check += uint64_t(int64_t(int32_t(sum))) * p.check_vector[n];
            const float part =
                simt::Multiply(simt::ToFloat(int32_t(sum)), p.weight.scales[first + n]);
            y = tile->group == 0 ? part : simt::Add(y, part);
          }
          acc = 0;
        }
        if (any && p.check_vector != nullptr) simt::AtomicAdd(&p.row_checks[row], check);
      }
    }
    ++tile->group;
    tile->steps_in_group = 0;
  }

  // Adds the slice's sums to those of the other slices. True in the last block, which then has all.
  static QMATMUL_DEVICE bool Gather(const ProductArgs& p, Tile* tile) {
    const auto each = [&](auto visit) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int c = 0; c < 8; ++c) {
            const int row = tile->row(i, half), n = tile->column(c / 2, c % 2);
            if (row < p.row_count && n < p.weight.n)
              visit(p.partial + int64_t(row) * p.weight.n + n,
                    &tile->acc[i][c / 2][2 * half + c % 2]);
          }
    };
    each([](int32_t* partial, const int32_t* acc) { simt::AtomicAdd(partial, *acc); });
    uint32_t* ticket = p.tickets + int64_t(simt::Block().z) * simt::Grid().x + simt::Block().x;
    simt::SyncThreads();  // shared memory was read by all
    if (!LastOfTile(ticket, p.slices, reinterpret_cast<int*>(simt::Shared()))) return false;
    each([](int32_t* partial, int32_t* acc) { *acc = simt::AtomicExchange(partial, 0); });
    return true;
  }

  static QMATMUL_DEVICE void Put(const ProductArgs& p, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile.row(i, half);
        RowSink sink = row < p.row_count ? RowSink(p, row) : RowSink();
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const int n = tile.column(c / 2, c % 2), at = 2 * half + c % 2;
          if (!sink.any() || n >= p.weight.n) continue;
          if constexpr (kGrouped) sink.PutScaled(n, tile.y[i][c / 2][at]);
          else sink.PutSum(n, sink.Correct(tile.acc[i][c / 2][at] >> U::kShift, 0, n));
        }
        sink.Finish();
      }
    }
  }
};

}  // namespace qmatmul::cuda
