// AVX-512 VNNI: vpdpbusd multiplies four u8 by four s8 and adds to an int32 lane, never saturating
// (vpdpbusds would). Activations are packed as a ^ 0x80 = a + 128; the epilogue takes 128 * colsum
// off.
//
// Register tile, 8 rows x 32 columns (two panels): zmm accumulators 8 x 2, two panel lines, one
// broadcast. One 64-byte line of a panel is one zmm operand: 16 columns x 4 k.
//
// The intrinsics come from the compiler, or, in the emulated test on machines without the ISA, from
// SIMDe (tests/kernels/emulated): QMATMUL_EMULATED then leaves the target pragma out.
#ifdef QMATMUL_EMULATED
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include "tests/support/avx512_stand_in.h"
#else
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/micro_kernels.h"

#ifndef QMATMUL_EMULATED
#pragma GCC push_options
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")
#define QMATMUL_F16C
#define QMATMUL_FLOAT_LANES 8
#endif
#define QMATMUL_AVX512

namespace qmatmul::cpu {
namespace {

#include "kernels/cpu/row_ops.inc"
#include "kernels/cpu/w8a32.inc"

inline __m512i Broadcast(const uint8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  return _mm512_set1_epi32(four);
}

inline void Store(int32_t* c, __m512i sums, bool accumulate) {
  if (accumulate) sums = _mm512_add_epi32(sums, _mm512_loadu_si512(c));
  _mm512_storeu_si512(c, sums);
}

// A line as one operand: INT8 signed, INT4 and INT2 unsigned after their offset.
template <DataType kWeight>
inline __m512i LoadLine(const uint8_t* line) {
  if constexpr (kWeight == DataType::kInt8) {
    return _mm512_loadu_si512(line);
  } else if constexpr (kWeight == DataType::kInt4) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
    const __m512i shifted =
        _mm512_inserti64x4(_mm512_castsi256_si512(both), _mm256_srli_epi16(both, 4), 1);
    return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
  } else {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(line));
    const __m512i shifts = _mm512_set_epi32(6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0);
    return _mm512_and_si512(_mm512_srlv_epi32(_mm512_broadcast_i32x4(all), shifts),
                            _mm512_set1_epi8(3));
  }
}

// vpdpbusd wants the unsigned operand first.
template <DataType kWeight>
inline __m512i Dot(__m512i sums, __m512i activations, __m512i line) {
  if constexpr (kWeight == DataType::kInt8) return _mm512_dpbusd_epi32(sums, activations, line);
  else return _mm512_dpbusd_epi32(sums, line, activations);
}

template <DataType kWeight>
constexpr int64_t LineBytes() {
  return kWeight == DataType::kInt8 ? 64 : kWeight == DataType::kInt4 ? 32 : 16;
}

// What the sums of a panel start from.
inline __m512i Start(const TileArgs& t, int panel) {
  if (t.column_sums == nullptr) return _mm512_setzero_si512();
  return _mm512_mullo_epi32(_mm512_loadu_si512(t.column_sums + 16 * panel),
                            _mm512_set1_epi32(-t.correction));
}

// One line of each panel.
template <DataType kWeight, int kRows, int kPanels>
[[gnu::always_inline]] inline void AddLine(const uint8_t* a, const uint8_t* b, int64_t panel_stride,
                                           __m512i (&sums)[kRows][kPanels]) {
  __m512i line[kPanels];
#pragma GCC unroll 2
  for (int p = 0; p < kPanels; ++p) line[p] = LoadLine<kWeight>(b + p * panel_stride);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m512i x = Broadcast(a + 4 * r);
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) sums[r][p] = Dot<kWeight>(sums[r][p], x, line[p]);
  }
}

template <DataType kWeight, int kRows, int kPanels>
inline void Tile(const TileArgs& t) {
  constexpr int64_t line_bytes = LineBytes<kWeight>();
  // Fewer than ten sums at a time would wait for vpdpbusd's latency: then every other line has its own.
  constexpr int kSets = kRows * kPanels < 10 ? 2 : 1;
  __m512i sums[kSets][kRows][kPanels];
#pragma GCC unroll 2
  for (int p = 0; p < kPanels; ++p) {
    const __m512i start = Start(t, p);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sums[kSets - 1][r][p] = _mm512_setzero_si512();
      sums[0][r][p] = start;
    }
  }
  const auto* a = static_cast<const uint8_t*>(t.strip);
  const uint8_t* b = t.panel;
  const uint8_t* ahead = t.prefetch;
  const bool touches = ahead != b;
  int64_t lines = t.lines;
  for (; lines >= 2; lines -= 2) {
    if (touches) {
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        _mm_prefetch(ahead + p * t.panel_stride, _MM_HINT_T0);
        _mm_prefetch(ahead + p * t.panel_stride + line_bytes, _MM_HINT_T0);
      }
      ahead += 2 * line_bytes;
    }
    AddLine<kWeight>(a, b, t.panel_stride, sums[0]);
    AddLine<kWeight>(a + 4 * kRows, b + line_bytes, t.panel_stride, sums[kSets - 1]);
    a += 8 * kRows;
    b += 2 * line_bytes;
  }
  if (lines > 0) AddLine<kWeight>(a, b, t.panel_stride, sums[0]);
  auto* c = static_cast<int32_t*>(t.c);
  const int64_t ldc = t.ldc;
  const bool accumulate = t.accumulate;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      __m512i sum = sums[0][r][p];
      if constexpr (kSets == 2) sum = _mm512_add_epi32(sum, sums[1][r][p]);
      Store(c + r * ldc + 16 * p, sum, accumulate);
    }
}

