// AVX-512 VNNI: vpdpbusd multiplies four u8 by four s8 and adds to an int32 lane, never saturating
// (vpdpbusds would). For INT8 weights activations are packed as a ^ 0x80 = a + 128, and 128 * colsum is
// taken off: before the first line where all rows have the same correction, else by the epilogue.
//
// Register tile, 12 rows x 32 columns (two panels): zmm accumulators 12 x 2, two panel lines, one
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

// GCC would load a line anew for every row, as the memory operand of its vpdpbusd, and loads are what short strips
// have too many of.
inline __m512i InRegister(__m512i x) {
#ifndef QMATMUL_EMULATED
  asm("" : "+v"(x));
#endif
  return x;
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

// Touches the next kBytes of what lies `ahead`; nothing, where that is 0.
template <int64_t kBytes>
inline void Touch(const uint8_t* b, int64_t ahead) {
  if (ahead == 0) return;
#pragma GCC unroll 8
  for (int64_t at = 0; at < kBytes; at += 64) _mm_prefetch(b + ahead + at, _MM_HINT_T0);
}

inline __m512i Total(const __m512i (&sums)[4]) {
  return _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
}

// One line of each panel.
template <DataType kWeight, int kRows, int kPanels>
[[gnu::always_inline]] inline void AddLine(const uint8_t* a, const uint8_t* b, int64_t panel_stride,
                                           __m512i (&sums)[kRows][kPanels]) {
  __m512i line[kPanels];
#pragma GCC unroll 2
  for (int p = 0; p < kPanels; ++p) line[p] = InRegister(LoadLine<kWeight>(b + p * panel_stride));
#pragma GCC unroll 12
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
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      sums[kSets - 1][r][p] = _mm512_setzero_si512();
      sums[0][r][p] = start;
    }
  }
  const auto* a = static_cast<const uint8_t*>(t.strip);
  const uint8_t* b = t.panel;
  const uint8_t* ahead = t.prefetch;
  int64_t lines = t.lines;
  int64_t until_touch = ahead != b ? 1 : lines;
  for (; lines >= 2; lines -= 2) {
    if (--until_touch == 0) {
      until_touch = t.touch_period;
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
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      __m512i sum = sums[0][r][p];
      if constexpr (kSets == 2) sum = _mm512_add_epi32(sum, sums[1][r][p]);
      Store(c + r * ldc + 16 * p, sum, accumulate);
    }
}

// One panel after the other, each in four sets of sums: so few rows wait for the weight, and L2 gives one stream faster
// than two (Zen 5). From four rows on the broadcasts are what a core is busy with, which two panels share.
template <DataType kWeight, int kRows>
void FewRows(const TileArgs& t) {
  constexpr int64_t line_bytes = LineBytes<kWeight>();
  const int64_t ahead = t.prefetch - t.panel;
  for (int p = 0; p < t.panels; ++p) {
    __m512i sums[4][kRows][1];
    const __m512i start = Start(t, p);
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) sums[u][r][0] = u == 0 ? start : _mm512_setzero_si512();
    const auto* a = static_cast<const uint8_t*>(t.strip);
    const uint8_t* b = t.panel + p * t.panel_stride;
    int64_t lines = t.lines;
    for (; lines >= 4; lines -= 4, a += 16 * kRows, b += 4 * line_bytes) {
      Touch<4 * line_bytes>(b, ahead);
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u)
        AddLine<kWeight>(a + 4 * kRows * u, b + u * line_bytes, 0, sums[u]);
    }
    for (; lines > 0; --lines, a += 4 * kRows, b += line_bytes) AddLine<kWeight>(a, b, 0, sums[0]);
    auto* c = static_cast<int32_t*>(t.c) + 16 * p;
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
      const __m512i total[4] = {sums[0][r][0], sums[1][r][0], sums[2][r][0], sums[3][r][0]};
      Store(c + r * t.ldc, Total(total), t.accumulate);
    }
  }
}

