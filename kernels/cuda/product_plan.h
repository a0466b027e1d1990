// The kernels that requests may name, and how one is launched for a product: which program, how many blocks,
// K cut into how many slices.
//
// Thread-safety: pure functions and constants.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/cuda/kernel_table.h"
#include "kernels/matmul.h"

namespace qmatmul::cuda {

enum class Form : uint8_t { kGemv, kMma, kWgmma, kFloat };

// One row of the kernel table; names as in cpu/micro_kernels: what computes, types, mr x nr x kr.
struct CudaKernel {
  std::string_view name;
  Form form;
  DataType weight;
  Arithmetic arithmetic;
  int mr, nr, kr;
  bool fits(DataType w, Arithmetic a) const { return weight == w && arithmetic == a; }
};
std::span<const CudaKernel> CudaKernels();

struct ProductPlan {
  KernelId id = KernelId::kCount;
  int grid_x = 1, grid_y = 1, grid_z = 1;
  int slices = 1;
  int64_t padded_rows = 0;
  // What the lane must have: zeroed int32 sums, tickets, or fp32 block sums.
  int64_t partial_bytes = 0, ticket_bytes = 0, float_bytes = 0;
};

// `rows` >= 1, at most kTileRowsMax.
inline constexpr int64_t kTileRowsMax = 32'768;
ProductPlan PlanProduct(const CudaKernel& kernel, const WeightArgs& weight, int64_t operand_bytes,
                        int64_t rows, int multiprocessors);

}  // namespace qmatmul::cuda
