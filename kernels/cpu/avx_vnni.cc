// AVX-VNNI: the VEX form of vpdpbusd, for processors that have VNNI but not AVX-512. Four u8 times
// four s8 are added to an int32 lane, never saturating (vpdpbusds would). INT8 weights take
// activations as a ^ 0x80 = a + 128; the epilogue takes 128 * colsum off. INT4 and INT2 weights are
// the unsigned operand themselves.
//
// Register tile, 6 rows x 16 columns (one panel), one 64-byte line a step:
//
//            ymm12 = b cols 0-7 (4 k each)   ymm13 = b cols 8-15
//   row 0    ymm0                            ymm1
//   …        …                               …               ymm14: a broadcast, ymm15: a mask
//   row 5    ymm10                           ymm11
//
// AVX-VNNI-INT8 (vpdpbssd) would save the + 128 only, which costs nothing here: not used.
//
// The intrinsics come from the compiler, or, in the emulated test on machines without the ISA, from
// SIMDe: QMATMUL_EMULATED then leaves the target pragma out.
#ifdef QMATMUL_EMULATED
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/micro_kernels.h"

#ifndef QMATMUL_EMULATED
#pragma GCC push_options
#pragma GCC target("avx2,f16c,avxvnni")
#define QMATMUL_F16C
#define QMATMUL_FLOAT_LANES 8
#endif

namespace qmatmul::cpu {
namespace {

#include "kernels/cpu/row_ops.inc"
#include "kernels/cpu/w8a32.inc"

#ifdef QMATMUL_EMULATED
inline __m256i DotBytes(__m256i sums, __m256i u8, __m256i s8) {
  return _mm256_dpbusd_epi32(sums, u8, s8);
}
bool Supported(const CpuFeatures&) { return true; }
#else
inline __m256i DotBytes(__m256i sums, __m256i u8, __m256i s8) {
  return _mm256_dpbusd_avx_epi32(sums, u8, s8);
}
bool Supported(const CpuFeatures& f) { return f.avx_vnni; }
#endif

inline __m256i Broadcast(const uint8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}

inline void Store(int32_t* c, __m256i sums, bool accumulate) {
  auto* to = reinterpret_cast<__m256i*>(c);
  if (accumulate) sums = _mm256_add_epi32(sums, _mm256_loadu_si256(to));
  _mm256_storeu_si256(to, sums);
}

// Columns 0-7 and 8-15 of a line: INT8 signed, INT4 and INT2 unsigned after their offset.
template <DataType kWeight>
inline void LoadLine(const uint8_t* line, __m256i* left, __m256i* right) {
  if constexpr (kWeight == DataType::kInt8) {
    *left = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
    *right = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line + 32));
  } else if constexpr (kWeight == DataType::kInt4) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
    *left = _mm256_and_si256(both, mask);
    *right = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
  } else {
    const __m256i mask = _mm256_set1_epi8(3);
    const __m256i all =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(line)));
    const __m256i low = _mm256_set_epi32(2, 2, 2, 2, 0, 0, 0, 0);
    const __m256i high = _mm256_set_epi32(6, 6, 6, 6, 4, 4, 4, 4);
    *left = _mm256_and_si256(_mm256_srlv_epi32(all, low), mask);
    *right = _mm256_and_si256(_mm256_srlv_epi32(all, high), mask);
  }
}

// vpdpbusd wants the unsigned operand first.
template <DataType kWeight>
inline __m256i Dot(__m256i sums, __m256i activations, __m256i line) {
  if constexpr (kWeight == DataType::kInt8) return DotBytes(sums, activations, line);
  else return DotBytes(sums, line, activations);
}

template <DataType kWeight>
constexpr int64_t LineBytes() {
  return kWeight == DataType::kInt8 ? 64 : kWeight == DataType::kInt4 ? 32 : 16;
}

// What the sums of eight columns start from.
inline __m256i Start(const TileArgs& t, int column) {
  if (t.column_sums == nullptr) return _mm256_setzero_si256();
  const auto* sums = reinterpret_cast<const __m256i*>(t.column_sums + column);
  return _mm256_mullo_epi32(_mm256_loadu_si256(sums), _mm256_set1_epi32(-t.correction));
}

