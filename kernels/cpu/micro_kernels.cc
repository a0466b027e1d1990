#include "kernels/cpu/micro_kernels.h"

#include <string_view>
#include <vector>

namespace qmatmul::cpu {
namespace {

constexpr std::span<const MicroKernel> (*kTable[])() = {
#if defined(__x86_64__)
    AmxInt8Kernels, Avx512VnniKernels, AvxVnniKernels, Avx2SplitKernels, Avx2Kernels,
#elif defined(__aarch64__)
    NeonI8mmKernels,
    NeonDotprodKernels,
#endif
    ScalarKernels,
};

std::vector<const MicroKernel*> Flatten() {
  std::vector<const MicroKernel*> kernels;
  for (const auto row : kTable)
    for (const MicroKernel& kernel : row()) kernels.push_back(&kernel);
  return kernels;
}

}  // namespace

std::span<const MicroKernel* const> MicroKernels() {
  static const std::vector<const MicroKernel*> kernels = Flatten();
  return kernels;
}

bool NamesAreUnique(std::span<const MicroKernel* const> kernels) {
  for (size_t i = 0; i < kernels.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (std::string_view(kernels[i]->name) == kernels[j]->name) return false;
  return true;
}

}  // namespace qmatmul::cpu
