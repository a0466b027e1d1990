// AVX2 above its exact roof: vpmaddubsw multiplies 32 pairs where vpmaddwd multiplies 16, but saturates at
// 16 bits. Weights are known when they are packed, so the few values that could make a pair saturate are
// known too (Outlier): they are taken off the panel before it is multiplied and added back from a
// sparse list, for all rows of a strip at once. A k-block of a panel is cleaned when it is about to be used, so
// the packed copy stays the weight's own bits. Exact for every weight; worth it where outliers are few and rows
// are many.
//
// Register tile, 6 rows x 16 columns, one pass: ymm0-11 sums, ymm12-13 a panel line, ymm14-15 broadcast and
// product, the row of ones that vpmaddwd needs in memory.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/micro_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2,f16c")

namespace qmatmul::cpu {
namespace {

#define QMATMUL_F16C
#include "kernels/cpu/row_ops.inc"

alignas(32) constexpr int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

inline __m256i Load(const uint8_t* line) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(line));
}

inline void Store(int32_t* c, __m256i sums, bool accumulate) {
  auto* to = reinterpret_cast<__m256i*>(c);
  if (accumulate) sums = _mm256_add_epi32(sums, _mm256_loadu_si256(to));
  _mm256_storeu_si256(to, sums);
}

// One line, for all rows from kRow on.
template <int kRows, int kRow>
[[gnu::always_inline]] inline void AddRows(const uint8_t* a, __m256i b_left, __m256i b_right,
                                           __m256i (&left)[kRows], __m256i (&right)[kRows]) {
  __m256i x, y;
  asm("vpbroadcastd %[a], %[x]\n\t"
      "vpmaddubsw %[bl], %[x], %[y]\n\t"
      "vpmaddubsw %[br], %[x], %[x]\n\t"
      "vpmaddwd %[ones], %[y], %[y]\n\t"
      "vpmaddwd %[ones], %[x], %[x]\n\t"
      "vpaddd %[y], %[cl], %[cl]\n\t"
      "vpaddd %[x], %[cr], %[cr]"
      : [cl] "+x"(left[kRow]), [cr] "+x"(right[kRow]), [x] "=&x"(x), [y] "=&x"(y)
      : [a] "m"(*reinterpret_cast<const int32_t(*)[1]>(a + 4 * kRow)), [bl] "x"(b_left),
        [br] "x"(b_right), [ones] "m"(kOnes));
  if constexpr (kRow + 1 < kRows) AddRows<kRows, kRow + 1>(a, b_left, b_right, left, right);
}

// Four lines a turn of the loop, as in avx2.cc.
template <int kRows>
void Tile(const TileArgs& t) {
  __m256i left[kRows], right[kRows];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) left[r] = right[r] = _mm256_setzero_si256();
  const auto* a = static_cast<const uint8_t*>(t.strip);
  const uint8_t* line = t.panel;
  const uint8_t* ahead = t.prefetch;
  int64_t lines = t.lines;
  for (; lines >= 4; lines -= 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      _mm_prefetch(ahead + 64 * i, _MM_HINT_T0);
      AddRows<kRows, 0>(a + 4 * kRows * i, Load(line + 64 * i), Load(line + 64 * i + 32), left,
                        right);
    }
    a += 16 * kRows;
    line += 256;
    ahead += 256;
  }
  for (; lines > 0; --lines) {
    AddRows<kRows, 0>(a, Load(line), Load(line + 32), left, right);
    a += 4 * kRows;
    line += 64;
  }
  auto* c = static_cast<int32_t*>(t.c);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    Store(c + r * t.ldc, left[r], t.accumulate);
    Store(c + r * t.ldc + 8, right[r], t.accumulate);
  }
}

void Run(const TileArgs& t) {
  switch (t.rows) {
    case 1: return Tile<1>(t);
    case 2: return Tile<2>(t);
    case 3: return Tile<3>(t);
    case 4: return Tile<4>(t);
    case 5: return Tile<5>(t);
    default: return Tile<6>(t);
  }
}

