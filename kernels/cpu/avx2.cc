// AVX2, exact for every int8 input: activations widened to int16 when packed, weights widened as
// they are loaded, products and pair sums by vpmaddwd, which cannot saturate for |a| <= 255, |w| <=
// 128.
//
// Register tile, 6 rows x 8 columns, two passes per 16-column panel:
//
//            ymm12 = b cols 0-3 (4 k each)   ymm13 = b cols 4-7
//   row 0    ymm0  [c0' c0" c1' c1" ...]     ymm1             ' = k0 k1   " = k2 k3
//   …        …                               …                ymm14, ymm15: a broadcast, product
//   row 5    ymm10                           ymm11
//
// Each accumulator holds two partial sums a column; they are folded once, at the end.
// The row step is one asm block: GCC 12 spills accumulators of the same intrinsics in some files.
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
#define QMATMUL_AVX2_INTERLEAVE
#include "kernels/cpu/row_ops.inc"

inline __m256i LoadWidened(const int8_t* b) {
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

// Eight columns of a panel; `b` points at the first of them.
template <int kRows>
inline void HalfPanel(const TileArgs& t, const int8_t* b, int32_t* c) {
  __m256i left[kRows], right[kRows];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) left[r] = right[r] = _mm256_setzero_si256();
  const auto* a = static_cast<const int16_t*>(t.strip);
  const int8_t* ahead = t.prefetch;
  for (int64_t step = 0; step < t.k_steps; ++step) {
    const __m256i b_left = LoadWidened(b), b_right = LoadWidened(b + 16);
    _mm_prefetch(ahead, _MM_HINT_T0);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      __m256i x, y;
      asm("vpbroadcastq %[a], %[x]\n\t"
          "vpmaddwd %[bl], %[x], %[y]\n\t"
          "vpmaddwd %[br], %[x], %[x]\n\t"
          "vpaddd %[y], %[cl], %[cl]\n\t"
          "vpaddd %[x], %[cr], %[cr]"
          : [cl] "+x"(left[r]), [cr] "+x"(right[r]), [x] "=&x"(x), [y] "=&x"(y)
          : [a] "m"(*reinterpret_cast<const int64_t(*)[1]>(a + 4 * r)), [bl] "x"(b_left),
            [br] "x"(b_right));
    }
    a += 4 * kRows;
    b += 64;
    ahead += 64;
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) Store(c + r * t.ldc, Fold(left[r], right[r]), t.accumulate);
}

template <int kRows>
void Panel(const TileArgs& t) {
  HalfPanel<kRows>(t, t.panel, t.c);
  HalfPanel<kRows>(t, t.panel + 32, t.c + 8);
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
  const int8_t* b = t.panel;
  const int8_t* ahead = t.prefetch;
  __m256i c0 = _mm256_setzero_si256(), c1 = c0, c2 = c0, c3 = c0;
  for (int64_t step = 0; step < t.k_steps; ++step) {
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
  Store(t.c, Fold(c0, c1), t.accumulate);
  Store(t.c + 8, Fold(c2, c3), t.accumulate);
}

bool Supported(const CpuFeatures& f) { return f.avx2; }

}  // namespace

const MicroKernel kAvx2 = {
    "cpu.avx2.s8s8s32.6x16x4", Supported, 6, 16, 4, 20, Operand::kS16, kLayoutN16K4, Run, &kRowOps};
const MicroKernel kAvx2Gemv = {"cpu.avx2.s8s8s32.1x16x4",
                               Supported,
                               1,
                               16,
                               4,
                               20,
                               Operand::kS16,
                               kLayoutN16K4,
                               RunGemv,
                               &kRowOps};

}  // namespace qmatmul::cpu

#pragma GCC pop_options
