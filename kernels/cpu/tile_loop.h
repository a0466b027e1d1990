// The product of one Work on the CPU: gather and quantize rows while packing them, multiply tile by
// tile, and finish each output in the caller's memory.
//
// Blocking, outermost first
//   rows     a block of packed activations; one k-block of it stays within half the L2 cache
//   weights  every weight of the step reads the same packed block
//   panels   split among the members of the team; each streams its own part of the weight
//   columns  a group whose int32 sums, rows x columns, stay in L2 until the epilogue takes them
//   k        blocks of a panel that stay in L1 while all strips of the block pass over them
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/micro_kernel.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/device.h"

namespace qmatmul::cpu {

struct TileLoopReport {
  int64_t rows = 0;
  int64_t padded_rows = 0;
  int64_t pack_ns = 0;
};

// Members of the team that `rows` x k x columns is worth, at most `available`.
int MembersFor(int64_t rows, int64_t k, int64_t columns, int available);

// Computes every segment against every weight. All weights share K and the kernel's layout; types,
// counts and ranges have been checked by whoever made the Work.
void RunTileLoop(const MicroKernel& kernel, std::span<RowSegment> segments,
                 std::span<const CpuPackedWeight* const> weights,
                 std::span<const std::span<const uint32_t>> check_vectors, ThreadTeam* team,
                 int members, TileLoopReport* report);

}  // namespace qmatmul::cpu
