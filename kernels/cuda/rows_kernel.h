// Activations to operands (docs/numerics.md §0, §1, §4): one block a row.
//
// Integers are taken as they are (UINT8 less 128, which the correction gives back), floats are quantized, or
// widened for W8A32. The groups of K are padded with zeros like the weight's. A row with a value that numerics
// §0 refuses becomes zeros, and says which column was the first.
//
// Thread-safety: device code.
#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/kernel_args.h"

namespace qmatmul::cuda {

class RowsKernel {
 public:
  static constexpr int kThreads = 128;
  static constexpr int kSharedBytes = 2 * kThreads / kWarp * 4;

  static QMATMUL_DEVICE void Run(const RowsArgs& p) {
    const int row = simt::Block().x;
    Row r;
    r.source = p.rows[row];
    r.bytes = p.source + r.source.offset;
    if (p.intermediate) {
      r.source.dtype = DataType::kF32;
      r.source.kind = p.floats ? RowKind::kFloat : RowKind::kDynamic;
      r.source.zero_point = 0;
      r.bytes = p.source + int64_t(row) * p.k * 4;
    }
    RowState state = {r.source.scale, r.source.zero_point};
    if (p.intermediate) state.scale = 1.0f;
    if (r.source.kind == RowKind::kUint8) state.correction -= 128;
    if (r.source.kind >= RowKind::kDynamic) Measure(p, row, &r, &state);
    else if (simt::Thread() == 0) p.refusals[row] = {-1, 0};
    if (simt::Thread() == 0) p.states[row] = state;
    unsigned char* out = p.operands + int64_t(row) * p.row_bytes;
    if (p.floats) PutFloats(p, r, reinterpret_cast<float*>(out));
    else PutIntegers(p, r, out);
  }

 private:
  static constexpr uint32_t kMagnitudeMax = 0x5a000000;  // 2^53
  static constexpr uint32_t kNone = ~0u;

  struct Row {
    RowSource source;
    const unsigned char* bytes = nullptr;
    float inverse = 0;  // what a value is multiplied by
    bool zero = false;  // refused, or of (almost) nothing
  };

  static QMATMUL_DEVICE float WidenF16(uint32_t half) {
    const uint32_t sign = (half & 0x8000) << 16, exponent = half >> 10 & 31;
    uint32_t mantissa = half & 0x3ff;
    if (exponent == 31) return simt::FromBits(sign | 0x7f800000 | mantissa << 13);
    if (exponent != 0) return simt::FromBits(sign | (exponent + 112) << 23 | mantissa << 13);
    if (mantissa == 0) return simt::FromBits(sign);
    const auto shift = uint32_t(simt::LeadingZeros(mantissa) - 21);
    return simt::FromBits(sign | (113 - shift) << 23 | (mantissa << shift & 0x3ff) << 13);
  }

  // Rows of a request start anywhere: no access is wider than a byte.
  static QMATMUL_DEVICE float ValueAt(const Row& r, int k) {
    if (r.source.dtype == DataType::kF32) {
      const unsigned char* b = r.bytes + int64_t(k) * 4;
      return simt::FromBits(b[0] | uint32_t(b[1]) << 8 | uint32_t(b[2]) << 16 |
                            uint32_t(b[3]) << 24);
    }
    const unsigned char* b = r.bytes + int64_t(k) * 2;
    const uint32_t half = b[0] | uint32_t(b[1]) << 8;
    return r.source.dtype == DataType::kF16 ? WidenF16(half) : simt::FromBits(half << 16);
  }

  // The greatest magnitude of a float row, what is refused of it, and its scale.
  static QMATMUL_DEVICE void Measure(const RowsArgs& p, int row, Row* r, RowState* state) {
    uint32_t magnitude = 0, refused = kNone;
    for (int k = simt::Thread(); k < p.k; k += kThreads) {
      const uint32_t bits = simt::Bits(ValueAt(*r, k)) & 0x7fffffff;
      if (bits > kMagnitudeMax && refused == kNone) refused = uint32_t(k);
      magnitude = bits > magnitude ? bits : magnitude;
    }
    auto* shared = reinterpret_cast<uint32_t*>(simt::Shared());
    constexpr int warps = kThreads / kWarp;
    magnitude = simt::WarpMax(magnitude);
    refused = simt::WarpMin(refused);
    if (simt::Thread() % kWarp == 0) {
      shared[simt::Thread() / kWarp] = magnitude;
      shared[warps + simt::Thread() / kWarp] = refused;
    }
    simt::SyncThreads();
    for (int w = 0; w < warps; ++w) {
      magnitude = shared[w] > magnitude ? shared[w] : magnitude;
      refused = shared[warps + w] < refused ? shared[warps + w] : refused;
    }
    if (simt::Thread() == 0) {
      const bool any = refused != kNone;
      p.refusals[row] = {any ? int32_t(refused) : -1,
                         any ? simt::Bits(ValueAt(*r, int(refused))) : 0};
    }
    r->zero = refused != kNone;
    if (r->source.kind == RowKind::kStatic) r->inverse = r->source.inverse;
    if (r->source.kind != RowKind::kDynamic) return;
    const float amax = r->zero ? 0.0f : simt::FromBits(magnitude);
    r->zero = amax < 0x1p-100f;
    state->scale = r->zero ? 0.0f : simt::Divide(amax, 127.0f);
    r->inverse = r->zero ? 0.0f : simt::Divide(127.0f, amax);
  }

  static QMATMUL_DEVICE int32_t IntegerAt(const Row& r, int k) {
    if (r.source.kind == RowKind::kInt8) return static_cast<signed char>(r.bytes[k]);
    if (r.source.kind == RowKind::kUint8) return int32_t(r.bytes[k]) - 128;
    if (r.zero) return 0;
    float t = simt::Multiply(ValueAt(r, k), r.inverse);
    t = t > 0x1p30f ? 0x1p30f : t;
    t = t < -0x1p30f ? -0x1p30f : t;
    const int32_t q = simt::RoundToInt(t) + r.source.zero_point;
    return q < -128 ? -128 : q > 127 ? 127 : q;
  }

  static QMATMUL_DEVICE void PutIntegers(const RowsArgs& p, const Row& r, unsigned char* out) {
    for (int64_t at = int64_t(simt::Thread()) * 4; at < p.row_bytes; at += kThreads * 4) {
      const auto group = int32_t(at / p.group_pad), within = int32_t(at % p.group_pad);
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i) {
        const int k = group * p.group_k + within + i;
        if (within + i < p.group_k && k < p.k) word |= uint32_t(IntegerAt(r, k) & 0xff) << (8 * i);
      }
      *reinterpret_cast<uint32_t*>(out + at) = word;
    }
  }

  static QMATMUL_DEVICE void PutFloats(const RowsArgs& p, const Row& r, float* out) {
    for (int k = simt::Thread(); k < p.k; k += kThreads) out[k] = r.zero ? 0.0f : ValueAt(r, k);
  }
};

}  // namespace qmatmul::cuda
