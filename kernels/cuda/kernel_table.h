// The programs a device runs, by number, and how to launch one.
//
// Why: the host asks for a program by KernelId and hands over plain arguments; whether kernels.cu or
// kernels_emulated.cc runs it is the runtime's affair.
//
// Thread-safety: constants and values.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/kernel_args.h"

namespace qmatmul::cuda {

enum class KernelId : uint8_t {
  kRows,
  kPack,
  kSums,
  kUnpack,
  // dp4a: weight type, rows of a block, g: group-wise
  kGemv8R1,
  kGemv8R2,
  kGemv8R4,
  kGemv8R8,
  kGemv4R1,
  kGemv4R2,
  kGemv4R4,
  kGemv4R8,
  kGemv2R1,
  kGemv2R2,
  kGemv2R4,
  kGemv2R8,
  kGemv4R1g,
  kGemv4R2g,
  kGemv4R4g,
  kGemv4R8g,
  // mma
  kMma8R16,
  kMma8R32,
  kMma8R64,
  kMma8R128,
  kMma4R16,
  kMma4R64,
  kMma2R16,
  kMma2R64,
  kMma4R16g,
  kMma4R64g,
  // wgmma
  kWgmma8,
  // W8A32
  kFloat8R1,
  kFloat8R8,
  kFloat4R1,
  kFloat4R8,
  kFloat2R1,
  kFloat2R8,
  kCount
};
inline constexpr size_t kKernelCount = size_t(KernelId::kCount);

// How blocks of a program look.
struct KernelShape {
  int threads = 0;
  int shared_bytes = 0;
  int rows = 0;     // of a block; 0 where that means nothing
  int columns = 0;  // of a block
};
KernelShape ShapeOf(KernelId id);

struct KernelLaunch {
  static constexpr size_t kArgsMax = 448;

  KernelId id = KernelId::kCount;
  int grid_x = 1, grid_y = 1, grid_z = 1;
  alignas(64) std::array<std::byte, kArgsMax> args = {};

  template <typename Args>
  static KernelLaunch Of(KernelId id, const Args& args) {
    static_assert(sizeof(Args) <= kArgsMax && std::is_trivially_copyable_v<Args>);
    KernelLaunch launch;
    launch.id = id;
    Args same = args;
#if !defined(__CUDACC__) && __has_builtin(__builtin_clear_padding)
    // Launches are compared byte by byte (graph_cache.h), and what lies between the members is anything.
    __builtin_clear_padding(&same);
#endif
    for (size_t i = 0; i < sizeof(Args); ++i)
      launch.args[i] = reinterpret_cast<const std::byte*>(&same)[i];
    return launch;
  }
};

}  // namespace qmatmul::cuda
