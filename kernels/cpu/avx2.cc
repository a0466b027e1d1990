// AVX2, exact for every int8 input.
//
// INT8 weights: activations widened to int16 when packed, weights widened as they are loaded,
// products and pair sums by vpmaddwd, which cannot saturate for |a| <= 255, |w| <= 128. Register
// tile, 6 rows x 8 columns, two passes per 16-column panel:
//
//            ymm12 = b cols 0-3 (4 k each)   ymm13 = b cols 4-7
//   row 0    ymm0  [c0' c0" c1' c1" ...]     ymm1             ' = k0 k1   " = k2 k3
//   …        …                               …                ymm14, ymm15: a broadcast, product
//   row 5    ymm10                           ymm11
//
// Each accumulator holds two partial sums a column; they are folded once, at the end.
//
// INT4 and INT2 weights: unsigned after their offset (0 … 15, 0 … 2), so vpmaddubsw with signed
// activations cannot saturate: a pair is at most 2 * 15 * 128 = 3,840. Pairs are summed in int16
// for as many lines as fit below 32,768 (8 lines of INT4, 64 of INT2), then widened by vpmaddwd.
// One pass covers all 16 columns.
//
// The row steps are asm blocks: GCC 12 spills accumulators of the same intrinsics in some files. Four lines
// a turn of the loop: the tile is bound by what a core can take in a cycle, the loop's own counting
// included, the more so where another hardware thread shares it.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/micro_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2,f16c")

namespace qmatmul::cpu {
namespace {

// Sixteen values of a row at a time: four groups, each 8 bytes once widened.
inline int64_t InterleaveWide(const uint8_t* in, int64_t groups, bool unsigned_source,
                              int64_t stride, int16_t* out) {
  int64_t g = 0;
  for (; g + 4 <= groups; g += 4) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 4 * g));
    const __m256i wide =
        unsigned_source ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes);
    const __m128i low = _mm256_castsi256_si128(wide);
    const __m128i high = _mm256_extracti128_si256(wide, 1);
    int16_t* to = out + g * stride;
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), low);
    _mm_storeh_pd(reinterpret_cast<double*>(to + stride), _mm_castsi128_pd(low));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 2 * stride), high);
    _mm_storeh_pd(reinterpret_cast<double*>(to + 3 * stride), _mm_castsi128_pd(high));
  }
  return g;
}

#define QMATMUL_F16C
#define QMATMUL_FLOAT_LANES 8
#define QMATMUL_AVX2_INTERLEAVE
#include "kernels/cpu/row_ops.inc"
#include "kernels/cpu/w8a32.inc"

inline __m256i LoadWidened(const uint8_t* b) {
  return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(b)));
}

// [c0' c0" c1' c1" | c2' …] and [c4' … ] to columns 0 … 7.
inline __m256i Fold(__m256i left, __m256i right) {
  return _mm256_permute4x64_epi64(_mm256_hadd_epi32(left, right), 0xd8);
}

inline void Store(int32_t* c, __m256i sums, bool accumulate) {
  auto* to = reinterpret_cast<__m256i*>(c);
  if (accumulate) sums = _mm256_add_epi32(sums, _mm256_loadu_si256(to));
  _mm256_storeu_si256(to, sums);
}

// One line of eight columns, for all rows from kRow on.
template <int kRows, int kRow>
[[gnu::always_inline]] inline void AddRows(const int16_t* a, __m256i b_left, __m256i b_right,
                                           __m256i (&left)[kRows], __m256i (&right)[kRows]) {
  __m256i x, y;
  asm("vpbroadcastq %[a], %[x]\n\t"
      "vpmaddwd %[bl], %[x], %[y]\n\t"
      "vpmaddwd %[br], %[x], %[x]\n\t"
      "vpaddd %[y], %[cl], %[cl]\n\t"
      "vpaddd %[x], %[cr], %[cr]"
      : [cl] "+x"(left[kRow]), [cr] "+x"(right[kRow]), [x] "=&x"(x), [y] "=&x"(y)
      : [a] "m"(*reinterpret_cast<const int64_t(*)[1]>(a + 4 * kRow)), [bl] "x"(b_left),
        [br] "x"(b_right));
  if constexpr (kRow + 1 < kRows) AddRows<kRows, kRow + 1>(a, b_left, b_right, left, right);
}

