#include "kernels/cpu/micro_kernels.h"

#include <string_view>

namespace qmatmul::cpu {
namespace {

const MicroKernel* const kTable[] = {
#if defined(__x86_64__)
    &kAvx512Vnni, &kAvx512VnniGemv, &kAvx2, &kAvx2Gemv,
#endif
    &kScalar,
};

}  // namespace

std::span<const MicroKernel* const> MicroKernels() { return kTable; }

bool NamesAreUnique(std::span<const MicroKernel* const> kernels) {
  for (size_t i = 0; i < kernels.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (std::string_view(kernels[i]->name) == kernels[j]->name) return false;
  return true;
}

}  // namespace qmatmul::cpu
