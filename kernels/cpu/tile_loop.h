// The product of one Work on the CPU: gather and quantize rows while packing them, multiply tile by
// tile, and finish each output in the caller's memory.
//
// Blocking, outermost first
//   rows     a block of packed activations; one k-block of it stays within half the L2 cache
//   weights  every weight of the lot reads the same packed block
//   panels   split among the members of the team; each streams its own part of the weight
//   columns  a group whose sums, rows x columns, stay in L2 until the epilogue takes them
//   k        blocks of a panel that stay in L1 while all strips of the block pass over them: one
//   scale
//            group where the weight has several, 512 values for W8A32 (numerics §5)
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/micro_kernel.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/device.h"

namespace qmatmul::cpu {

// Weights of a Work that share one kernel and one way of packing the activations.
struct Lot {
  const MicroKernel* kernel = nullptr;
  int64_t group_k = 0;
  std::vector<size_t> indices;  // within the step
  std::vector<const CpuPackedWeight*> weights;
};

// Computes every segment against every weight of the lot. Types, counts and ranges have been
// checked by whoever made the Work. Adds the time spent packing to *pack_ns.
void RunTileLoop(const Lot& lot, std::span<RowSegment> segments,
                 std::span<const std::span<const uint32_t>> check_vectors, ThreadTeam* team,
                 int members, int64_t* pack_ns);

}  // namespace qmatmul::cpu