// Eight columns of a panel; `b` points at the first of them. Each half touches every other line of what comes
// next, or every fourth: all of them at once are more than a core can have on their way, and then it waits.
template <int kRows, int kHalf, bool kEveryOther>
inline void HalfPanel(const TileArgs& t, const uint8_t* b, int32_t* c) {
  __m256i left[kRows], right[kRows];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) left[r] = right[r] = _mm256_setzero_si256();
  const auto* a = static_cast<const int16_t*>(t.strip);
  const uint8_t* ahead = t.prefetch;
  int64_t lines = t.lines;
  for (; lines >= 4; lines -= 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (kEveryOther ? i == 2 * kHalf : i % 2 == kHalf) _mm_prefetch(ahead + 64 * i, _MM_HINT_T0);
      AddRows<kRows, 0>(a + 4 * kRows * i, LoadWidened(b + 64 * i), LoadWidened(b + 64 * i + 16),
                        left, right);
    }
    a += 16 * kRows;
    b += 256;
    ahead += 256;
  }
  for (; lines > 0; --lines) {
    AddRows<kRows, 0>(a, LoadWidened(b), LoadWidened(b + 16), left, right);
    a += 4 * kRows;
    b += 64;
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) Store(c + r * t.ldc, Fold(left[r], right[r]), t.accumulate);
}

template <int kRows, bool kEveryOther>
void BothHalves(const TileArgs& t) {
  auto* c = static_cast<int32_t*>(t.c);
  HalfPanel<kRows, 0, kEveryOther>(t, t.panel, c);
  HalfPanel<kRows, 1, kEveryOther>(t, t.panel + 32, c + 8);
}

template <int kRows>
void Panel(const TileArgs& t) {
  t.touch_every_other ? BothHalves<kRows, true>(t) : BothHalves<kRows, false>(t);
}

void Run(const TileArgs& t) {
  switch (t.rows) {
    case 1: return Panel<1>(t);
    case 2: return Panel<2>(t);
    case 3: return Panel<3>(t);
    case 4: return Panel<4>(t);
    case 5: return Panel<5>(t);
    default: return Panel<6>(t);
  }
}

// One row, all sixteen columns in one pass: the weight streams from memory once, in order.
void RunGemv(const TileArgs& t) {
  const auto* a = static_cast<const int16_t*>(t.strip);
  const uint8_t* b = t.panel;
  const uint8_t* ahead = t.prefetch;
  __m256i c0 = _mm256_setzero_si256(), c1 = c0, c2 = c0, c3 = c0;
  for (int64_t step = 0; step < t.lines; ++step) {
    _mm_prefetch(ahead, _MM_HINT_T0);
    int64_t four;
    std::memcpy(&four, a, 8);
    const __m256i x = _mm256_set1_epi64x(four);
    c0 = _mm256_add_epi32(c0, _mm256_madd_epi16(x, LoadWidened(b)));
    c1 = _mm256_add_epi32(c1, _mm256_madd_epi16(x, LoadWidened(b + 16)));
    c2 = _mm256_add_epi32(c2, _mm256_madd_epi16(x, LoadWidened(b + 32)));
    c3 = _mm256_add_epi32(c3, _mm256_madd_epi16(x, LoadWidened(b + 48)));
    a += 4;
    b += 64;
    ahead += 64;
  }
  auto* c = static_cast<int32_t*>(t.c);
  Store(c, Fold(c0, c1), t.accumulate);
  Store(c + 8, Fold(c2, c3), t.accumulate);
}

alignas(32) constexpr int64_t kNibbles[] = {0x0f0f0f0f0f0f0f0f, 0x0f0f0f0f0f0f0f0f,
                                            0x0f0f0f0f0f0f0f0f, 0x0f0f0f0f0f0f0f0f};
alignas(32) constexpr int64_t kPairs[] = {0x0303030303030303, 0x0303030303030303,
                                          0x0303030303030303, 0x0303030303030303};

// A mask that stays in memory: in a register it would push out a sum.
inline __m256i And(__m256i values, const int64_t (&mask)[4]) {
  asm("vpand %[mask], %[values], %[values]" : [values] "+x"(values) : [mask] "m"(mask));
  return values;
}

