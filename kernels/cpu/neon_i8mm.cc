// ARMv8.6 matrix multiplication: SMMLA multiplies 2 rows x 8 values of K by 2 columns x 8 values and
// adds to 2 x 2 int32 sums, never saturating. Activations stay signed; INT4 and INT2 values keep
// their offset, which the epilogue takes off.
//
// Strips have kr = 8, so that two rows of a step are one operand. Two lines of the panel, zipped by
// 32 bits, are eight operands of two columns: the layout that every kernel reads serves here too.
//
// Register tile, 6 rows x 16 columns (one panel), two lines a step:
//
//              cols 0,1   2,3   …   14,15     v24-v26: a of two rows each
//   rows 0,1   v0         v1    …   v7        v27-v31: two lines' bytes, zipped, decoded
//   rows 2,3   v8         v9    …   v15       a sum: [r0c0 r0c1 r1c0 r1c1]
//   rows 4,5   v16        v17   …   v23
//
// No one-row form and no W8A32: whoever has i8mm has dotprod, whose kernels do those as well.
#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/micro_kernels.h"

#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")

namespace qmatmul::cpu {
namespace {

#include "kernels/cpu/row_ops.inc"

template <DataType kWeight>
constexpr int64_t LineBytes() {
  return kWeight == DataType::kInt8 ? 64 : kWeight == DataType::kInt4 ? 32 : 16;
}

// Two rows of a step; the second of an odd number's last pair is zeros.
template <int kRows>
inline int8x16_t LoadPair(const int8_t* a, int pair) {
  if (2 * pair + 1 < kRows) return vld1q_s8(a + 16 * pair);
  return vcombine_s8(vld1_s8(a + 16 * pair), vdup_n_s8(0));
}

// Quarter j of the sums, columns 4j … 4j+3, += the pairs of rows times two columns each.
template <int kPairs>
inline void AddQuarter(int32x4_t (&sums)[kPairs][8], const int8x16_t (&a)[kPairs], int j,
                       uint8x16_t left, uint8x16_t right) {
  for (int p = 0; p < kPairs; ++p) {
    sums[p][2 * j] = vmmlaq_s32(sums[p][2 * j], a[p], vreinterpretq_s8_u8(left));
    sums[p][2 * j + 1] = vmmlaq_s32(sums[p][2 * j + 1], a[p], vreinterpretq_s8_u8(right));
  }
}

// 16 bytes of two lines, so that 8 values of K of a column lie side by side.
inline uint8x16_t ZipLow(uint8x16_t x, uint8x16_t y) {
  return vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(x), vreinterpretq_u32_u8(y)));
}
inline uint8x16_t ZipHigh(uint8x16_t x, uint8x16_t y) {
  return vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(x), vreinterpretq_u32_u8(y)));
}

// Zipping moves whole columns, so packed bytes are zipped before they are decoded.
template <DataType kWeight, int kPairs>
inline void AddLines(int32x4_t (&sums)[kPairs][8], const int8x16_t (&a)[kPairs],
                     const uint8_t* first, const uint8_t* second) {
  for (int part = 0; part < LineBytes<kWeight>() / 16; ++part) {
    asm volatile(
        "" ::
            : "memory");  // one part's operands at a time: the sums take the other registers
    const uint8x16_t x = vld1q_u8(first + 16 * part), y = vld1q_u8(second + 16 * part);
    const uint8x16_t left = ZipLow(x, y), right = ZipHigh(x, y);
    if constexpr (kWeight == DataType::kInt8) {
      AddQuarter(sums, a, part, left, right);
    } else if constexpr (kWeight == DataType::kInt4) {
      const uint8x16_t mask = vdupq_n_u8(15);
      AddQuarter(sums, a, part, vandq_u8(left, mask), vandq_u8(right, mask));
      AddQuarter(sums, a, part + 2, vshrq_n_u8(left, 4), vshrq_n_u8(right, 4));
    } else {
      const uint8x16_t mask = vdupq_n_u8(3);
      AddQuarter(sums, a, 0, vandq_u8(left, mask), vandq_u8(right, mask));
      AddQuarter(sums, a, 1, vandq_u8(vshrq_n_u8(left, 2), mask),
                 vandq_u8(vshrq_n_u8(right, 2), mask));
      AddQuarter(sums, a, 2, vandq_u8(vshrq_n_u8(left, 4), mask),
                 vandq_u8(vshrq_n_u8(right, 4), mask));
      AddQuarter(sums, a, 3, vshrq_n_u8(left, 6), vshrq_n_u8(right, 6));
    }
  }
}