template <DataType kWeight, int kRows>
void Tile(const TileArgs& t) {
  __m256i left[kRows], right[kRows];
  const __m256i left_start = Start(t, 0), right_start = Start(t, 8);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    left[r] = left_start;
    right[r] = right_start;
  }
  const auto* a = static_cast<const uint8_t*>(t.strip);
  const uint8_t* b = t.panel;
  const uint8_t* ahead = t.prefetch;
  for (int64_t i = 0; i < t.lines; ++i) {
    __m256i b_left, b_right;
    LoadLine<kWeight>(b, &b_left, &b_right);
    _mm_prefetch(ahead, _MM_HINT_T0);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = Broadcast(a + 4 * r);
      left[r] = Dot<kWeight>(left[r], x, b_left);
      right[r] = Dot<kWeight>(right[r], x, b_right);
    }
    a += 4 * kRows;
    b += LineBytes<kWeight>();
    ahead += LineBytes<kWeight>();
  }
  auto* c = static_cast<int32_t*>(t.c);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    Store(c + r * t.ldc, left[r], t.accumulate);
    Store(c + r * t.ldc + 8, right[r], t.accumulate);
  }
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

// One line of a one-row strip.
template <DataType kWeight>
inline void AddLine(const TileArgs& t, int64_t line, __m256i* left, __m256i* right) {
  const int64_t at = line * LineBytes<kWeight>();
  __m256i b_left, b_right;
  LoadLine<kWeight>(t.panel + at, &b_left, &b_right);
  _mm_prefetch(t.prefetch + at, _MM_HINT_T0);
  const __m256i x = Broadcast(static_cast<const uint8_t*>(t.strip) + 4 * line);
  *left = Dot<kWeight>(*left, x, b_left);
  *right = Dot<kWeight>(*right, x, b_right);
}

inline __m256i Total(const __m256i (&s)[2]) { return _mm256_add_epi32(s[0], s[1]); }

// One row: two lines a step, each with its own sums, hide vpdpbusd's latency.
template <DataType kWeight>
void RunGemv(const TileArgs& t) {
  __m256i left[2] = {Start(t, 0), _mm256_setzero_si256()};
  __m256i right[2] = {Start(t, 8), _mm256_setzero_si256()};
  int64_t i = 0;
  for (; i + 2 <= t.lines; i += 2) {
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) AddLine<kWeight>(t, i + u, &left[u], &right[u]);
  }
  for (; i < t.lines; ++i) AddLine<kWeight>(t, i, &left[0], &right[0]);
  auto* c = static_cast<int32_t*>(t.c);
  Store(c, Total(left), t.accumulate);
  Store(c + 8, Total(right), t.accumulate);
}

constexpr DataType k8 = DataType::kInt8, k4 = DataType::kInt4, k2 = DataType::kInt2;
constexpr Arithmetic kW8A8 = Arithmetic::kW8A8, kW8A32 = Arithmetic::kW8A32;
constexpr Operand kU8 = Operand::kU8, kS8 = Operand::kS8, kF32 = Operand::kF32;

constexpr MicroKernel kKernels[] = {
    {"cpu.avx_vnni.s8s8s32.6x16x4", Supported, k8, kW8A8, kU8, 6, 16, 4, 30, Run<k8>, &kRowOps},
    {"cpu.avx_vnni.s8s8s32.1x16x4", Supported, k8, kW8A8, kU8, 1, 16, 4, 30, RunGemv<k8>, &kRowOps},
    {"cpu.avx_vnni.s8s4s32.6x16x4", Supported, k4, kW8A8, kS8, 6, 16, 4, 30, Run<k4>, &kRowOps},
    {"cpu.avx_vnni.s8s4s32.1x16x4", Supported, k4, kW8A8, kS8, 1, 16, 4, 30, RunGemv<k4>, &kRowOps},
    {"cpu.avx_vnni.s8s2s32.6x16x4", Supported, k2, kW8A8, kS8, 6, 16, 4, 30, Run<k2>, &kRowOps},
    {"cpu.avx_vnni.s8s2s32.1x16x4", Supported, k2, kW8A8, kS8, 1, 16, 4, 30, RunGemv<k2>, &kRowOps},
    {"cpu.avx_vnni.f32s8f32.4x16x4", Supported, k8, kW8A32, kF32, 4, 16, 4, 30, RunFloat<k8>,
     &kRowOps},
    {"cpu.avx_vnni.f32s4f32.4x16x4", Supported, k4, kW8A32, kF32, 4, 16, 4, 30, RunFloat<k4>,
     &kRowOps},
    {"cpu.avx_vnni.f32s2f32.4x16x4", Supported, k2, kW8A32, kF32, 4, 16, 4, 30, RunFloat<k2>,
     &kRowOps},
};

}  // namespace

std::span<const MicroKernel> AvxVnniKernels() { return kKernels; }

}  // namespace qmatmul::cpu

#ifndef QMATMUL_EMULATED
#pragma GCC pop_options
#endif
