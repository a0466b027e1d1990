// AVX-512 intrinsics that Debian 12's SIMDe does not have, as plain C++ under the names of the compiler's intrinsics, for
// machines without them. (A SIMDe that has one has a macro of that name.) Rounding is to the nearest even, as MXCSR says at start.
#pragma once

#include <simde/x86/avx512.h>

#include <cmath>
#include <cstdint>

#include "kernels/half.h"

#ifndef _mm512_cvtps_epi32
inline simde__m512i _mm512_cvtps_epi32(simde__m512 x) {
  float from[16];
  int32_t to[16];
  simde_mm512_storeu_ps(from, x);
  for (int i = 0; i < 16; ++i) to[i] = static_cast<int32_t>(std::nearbyint(from[i]));
  return simde_mm512_loadu_si512(to);
}
#endif

#ifndef _mm512_cvtepi32_epi8
inline simde__m128i _mm512_cvtepi32_epi8(simde__m512i x) {
  int32_t from[16];
  int8_t to[16];
  simde_mm512_storeu_si512(from, x);
  for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(from[i]);
  return simde_mm_loadu_si128(to);
}
#endif

#ifndef _mm512_cvtps_ph
inline simde__m256i _mm512_cvtps_ph(simde__m512 x, int) {
  float from[16];
  uint16_t to[16];
  simde_mm512_storeu_ps(from, x);
  for (int i = 0; i < 16; ++i) to[i] = qmatmul::FloatToF16(from[i]);
  return simde_mm256_loadu_si256(reinterpret_cast<const simde__m256i*>(to));
}
#endif

#ifndef _mm512_cvtepi32_ps
inline simde__m512 _mm512_cvtepi32_ps(simde__m512i x) {
  int32_t from[16];
  float to[16];
  simde_mm512_storeu_si512(from, x);
  for (int i = 0; i < 16; ++i) to[i] = static_cast<float>(from[i]);
  return simde_mm512_loadu_ps(to);
}
#endif

#ifndef _mm512_srai_epi32
inline simde__m512i _mm512_srai_epi32(simde__m512i x, unsigned count) {
  int32_t values[16];
  simde_mm512_storeu_si512(values, x);
  for (int32_t& value : values) value >>= count;
  return simde_mm512_loadu_si512(values);
}
#endif