inline void Store(int32_t* c, int32x4_t sums, bool accumulate) {
  vst1q_s32(c, accumulate ? vaddq_s32(sums, vld1q_s32(c)) : sums);
}

// [r0c0 r0c1 r1c0 r1c1] and the next two columns, to two rows of four.
template <int kRows, int kPairs>
inline void StoreSums(const int32x4_t (&sums)[kPairs][8], const TileArgs& t) {
  auto* c = static_cast<int32_t*>(t.c);
#pragma GCC unroll 3
  for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int64x2_t left = vreinterpretq_s64_s32(sums[p][2 * j]);
      const int64x2_t right = vreinterpretq_s64_s32(sums[p][2 * j + 1]);
      int32_t* to = c + 2 * p * t.ldc + 4 * j;
      Store(to, vreinterpretq_s32_s64(vzip1q_s64(left, right)), t.accumulate);
      if (2 * p + 1 < kRows)
        Store(to + t.ldc, vreinterpretq_s32_s64(vzip2q_s64(left, right)), t.accumulate);
    }
}

template <DataType kWeight, int kRows>
void Tile(const TileArgs& t) {
  constexpr int kPairs = (kRows + 1) / 2;
  constexpr int64_t line_bytes = LineBytes<kWeight>();
  int32x4_t sums[kPairs][8];
#pragma GCC unroll 3
  for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[p][j] = vdupq_n_s32(0);
  const auto* a = static_cast<const int8_t*>(t.strip);
  const uint8_t* line = t.panel;
  const uint8_t* ahead = t.prefetch;
  int8x16_t pairs[kPairs];
  for (int64_t i = 0; i < t.lines; i += 2) {
#pragma GCC unroll 3
    for (int p = 0; p < kPairs; ++p) pairs[p] = LoadPair<kRows>(a, p);
    __builtin_prefetch(ahead);
    if constexpr (kWeight == DataType::kInt8) __builtin_prefetch(ahead + line_bytes);
    // A last line without a second meets the strip's zeros: any line will do beside it.
    AddLines<kWeight>(sums, pairs, line, i + 1 < t.lines ? line + line_bytes : line);
    a += 8 * kRows;
    line += 2 * line_bytes;
    ahead += 2 * line_bytes;
  }
  StoreSums<kRows>(sums, t);
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

bool Supported(const CpuFeatures& f) { return f.neon_i8mm; }

constexpr DataType k8 = DataType::kInt8, k4 = DataType::kInt4, k2 = DataType::kInt2;
constexpr Arithmetic kW8A8 = Arithmetic::kW8A8;
constexpr Operand kS8 = Operand::kS8;
// One row would leave half of each product unused.
constexpr int kRowsMin = 2;

constexpr MicroKernel kKernels[] = {
    {"cpu.neon_i8mm.s8s8s32.6x16x8", Supported, k8, kW8A8, kS8, 6, 16, 8, 30, Run<k8>, &kRowOps,
     nullptr, nullptr, kRowsMin},
    {"cpu.neon_i8mm.s8s4s32.6x16x8", Supported, k4, kW8A8, kS8, 6, 16, 8, 30, Run<k4>, &kRowOps,
     nullptr, nullptr, kRowsMin},
    {"cpu.neon_i8mm.s8s2s32.6x16x8", Supported, k2, kW8A8, kS8, 6, 16, 8, 30, Run<k2>, &kRowOps,
     nullptr, nullptr, kRowsMin},
};

}  // namespace

std::span<const MicroKernel> NeonI8mmKernels() { return kKernels; }

}  // namespace qmatmul::cpu

#pragma GCC pop_options
