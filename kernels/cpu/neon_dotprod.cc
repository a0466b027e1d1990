// ARMv8.2 dot product: SDOT adds four s8 times s8 products to each int32 lane, never saturating.
// Activations stay signed; INT4 and INT2 values keep their offset, which the epilogue takes off.
//
// Register tile, 6 rows x 16 columns (one panel), one 64-byte line a step:
//
//            v24 = b cols 0-3 (4 k each)   v25 = 4-7   v26 = 8-11   v27 = 12-15
//   row 0    v0                            v1          v2           v3
//   …        …                                                              v28, v29: the rows' a,
//   row 5    v20                           v21         v22          v23     a lane for each row
#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/micro_kernels.h"

#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")

namespace qmatmul::cpu {
namespace {

#include "kernels/cpu/row_ops.inc"
#include "kernels/cpu/w8a32.inc"

template <DataType kWeight>
constexpr int64_t LineBytes() {
  return kWeight == DataType::kInt8 ? 64 : kWeight == DataType::kInt4 ? 32 : 16;
}

// A line as four operands of four columns.
template <DataType kWeight>
inline void LoadLine(const uint8_t* line, int8x16_t (&b)[4]) {
  if constexpr (kWeight == DataType::kInt8) {
    for (int j = 0; j < 4; ++j) b[j] = vreinterpretq_s8_u8(vld1q_u8(line + 16 * j));
  } else if constexpr (kWeight == DataType::kInt4) {
    for (int j = 0; j < 2; ++j) {
      const uint8x16_t both = vld1q_u8(line + 16 * j);
      b[j] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
      b[j + 2] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
    }
  } else {
    const uint8x16_t all = vld1q_u8(line), mask = vdupq_n_u8(3);
    b[0] = vreinterpretq_s8_u8(vandq_u8(all, mask));
    b[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(all, 2), mask));
    b[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(all, 4), mask));
    b[3] = vreinterpretq_s8_u8(vshrq_n_u8(all, 6));
  }
}

// Four values of each row, a row a lane, without reading past the strip.
template <int kRows>
inline void LoadRows(const int8_t* a, int8x16_t* low, int8x16_t* high) {
  const auto one = [](const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  };
  *low = *high = vdupq_n_s8(0);
  if constexpr (kRows == 1) *low = one(a);
  else if constexpr (kRows == 2) *low = vcombine_s8(vld1_s8(a), vdup_n_s8(0));
  else if constexpr (kRows == 3) *low = vcombine_s8(vld1_s8(a), vget_low_s8(one(a + 8)));
  else *low = vld1q_s8(a);
  if constexpr (kRows == 5) *high = one(a + 16);
  if constexpr (kRows == 6) *high = vcombine_s8(vld1_s8(a + 16), vdup_n_s8(0));
}

// sums += b * the four values of row kRow.
template <int kRow>
inline void AddRow(int32x4_t (&sums)[4], const int8x16_t (&b)[4], int8x16_t low, int8x16_t high) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    if constexpr (kRow < 4) sums[j] = vdotq_laneq_s32(sums[j], b[j], low, kRow);
    else sums[j] = vdotq_laneq_s32(sums[j], b[j], high, kRow - 4);
  }
}

inline void Store(int32_t* c, const int32x4_t (&sums)[4], bool accumulate) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j)
    vst1q_s32(c + 4 * j, accumulate ? vaddq_s32(sums[j], vld1q_s32(c + 4 * j)) : sums[j]);
}

template <DataType kWeight, int kRows>
void Tile(const TileArgs& t) {
  int32x4_t sums[kRows][4];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[r][j] = vdupq_n_s32(0);
  const auto* a = static_cast<const int8_t*>(t.strip);
  const uint8_t* line = t.panel;
  const uint8_t* ahead = t.prefetch;
  for (int64_t i = 0; i < t.lines; ++i) {
    int8x16_t b[4], low, high;
    LoadLine<kWeight>(line, b);
    LoadRows<kRows>(a, &low, &high);
    __builtin_prefetch(ahead);
    AddRow<0>(sums[0], b, low, high);
    if constexpr (kRows > 1) AddRow<1>(sums[1], b, low, high);
    if constexpr (kRows > 2) AddRow<2>(sums[2], b, low, high);
    if constexpr (kRows > 3) AddRow<3>(sums[3], b, low, high);
    if constexpr (kRows > 4) AddRow<4>(sums[4], b, low, high);
    if constexpr (kRows > 5) AddRow<5>(sums[5], b, low, high);
    a += 4 * kRows;
    line += LineBytes<kWeight>();
    ahead += LineBytes<kWeight>();
  }
  auto* c = static_cast<int32_t*>(t.c);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) Store(c + r * t.ldc, sums[r], t.accumulate);
}