template <DataType kWeight, int kPanels>
void RunRows(const TileArgs& t) {
  switch (t.rows) {
    case 1: return Tile<kWeight, 1, kPanels>(t);
    case 2: return FewRows<kWeight, 2>(t);
    case 3: return FewRows<kWeight, 3>(t);
    case 4: return Tile<kWeight, 4, kPanels>(t);
    case 5: return Tile<kWeight, 5, kPanels>(t);
    case 6: return Tile<kWeight, 6, kPanels>(t);
    case 7: return Tile<kWeight, 7, kPanels>(t);
    case 8: return Tile<kWeight, 8, kPanels>(t);
    case 9: return Tile<kWeight, 9, kPanels>(t);
    case 10: return Tile<kWeight, 10, kPanels>(t);
    case 11: return Tile<kWeight, 11, kPanels>(t);
    default: return Tile<kWeight, 12, kPanels>(t);
  }
}

template <DataType kWeight>
void Run(const TileArgs& t) {
  t.panels == 2 ? RunRows<kWeight, 2>(t) : RunRows<kWeight, 1>(t);
}

// Eight lines of one row, each with sums of its own, that hide vpdpbusd's latency while the panel streams in.
template <DataType kWeight>
inline void AddEightLines(const uint8_t* a, const uint8_t* b, __m512i (&sums)[8]) {
#pragma GCC unroll 8
  for (int u = 0; u < 8; ++u)
    sums[u] = Dot<kWeight>(sums[u], Broadcast(a + 4 * u),
                           LoadLine<kWeight>(b + u * LineBytes<kWeight>()));
}

// Two lines of INT4 are one load: the low nibbles of both, columns 0-7, then the high ones, columns 8-15, times 16 as
// they stand. Lanes 0-7 of a sum belong to the first line, lanes 8-15 to the second.
inline void AddEightLinesInt4(const uint8_t* a, const uint8_t* b, __m512i (&left)[4],
                              __m512i (&right16)[4]) {
  const __m512i halves = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
#pragma GCC unroll 4
  for (int u = 0; u < 4; ++u) {
    int64_t eight;
    std::memcpy(&eight, a + 8 * u, 8);
    const __m512i x = _mm512_permutexvar_epi32(halves, _mm512_set1_epi64(eight));
    const __m512i both = _mm512_loadu_si512(b + 64 * u);
    left[u] = _mm512_dpbusd_epi32(left[u], _mm512_and_si512(both, _mm512_set1_epi8(15)), x);
    right16[u] = _mm512_dpbusd_epi32(right16[u], _mm512_and_si512(both, _mm512_set1_epi8(-16)), x);
  }
}

// Σ over `lines` lines of one panel, of one row.
template <DataType kWeight>
inline __m512i SumLines(const uint8_t* a, const uint8_t* b, int64_t lines, int64_t ahead) {
  constexpr int64_t line_bytes = LineBytes<kWeight>();
  const __m512i zero = _mm512_setzero_si512();
  __m512i sums[8] = {zero, zero, zero, zero, zero, zero, zero, zero};
  for (; lines >= 8; lines -= 8, a += 32, b += 8 * line_bytes) {
    Touch<8 * line_bytes>(b, ahead);
    AddEightLines<kWeight>(a, b, sums);
  }
  __m512i total = zero;
#pragma GCC unroll 8
  for (int u = 0; u < 8; ++u) total = _mm512_add_epi32(total, sums[u]);
  for (; lines > 0; --lines, a += 4, b += line_bytes)
    total = Dot<kWeight>(total, Broadcast(a), LoadLine<kWeight>(b));
  return total;
}

