// The kernels every machine can run: plain C++ for the baseline instruction set. They are the
// yardstick of the others and the last ones standing when those are disabled.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/micro_kernels.h"

namespace qmatmul::cpu {
namespace {

#include "kernels/cpu/row_ops.inc"
#include "kernels/cpu/w8a32.inc"

// A line's 64 values; INT4 and INT2 keep their offset.
template <DataType kWeight>
inline void Decode(const uint8_t* line, int16_t* values) {
  constexpr int bits = kWeight == DataType::kInt8 ? 8 : kWeight == DataType::kInt4 ? 4 : 2;
  constexpr int bytes = 8 * bits;
  for (int v = 0; v < 64; ++v) {
    if constexpr (kWeight == DataType::kInt8) values[v] = static_cast<int8_t>(line[v]);
    else
      values[v] = static_cast<int16_t>(line[v % bytes] >> (v / bytes * bits) & ((1 << bits) - 1));
  }
}

template <DataType kWeight, typename A>
void Run(const TileArgs& t) {
  constexpr int64_t line_bytes = kWeight == DataType::kInt8   ? 64
                                 : kWeight == DataType::kInt4 ? 32
                                                              : 16;
  int32_t sums[4][16];
  for (int r = 0; r < t.rows; ++r)
    for (int c = 0; c < 16; ++c)
      sums[r][c] = t.accumulate ? static_cast<int32_t*>(t.c)[r * t.ldc + c] : 0;
  const auto* a = static_cast<const A*>(t.strip);
  const uint8_t* line = t.panel;
  for (int64_t i = 0; i < t.lines; ++i, line += line_bytes, a += 4 * t.rows) {
    int16_t b[64];
    Decode<kWeight>(line, b);
    for (int r = 0; r < t.rows; ++r)
      for (int c = 0; c < 16; ++c)
        sums[r][c] += a[4 * r] * b[4 * c] + a[4 * r + 1] * b[4 * c + 1] +
                      a[4 * r + 2] * b[4 * c + 2] + a[4 * r + 3] * b[4 * c + 3];
  }
  for (int r = 0; r < t.rows; ++r) std::copy_n(sums[r], 16, static_cast<int32_t*>(t.c) + r * t.ldc);
}

bool Supported(const CpuFeatures&) { return true; }

constexpr DataType k8 = DataType::kInt8, k4 = DataType::kInt4, k2 = DataType::kInt2;
constexpr Arithmetic kW8A8 = Arithmetic::kW8A8, kW8A32 = Arithmetic::kW8A32;
constexpr Operand kS16 = Operand::kS16, kS8 = Operand::kS8, kF32 = Operand::kF32;

constexpr MicroKernel kKernels[] = {
    {"cpu.scalar.s8s8s32.4x16x4", Supported, k8, kW8A8, kS16, 4, 16, 4, 0, Run<k8, int16_t>,
     &kRowOps},
    {"cpu.scalar.s8s4s32.4x16x4", Supported, k4, kW8A8, kS8, 4, 16, 4, 0, Run<k4, int8_t>,
     &kRowOps},
    {"cpu.scalar.s8s2s32.4x16x4", Supported, k2, kW8A8, kS8, 4, 16, 4, 0, Run<k2, int8_t>,
     &kRowOps},
    {"cpu.scalar.f32s8f32.4x16x4", Supported, k8, kW8A32, kF32, 4, 16, 4, 0, RunFloat<k8>,
     &kRowOps},
    {"cpu.scalar.f32s4f32.4x16x4", Supported, k4, kW8A32, kF32, 4, 16, 4, 0, RunFloat<k4>,
     &kRowOps},
    {"cpu.scalar.f32s2f32.4x16x4", Supported, k2, kW8A32, kF32, 4, 16, 4, 0, RunFloat<k2>,
     &kRowOps},
};

}  // namespace

std::span<const MicroKernel> ScalarKernels() { return kKernels; }

}  // namespace qmatmul::cpu
