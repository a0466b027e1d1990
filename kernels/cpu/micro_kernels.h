// THE kernel table: one row for each instruction set, best first; each row brings that file's
// kernels. Adding an instruction set is one row here and one file beside it; packing, ragged edges,
// epilogue, tests and benchmark come with the row.
//
// Names are unique and complete; a duplicate stops the device from opening (NamesAreUnique), since
// the second of two equal names would silently never run.
#pragma once

#include <span>

#include "kernels/cpu/micro_kernel.h"
#include "kernels/cpu/pack.h"

namespace qmatmul::cpu {

std::span<const MicroKernel> ScalarKernels();
#if defined(__x86_64__)
std::span<const MicroKernel> AmxInt8Kernels();
std::span<const MicroKernel> Avx512VnniKernels();
std::span<const MicroKernel> AvxVnniKernels();
std::span<const MicroKernel> Avx2SplitKernels();
std::span<const MicroKernel> Avx2Kernels();
#elif defined(__aarch64__)
std::span<const MicroKernel> NeonI8mmKernels();
std::span<const MicroKernel> NeonDotprodKernels();
#endif

// Every kernel of every row, in order of preference. Lives as long as the program.
std::span<const MicroKernel* const> MicroKernels();

bool NamesAreUnique(std::span<const MicroKernel* const> kernels);

}  // namespace qmatmul::cpu