template <>
inline __m512i SumLines<DataType::kInt4>(const uint8_t* a, const uint8_t* b, int64_t lines,
                                         int64_t ahead) {
  static_assert(16 * 15 * int64_t{128} * (kInnerMax + 1) / 2 < int64_t{1} << 31,
                "a lane has half of the lines, so that 16 times their sum fits");
  const __m512i zero = _mm512_setzero_si512();
  __m512i left[4] = {zero, zero, zero, zero}, right16[4] = {zero, zero, zero, zero};
  for (; lines >= 8; lines -= 8, a += 32, b += 256) {
    Touch<256>(b, ahead);
    AddEightLinesInt4(a, b, left, right16);
  }
  const __m512i l = Total(left), r = _mm512_srai_epi32(Total(right16), 4);
  __m512i total =
      _mm512_add_epi32(_mm512_shuffle_i32x4(l, r, 0x44), _mm512_shuffle_i32x4(l, r, 0xee));
  for (; lines > 0; --lines, a += 4, b += 32)
    total = Dot<DataType::kInt4>(total, Broadcast(a), LoadLine<DataType::kInt4>(b));
  return total;
}

template <DataType kWeight>
void RunGemv(const TileArgs& t) {
  const __m512i sums = SumLines<kWeight>(static_cast<const uint8_t*>(t.strip), t.panel, t.lines,
                                         t.prefetch - t.panel);
  Store(static_cast<int32_t*>(t.c), _mm512_add_epi32(Start(t, 0), sums), t.accumulate);
}

// Two panels side by side.
void RunWideGemv(const TileArgs& t) {
  if (t.panels == 1) return RunGemv<DataType::kInt8>(t);
  const auto* a = static_cast<const uint8_t*>(t.strip);
  const __m512i zero = _mm512_setzero_si512();
  const uint8_t* const panels[2] = {t.panel, t.panel + t.panel_stride};
  const int64_t ahead = t.prefetch - t.panel;
  __m512i sums[2][4] = {{Start(t, 0), zero, zero, zero}, {Start(t, 1), zero, zero, zero}};
  int64_t i = 0;
  for (; i + 4 <= t.lines; i += 4) {
    for (const uint8_t* panel : panels) Touch<256>(panel + 64 * i, ahead);
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const __m512i x = Broadcast(a + 4 * (i + u));
#pragma GCC unroll 2
      for (int p = 0; p < 2; ++p)
        sums[p][u] =
            _mm512_dpbusd_epi32(sums[p][u], x, _mm512_loadu_si512(panels[p] + 64 * (i + u)));
    }
  }
  for (; i < t.lines; ++i)
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p)
      sums[p][0] = _mm512_dpbusd_epi32(sums[p][0], Broadcast(a + 4 * i),
                                       _mm512_loadu_si512(panels[p] + 64 * i));
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p)
    Store(static_cast<int32_t*>(t.c) + 16 * p, Total(sums[p]), t.accumulate);
}

// One row of INT4 in scale groups.
template <int kPanels>
void RunGroupsOf(const GroupArgs& t) {
  // A group's scales lie far from the next one's: they are touched while the weights of the groups before are read.
  constexpr int64_t kGroupsAhead = 8;
  const auto touch_scales = [&t](int64_t g) {
    const float* const scales = t.scales + g * t.stride;
    for (int64_t c = 0; c < t.scales_ahead; c += 16) _mm_prefetch(scales + c, _MM_HINT_T0);
  };
  for (int64_t g = 0; g < std::min(t.groups, kGroupsAhead); ++g) touch_scales(g);
  const auto* a = static_cast<const uint8_t*>(t.strip);
  const uint8_t* b = t.panel;
  __m512 y[kPanels];
  for (int64_t g = 0; g < t.groups; ++g) {
    touch_scales(g + kGroupsAhead);
    const __m512i offset = _mm512_set1_epi32(t.offset * t.row_sums[g]);
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      const int64_t at = g * t.stride + 16 * p;
      __m512i sums =
          SumLines<DataType::kInt4>(a, b + p * t.panel_stride, t.group_lines, t.ahead_bytes);
      sums = _mm512_sub_epi32(sums, offset);
      if (t.correction != 0)
        sums = _mm512_sub_epi32(sums, _mm512_mullo_epi32(_mm512_loadu_si512(t.column_sums + at),
                                                         _mm512_set1_epi32(t.correction)));
      const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(t.scales + at));
      y[p] = g == 0 ? scaled : _mm512_add_ps(y[p], scaled);
    }
    a += 4 * t.group_lines;
    b += t.group_lines * LineBytes<DataType::kInt4>();
  }