// A line's columns 0-7 and 8-15, unsigned.
template <DataType kWeight>
inline void DecodeLine(const uint8_t* line, __m256i* left, __m256i* right) {
  if constexpr (kWeight == DataType::kInt4) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
    *left = And(both, kNibbles);
    *right = And(_mm256_srli_epi16(both, 4), kNibbles);
  } else {
    const __m256i all =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(line)));
    *left = And(_mm256_srlv_epi32(all, _mm256_set_epi32(2, 2, 2, 2, 0, 0, 0, 0)), kPairs);
    *right = And(_mm256_srlv_epi32(all, _mm256_set_epi32(6, 6, 6, 6, 4, 4, 4, 4)), kPairs);
  }
}

// Rows from kRow on. Written out by templates: GCC 12 keeps the sums of loops nested as deep as this
// one in memory.
template <int kRows, int kRow>
[[gnu::always_inline]] inline void AddNarrowRows(const int8_t* a, __m256i b_left, __m256i b_right,
                                                 __m256i (&left)[kRows], __m256i (&right)[kRows]) {
  __m256i x, y;
  asm("vpbroadcastd %[a], %[x]\n\t"
      "vpmaddubsw %[x], %[bl], %[y]\n\t"
      "vpmaddubsw %[x], %[br], %[x]\n\t"
      "vpaddw %[y], %[cl], %[cl]\n\t"
      "vpaddw %[x], %[cr], %[cr]"
      : [cl] "+x"(left[kRow]), [cr] "+x"(right[kRow]), [x] "=&x"(x), [y] "=&x"(y)
      : [a] "m"(*reinterpret_cast<const int32_t(*)[1]>(a + 4 * kRow)), [bl] "x"(b_left),
        [br] "x"(b_right));
  if constexpr (kRow + 1 < kRows) AddNarrowRows<kRows, kRow + 1>(a, b_left, b_right, left, right);
}

template <DataType kWeight, int kRows>
void NarrowTile(const TileArgs& t) {
  constexpr int64_t line_bytes = kWeight == DataType::kInt4 ? 32 : 16;
  constexpr int64_t lines_max =
      kWeight == DataType::kInt4 ? 8 : 64;  // before an int16 could overflow
  const auto* a = static_cast<const int8_t*>(t.strip);
  const uint8_t* line = t.panel;
  const uint8_t* ahead = t.prefetch;
  auto* c = static_cast<int32_t*>(t.c);
  bool accumulate = t.accumulate;
  for (int64_t done = 0; done < t.lines; done += lines_max, accumulate = true) {
    __m256i left[kRows], right[kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) left[r] = right[r] = _mm256_setzero_si256();
    for (int64_t i = std::min(lines_max, t.lines - done); i > 0; --i) {
      __m256i b_left, b_right;
      DecodeLine<kWeight>(line, &b_left, &b_right);
      _mm_prefetch(ahead, _MM_HINT_T0);
      AddNarrowRows<kRows, 0>(a, b_left, b_right, left, right);
      a += 4 * kRows;
      line += line_bytes;
      ahead += line_bytes;
    }
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      Store(c + r * t.ldc, _mm256_madd_epi16(left[r], ones), accumulate);
      Store(c + r * t.ldc + 8, _mm256_madd_epi16(right[r], ones), accumulate);
    }
  }
}

template <DataType kWeight>
void RunNarrow(const TileArgs& t) {
  switch (t.rows) {
    case 1: return NarrowTile<kWeight, 1>(t);
    case 2: return NarrowTile<kWeight, 2>(t);
    case 3: return NarrowTile<kWeight, 3>(t);
    case 4: return NarrowTile<kWeight, 4>(t);
    case 5: return NarrowTile<kWeight, 5>(t);
    default: return NarrowTile<kWeight, 6>(t);
  }
}

