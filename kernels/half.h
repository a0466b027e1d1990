// F16 and BF16 to and from fp32, by integer code.
//
// Why: vcvtneps2bf16 flushes denormals and a compiler's half type may not exist; integer code gives
// the same bits on every machine, under any MXCSR. Rounding is to nearest, ties to even; a value
// beyond the type's range becomes ±inf (65520 is the first for F16). Denormals are kept; a NaN
// stays a quiet NaN.
//
// Thread-safety: pure functions.
#pragma once

#include <bit>
#include <cstdint>

namespace qmatmul {

inline uint16_t FloatToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fff'ffff) > 0x7f80'0000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  // Adding just under a half, and the kept part's lowest bit, carries exactly when rne rounds up.
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float BF16ToFloat(uint16_t half) { return std::bit_cast<float>(uint32_t{half} << 16); }

inline uint16_t FloatToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fff'ffff;
  if (magnitude >= 0x4780'0000) {  // 2^16 and above, infinity, NaN
    return static_cast<uint16_t>(sign | (magnitude > 0x7f80'0000 ? 0x7e00 : 0x7c00));
  }
  if (magnitude >= 0x3880'0000) {  // 2^-14: normal halves; a carry may reach infinity, as it should
    return static_cast<uint16_t>(
        sign | ((magnitude - 0x3800'0000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
  }
  if (magnitude <= 0x3300'0000) return static_cast<uint16_t>(sign);  // up to 2^-25, a tie to zero
  // Denormal halves: the 24-bit significand in units of 2^-24.
  const uint32_t shift = 126 - (magnitude >> 23);
  const uint32_t significand = (magnitude & 0x7f'ffff) | 0x80'0000;
  const uint32_t kept = significand >> shift;
  return static_cast<uint16_t>(
      sign | ((significand + (uint32_t{1} << (shift - 1)) - 1 + (kept & 1)) >> shift));
}

inline float F16ToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f80'0000 | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  if (mantissa == 0) return std::bit_cast<float>(sign);
  // A denormal half is a normal float: bring its highest bit to the hidden place.
  const uint32_t shift = static_cast<uint32_t>(std::countl_zero(mantissa)) - 21;
  return std::bit_cast<float>(sign | ((113 - shift) << 23) | (((mantissa << shift) & 0x3ff) << 13));
}

}  // namespace qmatmul
