#include "kernels/cuda/product_plan.h"

#include <algorithm>

#include "kernels/cuda/kernel_args.h"

namespace qmatmul::cuda {
namespace {

constexpr DataType k8 = DataType::kInt8, k4 = DataType::kInt4, k2 = DataType::kInt2;
constexpr Arithmetic kW8A8 = Arithmetic::kW8A8, kW8A32 = Arithmetic::kW8A32;

constexpr CudaKernel kKernels[] = {
    {"cuda.wgmma.s8s8s32.128x128x32", Form::kWgmma, k8, kW8A8, 128, 128, 32},
    {"cuda.mma.s8s8s32.128x128x32", Form::kMma, k8, kW8A8, 128, 128, 32},
    {"cuda.dp4a.s8s8s32.8x4x16", Form::kGemv, k8, kW8A8, 8, 4, 16},
    {"cuda.mma.s8s4s32.64x128x32", Form::kMma, k4, kW8A8, 64, 128, 32},
    {"cuda.dp4a.s8s4s32.8x4x32", Form::kGemv, k4, kW8A8, 8, 4, 32},
    {"cuda.mma.s8s2s32.64x128x32", Form::kMma, k2, kW8A8, 64, 128, 32},
    {"cuda.dp4a.s8s2s32.8x4x64", Form::kGemv, k2, kW8A8, 8, 4, 64},
    {"cuda.simt.f32s8f32.8x128x1", Form::kFloat, k8, kW8A32, 8, 128, 1},
    {"cuda.simt.f32s4f32.8x128x1", Form::kFloat, k4, kW8A32, 8, 128, 1},
    {"cuda.simt.f32s2f32.8x128x1", Form::kFloat, k2, kW8A32, 8, 128, 1},
};

// Blocks that keep every multiprocessor's memory pipes full: 128 threads each, and of mma's tiles two. Shared memory
// has room for one of wgmma's.
constexpr int kGemvBlocksEach = 8, kMmaBlocksEach = 2, kWgmmaBlocksEach = 1, kFloatBlocksEach = 4;
constexpr int64_t kSlicesMax = 64;
constexpr int64_t kFloatPartialBytesMax = int64_t{32} << 20;

int64_t CeilDiv(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

KernelId Offset(KernelId first, int by) {
  return static_cast<KernelId>(static_cast<int>(first) + by);
}

KernelId GemvId(const CudaKernel& kernel, bool grouped, int64_t rows) {
  const int form = rows <= 1 ? 0 : rows <= 2 ? 1 : rows <= 4 ? 2 : 3;
  if (grouped) return Offset(KernelId::kGemv4R1g, form);
  const KernelId first = kernel.weight == k8   ? KernelId::kGemv8R1
                         : kernel.weight == k4 ? KernelId::kGemv4R1
                                               : KernelId::kGemv2R1;
  return Offset(first, form);
}

KernelId MmaId(const CudaKernel& kernel, const WeightArgs& w, int64_t rows, int multiprocessors) {
  if (kernel.weight != k8) {
    const KernelId first = w.groups > 1          ? KernelId::kMma4R16g
                           : kernel.weight == k4 ? KernelId::kMma4R16
                                                 : KernelId::kMma2R16;
    return Offset(first, rows <= 16 ? 0 : 1);
  }
  if (rows <= 16) return KernelId::kMma8R16;
  if (rows <= 32) return KernelId::kMma8R32;
  const bool full = CeilDiv(rows, 128) * CeilDiv(w.n, 128) >= multiprocessors;
  return rows <= 64 || !full ? KernelId::kMma8R64 : KernelId::kMma8R128;
}

KernelId FloatId(const CudaKernel& kernel, int64_t rows) {
  const KernelId first = kernel.weight == k8   ? KernelId::kFloat8R1
                         : kernel.weight == k4 ? KernelId::kFloat4R1
                                               : KernelId::kFloat2R1;
  return Offset(first, rows <= 1 ? 0 : 1);
}

KernelId ProgramOf(const CudaKernel& kernel, const WeightArgs& w, int64_t rows,
                   int multiprocessors) {
  if (kernel.form == Form::kGemv) return GemvId(kernel, w.groups > 1, rows);
  if (kernel.form == Form::kFloat) return FloatId(kernel, rows);
  if (kernel.form == Form::kWgmma) return KernelId::kWgmma8;
  return MmaId(kernel, w, rows, multiprocessors);
}

}  // namespace

std::span<const CudaKernel> CudaKernels() { return kKernels; }

ProductPlan PlanProduct(const CudaKernel& kernel, const WeightArgs& w, int64_t operand_bytes,
                        int64_t rows, int multiprocessors) {
  ProductPlan plan;
  plan.id = ProgramOf(kernel, w, rows, multiprocessors);
  const KernelShape shape = ShapeOf(plan.id);
  plan.grid_x = static_cast<int>(CeilDiv(w.n, shape.columns));
  plan.grid_z = static_cast<int>(CeilDiv(rows, shape.rows));
  plan.padded_rows = int64_t{plan.grid_z} * shape.rows;
  const int64_t tiles = int64_t{plan.grid_x} * plan.grid_z;
  // Slices that K allows, and that fill the device.
  int64_t most = 1, each = 1;
  if (kernel.form == Form::kGemv) {
    most = w.groups > 1 ? 1 : w.row_bytes / kUnitBytes / shape.threads;
    each = kGemvBlocksEach;
  } else if (kernel.form != Form::kFloat) {
    most = w.groups > 1 ? 1 : operand_bytes / 256;
    each = kernel.form == Form::kWgmma ? kWgmmaBlocksEach : kMmaBlocksEach;
  } else {
    most = CeilDiv(w.k, w.groups > 1 ? w.group_k : 512);
    plan.float_bytes = most * rows * w.n * 4;
    if (plan.float_bytes > kFloatPartialBytesMax) most = 1;
    each = kFloatBlocksEach;
  }
  const int64_t wanted = each * multiprocessors / tiles;
  plan.slices = static_cast<int>(std::clamp<int64_t>(std::min(most, wanted), 1, kSlicesMax));
  plan.grid_y = plan.slices;
  if (plan.slices == 1) {
    plan.float_bytes = 0;
    return plan;
  }
  plan.ticket_bytes = tiles * 4;
  if (kernel.form != Form::kFloat) plan.partial_bytes = rows * w.n * 4;
  return plan;
}

}  // namespace qmatmul::cuda
