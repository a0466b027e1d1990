// THE kernel table: every micro-kernel this build has, best first. Adding a kernel is one row here
// and one file beside it; packing, ragged edges, epilogue, tests and benchmark come with the row.
//
// Names are unique and complete (device.isa.types.mr x nr x kr); a duplicate stops the build of the
// device (NamesAreUnique), since the second of two equal names would silently never run.
#pragma once

#include <span>

#include "kernels/cpu/micro_kernel.h"
#include "kernels/cpu/pack.h"

namespace qmatmul::cpu {

extern const MicroKernel kScalar;
#if defined(__x86_64__)
extern const MicroKernel kAvx2;
extern const MicroKernel kAvx2Gemv;
extern const MicroKernel kAvx512Vnni;
extern const MicroKernel kAvx512VnniGemv;
#endif

std::span<const MicroKernel* const> MicroKernels();

bool NamesAreUnique(std::span<const MicroKernel* const> kernels);

}  // namespace qmatmul::cpu
