// Few rows: each weight byte is read once and multiplied by dp4a with up to eight rows.
//
//     a block: 4 warps, 4 columns, kRows rows      a lane: units thread, thread + 128, …  of its 4 columns
//
//     acc[kRows][4] += dp4a over a unit; then redux.sync over the warp, shared memory over the four warps,
//     and, where K is cut into slices, atomics in L2 over blocks.
//
// Lives on IDP.4A. Four columns share each activation word, so that reading activations from L1 stays below
// what L1 gives.
//
// Group-wise weights: the sums of up to kGroupsPerPass groups lie in shared memory, are scaled by all threads
// and added up in ascending order by one thread a result (numerics §2); K is not cut among blocks.
//
// Thread-safety: device code.
#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/row_sink.h"
#include "kernels/cuda/weight_unit.h"

namespace qmatmul::cuda {

template <DataType kWeight, int kRows, bool kGrouped>
class GemvKernel {
 public:
  static constexpr int kThreads = 128, kColumns = 4, kResults = kRows * kColumns;
  static constexpr int kGroupsPerPass = 64;
  static constexpr int kSharedBytes =
      (kGrouped ? kGroupsPerPass : kThreads / kWarp) * kResults * 4 + 4;

  static QMATMUL_DEVICE void Run(const ProductArgs& p) {
    const int row0 = simt::Block().z * kRows, column0 = simt::Block().x * kColumns;
    if constexpr (kGrouped) RunGroups(p, row0, column0);
    else RunPlain(p, row0, column0);
  }

 private:
  using U = Unit<kWeight>;
  using Sums = int32_t[kRows][kColumns];

  // What lies past the edge repeats the last row or column and is not stored.
  static QMATMUL_DEVICE int Inside(int index, int count) {
    return index < count ? index : count - 1;
  }

  static QMATMUL_DEVICE void AddUnit(const ProductArgs& p, int row0, int column0, int64_t unit,
                                     Sums& acc) {
    Words w[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      w[c] = LoadWords(p.weight.data + Inside(column0 + c, p.weight.n) * p.weight.row_bytes +
                       unit * kUnitBytes);
#pragma unroll
    for (int e = 0; e < U::kFields; ++e) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Words a = LoadWords(p.operands + Inside(row0 + r, p.row_count) * p.operand_bytes +
                                  unit * U::kK + 16 * e);
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
#pragma unroll
          for (int t = 0; t < 4; ++t)
            acc[r][c] = simt::Dp4a(U::Field(w[c].w[t], e), a.w[t], acc[r][c]);
      }
    }
  }

