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
#endif

namespace qmatmul::cpu {
namespace {

#include "kernels/cpu/row_ops.inc"

inline __m512i Broadcast(const uint8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  return _mm512_set1_epi32(four);
}

inline void Store(int32_t* c, __m512i sums, bool accumulate) {
  if (accumulate) sums = _mm512_add_epi32(sums, _mm512_loadu_si512(c));
  _mm512_storeu_si512(c, sums);
}

template <int kRows, int kPanels>
inline void Tile(const TileArgs& t) {
  __m512i c[kRows][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) c[r][p] = _mm512_setzero_si512();
  const auto* a = static_cast<const uint8_t*>(t.strip);
  const int8_t* b = t.panel;
  const int8_t* ahead = t.prefetch;
  for (int64_t step = 0; step < t.k_steps; ++step) {
    __m512i line[kPanels];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      line[p] = _mm512_load_si512(b + p * t.panel_stride);
      _mm_prefetch(ahead + p * t.panel_stride, _MM_HINT_T0);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = Broadcast(a + 4 * r);
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) c[r][p] = _mm512_dpbusd_epi32(c[r][p], x, line[p]);
    }
    a += 4 * kRows;
    b += 64;
    ahead += 64;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) Store(t.c + r * t.ldc + 16 * p, c[r][p], t.accumulate);
}

template <int kPanels>
void RunRows(const TileArgs& t) {
  switch (t.rows) {
    case 1: return Tile<1, kPanels>(t);
    case 2: return Tile<2, kPanels>(t);
    case 3: return Tile<3, kPanels>(t);
    case 4: return Tile<4, kPanels>(t);
    case 5: return Tile<5, kPanels>(t);
    case 6: return Tile<6, kPanels>(t);
    case 7: return Tile<7, kPanels>(t);
    default: return Tile<8, kPanels>(t);
  }
}

void Run(const TileArgs& t) { t.panels == 2 ? RunRows<2>(t) : RunRows<1>(t); }

// One row: four independent accumulators hide vpdpbusd's latency while the panel streams in.
void RunGemv(const TileArgs& t) {
  const auto* a = static_cast<const uint8_t*>(t.strip);
  __m512i c[4];
  for (auto& sums : c) sums = _mm512_setzero_si512();
  int64_t step = 0;
  for (; step + 4 <= t.k_steps; step += 4) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      _mm_prefetch(t.prefetch + 64 * (step + u), _MM_HINT_T0);
      c[u] = _mm512_dpbusd_epi32(c[u], Broadcast(a + 4 * (step + u)),
                                 _mm512_load_si512(t.panel + 64 * (step + u)));
    }
  }
  for (; step < t.k_steps; ++step)
    c[0] =
        _mm512_dpbusd_epi32(c[0], Broadcast(a + 4 * step), _mm512_load_si512(t.panel + 64 * step));
  Store(t.c, _mm512_add_epi32(_mm512_add_epi32(c[0], c[1]), _mm512_add_epi32(c[2], c[3])),
        t.accumulate);
}

#ifdef QMATMUL_EMULATED
bool Supported(const CpuFeatures&) { return true; }
#else
bool Supported(const CpuFeatures& f) { return f.avx512_vnni; }
#endif

}  // namespace

const MicroKernel kAvx512Vnni = {"cpu.avx512_vnni.s8s8s32.8x32x4",
                                 Supported,
                                 8,
                                 32,
                                 4,
                                 40,
                                 Operand::kU8,
                                 kLayoutN16K4,
                                 Run,
                                 &kRowOps};
const MicroKernel kAvx512VnniGemv = {"cpu.avx512_vnni.s8s8s32.1x16x4",
                                     Supported,
                                     1,
                                     16,
                                     4,
                                     40,
                                     Operand::kU8,
                                     kLayoutN16K4,
                                     RunGemv,
                                     &kRowOps};

}  // namespace qmatmul::cpu

#ifndef QMATMUL_EMULATED
#pragma GCC pop_options
#endif
