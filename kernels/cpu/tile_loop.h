// The product of one Work on the CPU: gather and quantize rows while packing them, multiply tile by
// tile, and finish each output in the caller's memory.
//
// Blocking, outermost first
//   rows     a block of packed activations: all of K where that leaves enough rows, else one k-block of it, within half
//            the L2 cache
//            (a team packs the next block while its last members are still at this one)
//   weights  every weight of the lot reads the same packed block
//   panels   split among the members of the team; each streams its own part of the weight
//   columns  a group whose sums, rows x columns, stay in L2 until the epilogue takes them
//   k        as much of it as keeps the block's rows within half the L2 cache; of that
//            blocks of a panel that stay in L1, or near it, while all strips of the block pass over them:
//            one scale group where the weight has several, 512 values for W8A32 (numerics §5)
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/cpu/micro_kernel.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/device.h"

namespace qmatmul::cpu {

// What packed rows may take of the L2 cache: half of it, between 256 KiB and 1 MiB.
int64_t RowBlockBytes();

// Values of K that a tile sums at a time at most: for W8A32 what numerics §5 says. Of integers each such block
// ends in folding the sums and adding them to what is in memory, a twentieth of the time at 512 values; reading
// panels and strips that are longer than L1 costs less, since a tile computes for 6 cycles and more on each line.
inline int64_t BlockKMax(const MicroKernel& kernel) {
  if (kernel.block_k > 0) return kernel.block_k;
  return kernel.operand == Operand::kF32 ? 512 : (int64_t{32} << 10) / kernel.nr;
}
// Rows that are packed together at most, of `k` values in one scale group: L2 has all of them while the panels
// pass, or, where such rows would be too few to read the weight once more for, a k-block of theirs.
inline int64_t BlockRowsMax(const MicroKernel& kernel, int64_t k) {
  const int64_t value_bytes = ElementBytes(kernel.operand);
  const int64_t whole = RowBlockBytes() / (k * value_bytes);
  const int64_t of_a_block = RowBlockBytes() / (std::min(k, BlockKMax(kernel)) * value_bytes);
  return std::min<int64_t>(std::max(whole, std::min<int64_t>(of_a_block, 128)), 512);
}

// A weight of a step and the kernel that multiplies by it.
struct LotWeight {
  const MicroKernel* kernel = nullptr;
  const CpuPackedWeight* weight = nullptr;
  size_t index = 0;         // within the step
  int64_t ahead_bytes = 0;  // to touch while the weight streams past a single strip: KernelCost
};

// True when both read the same packed activations: then one lot packs them once.
inline bool SharePackedRows(const LotWeight& a, const LotWeight& b) {
  return a.kernel->operand == b.kernel->operand && a.kernel->kr == b.kernel->kr &&
         a.kernel->mr == b.kernel->mr && a.weight->group_k() == b.weight->group_k();
}

// What a loop did.
struct LoopReport {
  int64_t packed_rows = 0;
  int64_t pack_ns = 0;
};

// Computes every segment against every weight of a lot, which all share their packed rows. Types, counts
// and ranges have been checked by whoever made the Work. Allocates nothing once a thread's buffers have
// grown to what its calls take.
LoopReport RunTileLoop(std::span<const LotWeight> lot, std::span<RowSegment> segments,
                       std::span<const std::span<const uint32_t>> check_vectors, ThreadTeam* team,
                       int members);

}  // namespace qmatmul::cpu