  static QMATMUL_DEVICE void RunPlain(const ProductArgs& p, int row0, int column0) {
    const int64_t units = p.weight.row_bytes / kUnitBytes, slice = simt::Block().y;
    const int64_t end = units * (slice + 1) / p.slices;
    Sums acc = {};
    for (int64_t u = units * slice / p.slices + simt::Thread(); u < end; u += kThreads)
      AddUnit(p, row0, column0, u, acc);
    auto* shared = reinterpret_cast<int32_t*>(simt::Shared());
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int32_t sum = simt::WarpSum(acc[r][c]);
        if (simt::Thread() % kWarp == 0)
          shared[simt::Thread() / kWarp * kResults + r * kColumns + c] = sum;
      }
    simt::SyncThreads();
    const int row = row0 + simt::Thread() / kColumns, n = column0 + simt::Thread() % kColumns;
    const bool mine = simt::Thread() < kResults && row < p.row_count && n < p.weight.n;
    int32_t sum = 0;
    if (mine) {
      for (int w = 0; w < kThreads / kWarp; ++w) sum += shared[w * kResults + simt::Thread()];
      sum >>= U::kShift;
    }
    if (p.slices > 1) {
      int32_t* partial = p.partial + int64_t(row) * p.weight.n + n;
      if (mine) simt::AtomicAdd(partial, sum);
      uint32_t* ticket = p.tickets + int64_t(simt::Block().z) * simt::Grid().x + simt::Block().x;
      auto* flag = reinterpret_cast<int*>(shared + kThreads / kWarp * kResults);
      if (!LastOfTile(ticket, p.slices, flag)) return;
      if (mine) sum = simt::AtomicExchange(partial, 0);
    }
    if (simt::Thread() >= kWarp) return;
    const bool has_row = simt::Thread() < kResults && row < p.row_count;
    RowSink sink = has_row ? RowSink(p, row) : RowSink();
    if (mine) sink.PutSum(n, sink.Correct(sum, 0, n));
    sink.Finish();
  }

  // Sums of `groups` groups from `first` on, by all threads, to `shared` [groups][kRows][kColumns].
  static QMATMUL_DEVICE void SumGroups(const ProductArgs& p, int row0, int column0, int first,
                                       int groups, int32_t* shared) {
    for (int i = simt::Thread(); i < groups * kResults; i += kThreads) shared[i] = 0;
    simt::SyncThreads();
    const int units = p.weight.group_pad / U::kK;  // of a group
    for (int u = simt::Thread(); u < groups * units; u += kThreads) {
      Sums acc = {};
      AddUnit(p, row0, column0, int64_t(first) * units + u, acc);
      int32_t* sums = shared + u / units * kResults;
      for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < kColumns; ++c) simt::AtomicAdd(&sums[r * kColumns + c], acc[r][c]);
    }
    simt::SyncThreads();
  }

  // Sums in shared memory to their scaled floats, in place.
  static QMATMUL_DEVICE void ScaleGroups(const ProductArgs& p, int row0, int column0, int first,
                                         int groups, int32_t* shared) {
    for (int i = simt::Thread(); i < groups * kResults; i += kThreads) {
      const int g = first + i / kResults, n = column0 + i % kColumns;
      const int row = row0 + i % kResults / kColumns;
      if (row >= p.row_count || n >= p.weight.n) continue;
      const int64_t at = int64_t(g) * p.weight.n + n;
      const auto correction = uint32_t(p.states[row].correction);
      const auto sum =
          int32_t(uint32_t(shared[i] >> U::kShift) - correction * uint32_t(p.weight.sums[at]));
      if (p.check_vector != nullptr)
        simt::AtomicAdd(&p.row_checks[row], uint64_t(int64_t(sum)) * p.check_vector[n]);
      shared[i] = int32_t(simt::Bits(simt::Multiply(simt::ToFloat(sum), p.weight.scales[at])));
    }
    simt::SyncThreads();
  }

  static QMATMUL_DEVICE void RunGroups(const ProductArgs& p, int row0, int column0) {
    auto* shared = reinterpret_cast<int32_t*>(simt::Shared());
    const int row = row0 + simt::Thread() / kColumns, n = column0 + simt::Thread() % kColumns;
    const bool mine = simt::Thread() < kResults && row < p.row_count && n < p.weight.n;
    float y = 0;
    for (int first = 0; first < p.weight.groups; first += kGroupsPerPass) {
      const int left = p.weight.groups - first;
      const int groups = left < kGroupsPerPass ? left : kGroupsPerPass;
      SumGroups(p, row0, column0, first, groups, shared);
      ScaleGroups(p, row0, column0, first, groups, shared);
      for (int g = 0; mine && g < groups; ++g) {
        const float part = simt::FromBits(uint32_t(shared[g * kResults + simt::Thread()]));
        y = first + g == 0 ? part : simt::Add(y, part);
      }
      simt::SyncThreads();
    }
    if (simt::Thread() >= kWarp) return;
    const bool has_row = simt::Thread() < kResults && row < p.row_count;
    RowSink sink = has_row ? RowSink(p, row) : RowSink();
    if (mine) sink.PutScaled(n, y);
    sink.Finish();
  }
};

}  // namespace qmatmul::cuda