// Eight columns of sums, a lane for each row, become rows of eight columns.
inline void Transpose(__m256i* x) {
  __m256i u[8], w[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    u[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
    u[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    w[i] = _mm256_unpacklo_epi64(u[i], u[i + 2]);
    w[i + 1] = _mm256_unpackhi_epi64(u[i], u[i + 2]);
    w[i + 2] = _mm256_unpacklo_epi64(u[i + 1], u[i + 3]);
    w[i + 3] = _mm256_unpackhi_epi64(u[i + 1], u[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2x128_si256(w[i], w[i + 4], 0x20);
    x[i + 4] = _mm256_permute2x128_si256(w[i], w[i + 4], 0x31);
  }
}

// A strip holds four values of K of each row side by side, so one load brings a value of K for every row:
// eight rows' worth are read, those beyond the strip are dropped at the end (the strip's buffer is padded).
void AddOutliers(const TileArgs& t, std::span<const Outlier> outliers) {
  alignas(32) int32_t sums[16][8] = {};
  const auto* strip = static_cast<const uint8_t*>(t.strip);
  const __m256i low_byte = _mm256_set1_epi32(255);
  for (const Outlier& o : outliers) {
    const auto* four = reinterpret_cast<const __m256i*>(strip + o.line * 4 * t.rows);
    const __m128i shift = _mm_cvtsi32_si128(8 * (o.value % 4));
    const __m256i a = _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(four), shift), low_byte);
    auto* column = reinterpret_cast<__m256i*>(sums[o.value / 4]);
    // Both factors fit in the low 16 bits of their lanes, whose high halves multiply to zero.
    const __m256i excess = _mm256_set1_epi32(static_cast<uint16_t>(o.excess));
    *column = _mm256_add_epi32(*column, _mm256_madd_epi16(a, excess));
  }
  for (int half = 0; half < 2; ++half) {
    __m256i x[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      x[i] = _mm256_load_si256(reinterpret_cast<__m256i*>(sums[8 * half + i]));
    Transpose(x);
    for (int r = 0; r < t.rows; ++r)
      Store(static_cast<int32_t*>(t.c) + r * t.ldc + 8 * half, x[r], true);
  }
}

// The excess of one pair, taken from its larger value in `clean`; 0 when it has none.
inline int TakeExcess(int8_t* pair, int* larger) {
  const int positive = std::max<int>(pair[0], 0) + std::max<int>(pair[1], 0);
  const int negative = std::min<int>(pair[0], 0) + std::min<int>(pair[1], 0);
  const int excess = positive > kPairSumMax    ? positive - kPairSumMax
                     : negative < -kPairSumMax ? negative + kPairSumMax
                                               : 0;
  *larger = std::abs(pair[0]) >= std::abs(pair[1]) ? 0 : 1;
  pair[*larger] = static_cast<int8_t>(pair[*larger] - excess);
  return excess;
}

int64_t SetOutliersAside(const uint8_t* panel, int64_t lines, uint8_t* clean, Outlier* list) {
  const __m256i zero = _mm256_setzero_si256(), ones = _mm256_set1_epi8(1);
  const __m256i high = _mm256_set1_epi16(kPairSumMax), low = _mm256_set1_epi16(-kPairSumMax);
  int64_t count = 0;
  for (int64_t i = 0; i < lines; ++i)
    for (int half = 0; half < 2; ++half) {
      const int64_t at = 64 * i + 32 * half;
      const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + at));
      _mm256_store_si256(reinterpret_cast<__m256i*>(clean + at), w);
      const __m256i positive = _mm256_maddubs_epi16(ones, _mm256_max_epi8(w, zero));
      const __m256i negative = _mm256_maddubs_epi16(ones, _mm256_min_epi8(w, zero));
      const __m256i beyond =
          _mm256_or_si256(_mm256_cmpgt_epi16(positive, high), _mm256_cmpgt_epi16(low, negative));
      auto mask = static_cast<uint32_t>(_mm256_movemask_epi8(beyond)) & 0x55555555u;
      for (; mask != 0; mask &= mask - 1) {
        const int first = __builtin_ctz(mask);
        int larger = 0;
        const int excess = TakeExcess(reinterpret_cast<int8_t*>(clean) + at + first, &larger);
        list[count++] = {static_cast<uint16_t>(i), static_cast<uint8_t>(32 * half + first + larger),
                         static_cast<int8_t>(excess)};
      }
    }
  return count;
}

bool Supported(const CpuFeatures& f) { return f.avx2; }

// Without measurements: cleaning a panel pays only when several strips share it.
constexpr int kRowsMin = 32;

constexpr MicroKernel kKernels[] = {
    {"cpu.avx2_split.s8s8s32.6x16x4", Supported, DataType::kInt8, Arithmetic::kW8A8, Operand::kU8,
     6, 16, 4, 21, Run, &kRowOps, SetOutliersAside, AddOutliers, kRowsMin},
};

}  // namespace

std::span<const MicroKernel> Avx2SplitKernels() { return kKernels; }

}  // namespace qmatmul::cpu

#pragma GCC pop_options
