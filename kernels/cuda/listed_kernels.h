// Which C++ kernel each KernelId is: one list for nvcc, for the emulation and for the host.
//
// Thread-safety: constants.
#pragma once

#include "kernels/cuda/float_kernel.h"
#include "kernels/cuda/gemv_kernel.h"
#include "kernels/cuda/kernel_table.h"
#include "kernels/cuda/mma_kernel.h"
#include "kernels/cuda/pack_kernel.h"
#include "kernels/cuda/rows_kernel.h"
#include "kernels/cuda/wgmma_kernel.h"

namespace qmatmul::cuda {

template <typename Kernel>
struct Listed {
  using type = Kernel;
};

// Calls visit(id, Listed<Kernel>, rows, columns) for each, in the order of KernelId.
template <typename Visit>
constexpr void ForEachKernel(Visit visit) {
  constexpr DataType k8 = DataType::kInt8, k4 = DataType::kInt4, k2 = DataType::kInt2;
  visit(KernelId::kRows, Listed<RowsKernel>(), 0, 0);
  visit(KernelId::kPack, Listed<PackKernel>(), 0, 0);
  visit(KernelId::kSums, Listed<SumsKernel>(), 0, 0);
  visit(KernelId::kUnpack, Listed<UnpackKernel>(), 0, 0);
  visit(KernelId::kGemv8R1, Listed<GemvKernel<k8, 1, false>>(), 1, 4);
  visit(KernelId::kGemv8R2, Listed<GemvKernel<k8, 2, false>>(), 2, 4);
  visit(KernelId::kGemv8R4, Listed<GemvKernel<k8, 4, false>>(), 4, 4);
  visit(KernelId::kGemv8R8, Listed<GemvKernel<k8, 8, false>>(), 8, 4);
  visit(KernelId::kGemv4R1, Listed<GemvKernel<k4, 1, false>>(), 1, 4);
  visit(KernelId::kGemv4R2, Listed<GemvKernel<k4, 2, false>>(), 2, 4);
  visit(KernelId::kGemv4R4, Listed<GemvKernel<k4, 4, false>>(), 4, 4);
  visit(KernelId::kGemv4R8, Listed<GemvKernel<k4, 8, false>>(), 8, 4);
  visit(KernelId::kGemv2R1, Listed<GemvKernel<k2, 1, false>>(), 1, 4);
  visit(KernelId::kGemv2R2, Listed<GemvKernel<k2, 2, false>>(), 2, 4);
  visit(KernelId::kGemv2R4, Listed<GemvKernel<k2, 4, false>>(), 4, 4);
  visit(KernelId::kGemv2R8, Listed<GemvKernel<k2, 8, false>>(), 8, 4);
  visit(KernelId::kGemv4R1g, Listed<GemvKernel<k4, 1, true>>(), 1, 4);
  visit(KernelId::kGemv4R2g, Listed<GemvKernel<k4, 2, true>>(), 2, 4);
  visit(KernelId::kGemv4R4g, Listed<GemvKernel<k4, 4, true>>(), 4, 4);
  visit(KernelId::kGemv4R8g, Listed<GemvKernel<k4, 8, true>>(), 8, 4);
  visit(KernelId::kMma8R16, Listed<MmaKernel<k8, 16, 16, false>>(), 16, 128);
  visit(KernelId::kMma8R32, Listed<MmaKernel<k8, 32, 32, false>>(), 32, 128);
  visit(KernelId::kMma8R64, Listed<MmaKernel<k8, 64, 32, false>>(), 64, 128);
  visit(KernelId::kMma8R128, Listed<MmaKernel<k8, 128, 64, false>>(), 128, 128);
  visit(KernelId::kMma4R16, Listed<MmaKernel<k4, 16, 16, false>>(), 16, 128);
  visit(KernelId::kMma4R64, Listed<MmaKernel<k4, 64, 32, false>>(), 64, 128);
  visit(KernelId::kMma2R16, Listed<MmaKernel<k2, 16, 16, false>>(), 16, 128);
  visit(KernelId::kMma2R64, Listed<MmaKernel<k2, 64, 32, false>>(), 64, 128);
  visit(KernelId::kMma4R16g, Listed<MmaKernel<k4, 16, 16, true>>(), 16, 128);
  visit(KernelId::kMma4R64g, Listed<MmaKernel<k4, 64, 32, true>>(), 64, 128);
  visit(KernelId::kWgmma8, Listed<WgmmaKernel>(), WgmmaKernel::kRows, WgmmaKernel::kColumns);
  visit(KernelId::kFloat8R1, Listed<FloatKernel<k8, 1>>(), 1, 128);
  visit(KernelId::kFloat8R8, Listed<FloatKernel<k8, 8>>(), 8, 128);
  visit(KernelId::kFloat4R1, Listed<FloatKernel<k4, 1>>(), 1, 128);
  visit(KernelId::kFloat4R8, Listed<FloatKernel<k4, 8>>(), 8, 128);
  visit(KernelId::kFloat2R1, Listed<FloatKernel<k2, 1>>(), 1, 128);
  visit(KernelId::kFloat2R8, Listed<FloatKernel<k2, 8>>(), 8, 128);
}

// What a kernel's Run takes.
template <typename T>
struct ArgsOfFunction;
template <typename Args>
struct ArgsOfFunction<void (*)(const Args&)> {
  using type = Args;
};
template <typename Args>
struct ArgsOfFunction<void(const Args&)> {
  using type = Args;
};
template <typename Kernel>
using ArgsOf = typename ArgsOfFunction<decltype(Kernel::Run)>::type;

}  // namespace qmatmul::cuda
