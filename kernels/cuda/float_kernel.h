// W8A32 (docs/numerics.md §5): fp32 sums in ascending k within blocks of 512 or of a group, block sums added
// in ascending order; products and sums rounded each.
//
//     a block: 128 columns, one a thread, kRows rows; 64 k of W (decoded, in k order) and of A in shared memory
//
// Blocks of k are cut into slices among thread blocks where there are few tiles: each leaves its block sums in
// device memory, and the last one to come adds them in order, so that slices never show in the bytes.
//
// Thread-safety: device code.
#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/row_sink.h"
#include "kernels/cuda/weight_unit.h"

namespace qmatmul::cuda {

inline constexpr int kFloatBlockK = 512;  // numerics §5

template <DataType kWeight, int kRows>
class FloatKernel {
 public:
  static constexpr int kThreads = 128, kColumns = kThreads, kChunkK = 64;
  static constexpr int kColumnPitch = kChunkK + 4;  // words of neighbours in different banks
  static constexpr int kSharedBytes = kColumns * kColumnPitch + kRows * kChunkK * 4 + 4;
  static_assert(kRows * kThreads * 4 <= kColumns * kColumnPitch);

  static QMATMUL_DEVICE void Run(const ProductArgs& p) {
    const WeightArgs& w = p.weight;
    const int n = simt::Block().x * kColumns + simt::Thread(), row0 = simt::Block().z * kRows;
    const int block_k = w.groups > 1 ? w.group_k : kFloatBlockK;
    const int blocks = (w.k + block_k - 1) / block_k;
    const bool sliced = p.slices > 1;
    float total[kRows] = {};
    for (int b = simt::Block().y; b < blocks; b += p.slices) {
      float sums[kRows] = {};
      SumBlock(p, row0, b * block_k, block_k, sums);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (w.groups > 1 && n < w.n)
          sums[r] = simt::Multiply(sums[r], w.scales[int64_t(b) * w.n + n]);
        if (sliced) Leave(p, b, row0 + r, n, sums[r]);
        else total[r] = simt::Add(total[r], sums[r]);
      }
    }
    if (sliced) {
      uint32_t* ticket = p.tickets + int64_t(simt::Block().z) * simt::Grid().x + simt::Block().x;
      auto* flag = reinterpret_cast<int*>(simt::Shared() + kSharedBytes - 4);
      if (!LastOfTile(ticket, p.slices, flag)) return;
      for (int b = 0; b < blocks; ++b)
        for (int r = 0; r < kRows; ++r)
          if (row0 + r < p.row_count && n < w.n)
            total[r] = simt::Add(total[r], simt::LoadFresh(PartialOf(p, b, row0 + r, n)));
    }
    Put(p, row0, n, total);
  }

 private:
  using U = Unit<kWeight>;

  static QMATMUL_DEVICE float* PartialOf(const ProductArgs& p, int block, int row, int n) {
    return reinterpret_cast<float*>(p.partial) + (int64_t(block) * p.row_count + row) * p.weight.n +
           n;
  }
  static QMATMUL_DEVICE void Leave(const ProductArgs& p, int block, int row, int n, float sum) {
    if (row < p.row_count && n < p.weight.n) *PartialOf(p, block, row, n) = sum;
  }

  // Units of 128 columns from `k0` on to shared memory, one byte a k: fields still at the top of their byte.
  static QMATMUL_DEVICE void StageWeight(const ProductArgs& p, int k0, signed char* columns) {
    const WeightArgs& w = p.weight;
    constexpr int units = kChunkK / U::kK;
    const int64_t first = int64_t(k0 / w.group_k) * w.group_pad + k0 % w.group_k;  // padded k
#pragma unroll 2
    for (int i = simt::Thread(); i < kColumns * units; i += kThreads) {
      const int column = simt::Block().x * kColumns + i / units;
      const int64_t byte = (first / U::kK + i % units) * kUnitBytes;
      if (column >= w.n || byte >= w.row_bytes) continue;
      const Words words = LoadWords(w.data + column * w.row_bytes + byte);
      auto* out =
          reinterpret_cast<uint32_t*>(columns + i / units * kColumnPitch + i % units * U::kK);
#pragma unroll
      for (int e = 0; e < U::kFields; ++e)
#pragma unroll
        for (int t = 0; t < 4; ++t) out[4 * e + t] = U::Field(words.w[t], e);
    }
  }

  static QMATMUL_DEVICE void StageRows(const ProductArgs& p, int row0, int k0, int count,
                                       float* rows) {
#pragma unroll 1
    for (int i = simt::Thread(); i < kRows * kChunkK; i += kThreads) {
      const int row = row0 + i / kChunkK, k = i % kChunkK;
      if (row < p.row_count && k < count)
        rows[i] = reinterpret_cast<const float*>(p.operands + row * p.operand_bytes)[k0 + k];
    }
  }

  // s[r] = Σ over the block of k from `begin` on, in ascending order.
  static QMATMUL_DEVICE void SumBlock(const ProductArgs& p, int row0, int begin, int block_k,
                                      float (&sums)[kRows]) {
    auto* columns = reinterpret_cast<signed char*>(simt::Shared());
    auto* rows = reinterpret_cast<float*>(simt::Shared() + kColumns * kColumnPitch);
    const signed char* mine = columns + simt::Thread() * kColumnPitch;
    const int end = p.weight.k - begin < block_k ? p.weight.k : begin + block_k;
    for (int k0 = begin; k0 < end; k0 += kChunkK) {
      const int count = end - k0 < kChunkK ? end - k0 : kChunkK;
      StageWeight(p, k0, columns);
      StageRows(p, row0, k0, count, rows);
      simt::SyncThreads();
      for (int k = 0; k < count; ++k) {
        const float w = simt::ToFloat(mine[k] >> U::kShift);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          sums[r] = simt::Add(sums[r], simt::Multiply(rows[r * kChunkK + k], w));
      }
      simt::SyncThreads();
    }
  }

  // Totals go by shared memory, each thread's own: written out for every row, the epilogue would need more
  // registers than there are.
  static QMATMUL_DEVICE void Put(const ProductArgs& p, int row0, int n, float (&total)[kRows]) {
    const WeightArgs& w = p.weight;
    float* mine = reinterpret_cast<float*>(simt::Shared()) + simt::Thread();
#pragma unroll
    for (int r = 0; r < kRows; ++r) mine[r * kThreads] = total[r];
#pragma unroll 1
    for (int r = 0; r < kRows && row0 + r < p.row_count; ++r) {  // for all threads alike
      RowSink sink(p, row0 + r);
      if (n < w.n) {
        float y = mine[r * kThreads];
        if (w.groups == 1) y = simt::Multiply(y, w.scales[n]);
        sink.PutScaled(n, y);
      }
      sink.Finish();
    }
  }
};

}  // namespace qmatmul::cuda