template <DataType kWeight>
void Run(const TileArgs& t) {
  switch (t.rows) {
    case 1: return Tile<kWeight, 1>(t);
    case 2: return Tile<kWeight, 2>(t);
    case 3: return Tile<kWeight, 3>(t);
    case 4: return Tile<kWeight, 4>(t);
    case 5: return Tile<kWeight, 5>(t);
    default: return Tile<kWeight, 6>(t);
  }
}

// One row: four lines a step, their four values of a from one load; even and odd lines have sums
// of their own, which hides SDOT's latency.
template <DataType kWeight>
void RunGemv(const TileArgs& t) {
  constexpr int64_t line_bytes = LineBytes<kWeight>();
  const auto* a = static_cast<const int8_t*>(t.strip);
  int32x4_t even[4], odd[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) even[j] = odd[j] = vdupq_n_s32(0);
  const uint8_t* line = t.panel;
  const uint8_t* ahead = t.prefetch;
  int64_t i = 0;
  for (; i + 4 <= t.lines; i += 4) {
    const int8x16_t x = vld1q_s8(a + 4 * i);
    int8x16_t b[4];
    for (int64_t at = 0; at < 4 * line_bytes; at += 64) __builtin_prefetch(ahead + at);
    LoadLine<kWeight>(line, b);
    AddRow<0>(even, b, x, x);
    LoadLine<kWeight>(line + line_bytes, b);
    AddRow<1>(odd, b, x, x);
    LoadLine<kWeight>(line + 2 * line_bytes, b);
    AddRow<2>(even, b, x, x);
    LoadLine<kWeight>(line + 3 * line_bytes, b);
    AddRow<3>(odd, b, x, x);
    line += 4 * line_bytes;
    ahead += 4 * line_bytes;
  }
  for (; i < t.lines; ++i, line += line_bytes) {
    int8x16_t b[4], low, high;
    LoadRows<1>(a + 4 * i, &low, &high);
    LoadLine<kWeight>(line, b);
    AddRow<0>(even, b, low, high);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) even[j] = vaddq_s32(even[j], odd[j]);
  Store(static_cast<int32_t*>(t.c), even, t.accumulate);
}

bool Supported(const CpuFeatures& f) { return f.neon_dotprod; }

constexpr DataType k8 = DataType::kInt8, k4 = DataType::kInt4, k2 = DataType::kInt2;
constexpr Arithmetic kW8A8 = Arithmetic::kW8A8, kW8A32 = Arithmetic::kW8A32;
constexpr Operand kS8 = Operand::kS8, kF32 = Operand::kF32;

constexpr MicroKernel kKernels[] = {
    {"cpu.neon_dotprod.s8s8s32.6x16x4", Supported, k8, kW8A8, kS8, 6, 16, 4, 20, Run<k8>, &kRowOps},
    {"cpu.neon_dotprod.s8s8s32.1x16x4", Supported, k8, kW8A8, kS8, 1, 16, 4, 20, RunGemv<k8>,
     &kRowOps},
    {"cpu.neon_dotprod.s8s4s32.6x16x4", Supported, k4, kW8A8, kS8, 6, 16, 4, 20, Run<k4>, &kRowOps},
    {"cpu.neon_dotprod.s8s4s32.1x16x4", Supported, k4, kW8A8, kS8, 1, 16, 4, 20, RunGemv<k4>,
     &kRowOps},
    {"cpu.neon_dotprod.s8s2s32.6x16x4", Supported, k2, kW8A8, kS8, 6, 16, 4, 20, Run<k2>, &kRowOps},
    {"cpu.neon_dotprod.s8s2s32.1x16x4", Supported, k2, kW8A8, kS8, 1, 16, 4, 20, RunGemv<k2>,
     &kRowOps},
    {"cpu.neon_dotprod.f32s8f32.4x16x4", Supported, k8, kW8A32, kF32, 4, 16, 4, 20, RunFloat<k8>,
     &kRowOps},
    {"cpu.neon_dotprod.f32s4f32.4x16x4", Supported, k4, kW8A32, kF32, 4, 16, 4, 20, RunFloat<k4>,
     &kRowOps},
    {"cpu.neon_dotprod.f32s2f32.4x16x4", Supported, k2, kW8A32, kF32, 4, 16, 4, 20, RunFloat<k2>,
     &kRowOps},
};

}  // namespace

std::span<const MicroKernel> NeonDotprodKernels() { return kKernels; }

}  // namespace qmatmul::cpu

#pragma GCC pop_options