#pragma GCC unroll 2
  for (int p = 0; p < kPanels; ++p) _mm512_storeu_ps(t.y + 16 * p, y[p]);
}

// Two panels side by side are two streams, which memory gives faster than one (by 7 % at 16384 x 16384, Zen 5).
void RunGroups(const GroupArgs& t) {
  if (t.panels == 2) RunGroupsOf<2>(t);
  else RunGroupsOf<1>(t);
}

#ifdef QMATMUL_EMULATED
bool Supported(const CpuFeatures&) { return true; }
#else
bool Supported(const CpuFeatures& f) { return f.avx512_vnni; }
#endif

constexpr DataType k8 = DataType::kInt8, k4 = DataType::kInt4, k2 = DataType::kInt2;
constexpr Arithmetic kW8A8 = Arithmetic::kW8A8, kW8A32 = Arithmetic::kW8A32;
constexpr Operand kU8 = Operand::kU8, kS8 = Operand::kS8, kF32 = Operand::kF32;

// All of K at once, up to where a quarter of a small L2 holds both panels: to add up sums in memory costs more than
// reading the panels from L2 for each strip.
constexpr int kBlockK = 4096;

// Of a weight that streams past one strip, in bytes. Half of it leaves the tile waiting for memory.
constexpr int64_t kPanelAheadMin = 4096;

// The ways of a small L1; in scratch 2048 x 4096 x 4096 is 4 % faster.
constexpr int kRowsApartMax = 8;

constexpr MicroKernel TileOf(const char* name, DataType weight, Operand operand,
                             void (*run)(const TileArgs&)) {
  return {.name = name,
          .supported = Supported,
          .weight = weight,
          .arithmetic = kW8A8,
          .operand = operand,
          .mr = 12,
          .nr = 32,
          .kr = 4,
          .rank = 40,
          .run = run,
          .ops = &kRowOps,
          .block_k = kBlockK,
          .rows_apart_max = kRowsApartMax,
          .spreads = true,
          .panel_ahead_min = kPanelAheadMin};
}

// INT8 has two: some processors stream one panel at a time faster, others two side by side.
constexpr MicroKernel RowOf(const char* name, DataType weight, Operand operand, int columns,
                            void (*run)(const TileArgs&),
                            void (*run_groups)(const GroupArgs&) = nullptr) {
  return {.name = name,
          .supported = Supported,
          .weight = weight,
          .arithmetic = kW8A8,
          .operand = operand,
          .mr = 1,
          .nr = columns,
          .kr = 4,
          .rank = 40,
          .run = run,
          .ops = &kRowOps,
          .run_groups = run_groups};
}

constexpr MicroKernel kKernels[] = {
    TileOf("cpu.avx512_vnni.s8s8s32.12x32x4", k8, kU8, Run<k8>),
    RowOf("cpu.avx512_vnni.s8s8s32.1x16x4", k8, kU8, 16, RunGemv<k8>),
    RowOf("cpu.avx512_vnni.s8s8s32.1x32x4", k8, kU8, 32, RunWideGemv),
    TileOf("cpu.avx512_vnni.s8s4s32.12x32x4", k4, kS8, Run<k4>),
    RowOf("cpu.avx512_vnni.s8s4s32.1x16x4", k4, kS8, 16, RunGemv<k4>, RunGroups),
    TileOf("cpu.avx512_vnni.s8s2s32.12x32x4", k2, kS8, Run<k2>),
    RowOf("cpu.avx512_vnni.s8s2s32.1x16x4", k2, kS8, 16, RunGemv<k2>),
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