// Eight lines of one row; an int16 holds them for INT4 and INT2 alike.
template <DataType kWeight>
inline void EightLines(const int8_t* a, const uint8_t* line, int64_t lines, __m256i* left,
                       __m256i* right) {
  constexpr int64_t line_bytes = kWeight == DataType::kInt4 ? 32 : 16;
  __m256i l = _mm256_setzero_si256(), r = l;
#pragma GCC unroll 8
  for (int64_t i = 0; i < lines; ++i) {
    int32_t four;
    std::memcpy(&four, a + 4 * i, 4);
    const __m256i x = _mm256_set1_epi32(four);
    __m256i b_left, b_right;
    DecodeLine<kWeight>(line + i * line_bytes, &b_left, &b_right);
    l = _mm256_add_epi16(l, _mm256_maddubs_epi16(b_left, x));
    r = _mm256_add_epi16(r, _mm256_maddubs_epi16(b_right, x));
  }
  const __m256i ones = _mm256_set1_epi16(1);
  *left = _mm256_add_epi32(*left, _mm256_madd_epi16(l, ones));
  *right = _mm256_add_epi32(*right, _mm256_madd_epi16(r, ones));
}

// One row: the int32 sums stay in registers, too.
template <DataType kWeight>
void RunNarrowGemv(const TileArgs& t) {
  constexpr int64_t line_bytes = kWeight == DataType::kInt4 ? 32 : 16;
  const auto* a = static_cast<const int8_t*>(t.strip);
  __m256i left = _mm256_setzero_si256(), right = left;
  int64_t i = 0;
  for (; i + 8 <= t.lines; i += 8) {
#pragma GCC unroll 4
    for (int64_t byte = 0; byte < 8 * line_bytes; byte += 64)
      _mm_prefetch(t.prefetch + i * line_bytes + byte, _MM_HINT_T0);
    EightLines<kWeight>(a + 4 * i, t.panel + i * line_bytes, 8, &left, &right);
  }
  if (i < t.lines)
    EightLines<kWeight>(a + 4 * i, t.panel + i * line_bytes, t.lines - i, &left, &right);
  auto* c = static_cast<int32_t*>(t.c);
  Store(c, left, t.accumulate);
  Store(c + 8, right, t.accumulate);
}

bool Supported(const CpuFeatures& f) { return f.avx2; }

constexpr DataType k8 = DataType::kInt8, k4 = DataType::kInt4, k2 = DataType::kInt2;
constexpr Arithmetic kW8A8 = Arithmetic::kW8A8, kW8A32 = Arithmetic::kW8A32;
constexpr Operand kS16 = Operand::kS16, kS8 = Operand::kS8, kF32 = Operand::kF32;

constexpr MicroKernel kKernels[] = {
    {.name = "cpu.avx2.s8s8s32.6x16x4",
     .supported = Supported,
     .weight = k8,
     .arithmetic = kW8A8,
     .operand = kS16,
     .mr = 6,
     .nr = 16,
     .kr = 4,
     .rank = 20,
     .run = Run,
     .ops = &kRowOps,
     .passes = 2},
    {"cpu.avx2.s8s8s32.1x16x4", Supported, k8, kW8A8, kS16, 1, 16, 4, 20, RunGemv, &kRowOps},
    {"cpu.avx2.s8s4s32.6x16x4", Supported, k4, kW8A8, kS8, 6, 16, 4, 20, RunNarrow<k4>, &kRowOps},
    {"cpu.avx2.s8s4s32.1x16x4", Supported, k4, kW8A8, kS8, 1, 16, 4, 20, RunNarrowGemv<k4>,
     &kRowOps},
    {"cpu.avx2.s8s2s32.6x16x4", Supported, k2, kW8A8, kS8, 6, 16, 4, 20, RunNarrow<k2>, &kRowOps},
    {"cpu.avx2.s8s2s32.1x16x4", Supported, k2, kW8A8, kS8, 1, 16, 4, 20, RunNarrowGemv<k2>,
     &kRowOps},
    {"cpu.avx2.f32s8f32.4x16x4", Supported, k8, kW8A32, kF32, 4, 16, 4, 20, RunFloat<k8>, &kRowOps},
    {"cpu.avx2.f32s4f32.4x16x4", Supported, k4, kW8A32, kF32, 4, 16, 4, 20, RunFloat<k4>, &kRowOps},
    {"cpu.avx2.f32s2f32.4x16x4", Supported, k2, kW8A32, kF32, 4, 16, 4, 20, RunFloat<k2>, &kRowOps},
};

}  // namespace

std::span<const MicroKernel> Avx2Kernels() { return kKernels; }

}  // namespace qmatmul::cpu

#pragma GCC pop_options