template <DataType kWeight, int kPanels>
void RunRows(const TileArgs& t) {
  switch (t.rows) {
    case 1: return Tile<kWeight, 1, kPanels>(t);
    case 2: return Tile<kWeight, 2, kPanels>(t);
    case 3: return Tile<kWeight, 3, kPanels>(t);
    case 4: return Tile<kWeight, 4, kPanels>(t);
    case 5: return Tile<kWeight, 5, kPanels>(t);
    case 6: return Tile<kWeight, 6, kPanels>(t);
    case 7: return Tile<kWeight, 7, kPanels>(t);
    default: return Tile<kWeight, 8, kPanels>(t);
  }
}

template <DataType kWeight>
void Run(const TileArgs& t) {
  t.panels == 2 ? RunRows<kWeight, 2>(t) : RunRows<kWeight, 1>(t);
}

// One row. Each panel has kSums independent sums to hide vpdpbusd's latency while the panels stream in.
template <DataType kWeight, int kPanels>
inline void Row(const TileArgs& t) {
  constexpr int kSums = 4;
  constexpr int64_t line_bytes = LineBytes<kWeight>();
  const auto* a = static_cast<const uint8_t*>(t.strip);
  __m512i sums[kPanels][kSums];
#pragma GCC unroll 2
  for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
    for (int u = 0; u < kSums; ++u) sums[p][u] = u == 0 ? Start(t, p) : _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + kSums <= t.lines; i += kSums) {
#pragma GCC unroll 4
    for (int u = 0; u < kSums; ++u) {
      const __m512i x = Broadcast(a + 4 * (i + u));
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        const int64_t at = p * t.panel_stride + (i + u) * line_bytes;
        _mm_prefetch(t.prefetch + at, _MM_HINT_T0);
        sums[p][u] = Dot<kWeight>(sums[p][u], x, LoadLine<kWeight>(t.panel + at));
      }
    }
  }
  for (; i < t.lines; ++i) {
    const __m512i x = Broadcast(a + 4 * i);
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p)
      sums[p][0] = Dot<kWeight>(sums[p][0], x,
                                LoadLine<kWeight>(t.panel + p * t.panel_stride + i * line_bytes));
  }
#pragma GCC unroll 2
  for (int p = 0; p < kPanels; ++p) {
    const __m512i total = _mm512_add_epi32(_mm512_add_epi32(sums[p][0], sums[p][1]),
                                           _mm512_add_epi32(sums[p][2], sums[p][3]));
    Store(static_cast<int32_t*>(t.c) + 16 * p, total, t.accumulate);
  }
}

template <DataType kWeight>
void RunGemv(const TileArgs& t) {
  t.panels == 2 ? Row<kWeight, 2>(t) : Row<kWeight, 1>(t);
}

#ifdef QMATMUL_EMULATED
bool Supported(const CpuFeatures&) { return true; }
#else
bool Supported(const CpuFeatures& f) { return f.avx512_vnni; }
#endif

constexpr DataType k8 = DataType::kInt8, k4 = DataType::kInt4, k2 = DataType::kInt2;
constexpr Arithmetic kW8A8 = Arithmetic::kW8A8, kW8A32 = Arithmetic::kW8A32;
constexpr Operand kU8 = Operand::kU8, kS8 = Operand::kS8, kF32 = Operand::kF32;

constexpr MicroKernel kKernels[] = {
    {"cpu.avx512_vnni.s8s8s32.8x32x4", Supported, k8, kW8A8, kU8, 8, 32, 4, 40, Run<k8>, &kRowOps},
    {"cpu.avx512_vnni.s8s8s32.1x32x4", Supported, k8, kW8A8, kU8, 1, 32, 4, 40, RunGemv<k8>,
     &kRowOps},
    {"cpu.avx512_vnni.s8s4s32.8x32x4", Supported, k4, kW8A8, kS8, 8, 32, 4, 40, Run<k4>, &kRowOps},
    {"cpu.avx512_vnni.s8s4s32.1x32x4", Supported, k4, kW8A8, kS8, 1, 32, 4, 40, RunGemv<k4>,
     &kRowOps},
    {"cpu.avx512_vnni.s8s2s32.8x32x4", Supported, k2, kW8A8, kS8, 8, 32, 4, 40, Run<k2>, &kRowOps},
    {"cpu.avx512_vnni.s8s2s32.1x32x4", Supported, k2, kW8A8, kS8, 1, 32, 4, 40, RunGemv<k2>,
     &kRowOps},
    {"cpu.avx512_vnni.f32s8f32.4x16x4", Supported, k8, kW8A32, kF32, 4, 16, 4, 40, RunFloat<k8>,
     &kRowOps},
    {"cpu.avx512_vnni.f32s4f32.4x16x4", Supported, k4, kW8A32, kF32, 4, 16, 4, 40, RunFloat<k4>,
     &kRowOps},
    {"cpu.avx512_vnni.f32s2f32.4x16x4", Supported, k2, kW8A32, kF32, 4, 16, 4, 40, RunFloat<k2>,
     &kRowOps},
};

}  // namespace

std::span<const MicroKernel> Avx512VnniKernels() { return kKernels; }

}  // namespace qmatmul::cpu

#ifndef QMATMUL_EMULATED
#pragma GCC pop_options
#endif
