// Plain weights to packed ones, back, and the sums of their columns.
//
// Thread-safety: device code. Launches that pack parts of one weight may follow each other in any cut of its
// bytes: each element goes to its place by itself.
#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/weight_unit.h"

namespace qmatmul::cuda {

inline constexpr int kPackThreads = 128;

// The raw bytes were checked by the host: no INT2 code 3, no bits past the end of a line.
class PackKernel {
 public:
  static constexpr int kThreads = kPackThreads, kSharedBytes = 0;

  static QMATMUL_DEVICE void Run(const PackArgs& p) {
    const int64_t i = int64_t(simt::Block().x) * kThreads + simt::Thread();
    if (i >= p.bytes) return;
    const int bits = BitsOfWeight(p.dtype), fields = 8 / bits;
    const int64_t line = (p.first_byte + i) / p.line_bytes, at = (p.first_byte + i) % p.line_bytes;
    const bool kn = p.layout == Layout::kKN;
    const int64_t length = kn ? p.n : p.k;
    for (int e = 0; e < fields; ++e) {
      const int64_t position = at * fields + e;
      if (position >= length) return;
      const int32_t code = p.raw[i] >> (bits * e) & ((1 << bits) - 1);
      Put(p, bits, int32_t(kn ? line : position), kn ? position : line, code);
    }
  }

 private:
  static QMATMUL_DEVICE void Put(const PackArgs& p, int bits, int32_t k, int64_t n, int32_t code) {
    const Place place = PlaceOf(bits, k, p.group_k, p.group_pad);
    const int64_t byte = n * p.row_bytes + place.byte;
    if (bits == 8) {
      p.data[byte] = static_cast<unsigned char>(code);
      return;
    }
    const uint32_t value = uint32_t(code - (bits == 4 ? 8 : 1)) & ((1u << bits) - 1);
    auto* words = reinterpret_cast<uint32_t*>(p.data);
    simt::AtomicOr(&words[byte / 4], value << (byte % 4 * 8 + place.field * bits));
  }
};

// A warp for each column and group.
class SumsKernel {
 public:
  static constexpr int kThreads = kPackThreads, kSharedBytes = 0;

  static QMATMUL_DEVICE void Run(const SumsArgs& p) {
    const int64_t warp = int64_t(simt::Block().x) * (kThreads / kWarp) + simt::Thread() / kWarp;
    if (warp >= int64_t(p.groups) * p.n) return;
    const int64_t group = warp / p.n, n = warp % p.n;
    const int bits = BitsOfWeight(p.dtype);
    const int64_t group_bytes = int64_t(p.group_pad) * bits / 8;
    const unsigned char* data = p.data + n * p.row_bytes + group * group_bytes;
    int32_t sum = 0;
    for (int64_t i = simt::Thread() % kWarp; i < group_bytes; i += kWarp)
      for (int e = 0; e < 8 / bits; ++e) sum += FieldValue(bits, data[i], e);
    sum = simt::WarpSum(sum);
    if (simt::Thread() % kWarp != 0) return;
    p.sums[warp] = sum;
    if (p.totals != nullptr) simt::AtomicAdd(&p.totals[n], sum);
  }
};

class UnpackKernel {
 public:
  static constexpr int kThreads = kPackThreads, kSharedBytes = 0;

  static QMATMUL_DEVICE void Run(const UnpackArgs& p) {
    const int64_t i = int64_t(simt::Block().x) * kThreads + simt::Thread();
    if (i >= int64_t(p.k_end - p.k_begin) * p.n) return;
    const int bits = BitsOfWeight(p.dtype);
    const Place place = PlaceOf(bits, p.k_begin + int32_t(i / p.n), p.group_k, p.group_pad);
    const uint32_t byte = p.data[i % p.n * p.row_bytes + place.byte];
    p.out[i] = int8_t(FieldValue(bits, byte, place.field));
  }
};

}  // namespace qmatmul::cuda
