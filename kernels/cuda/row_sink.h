// The epilogue (docs/numerics.md §2, §3): one row's sums to finished results in its request's output.
//
// Why: every kernel ends here, so there is one place where results are made, and one that is compared with
// the reference.
//
// Thread-safety: a RowSink belongs to one thread, which has some columns of the row. Finish is called by all
// lanes of a quad together, each with a sink of the same row, or each with one of no row.
#pragma once

#include "kernels/cuda/kernel_args.h"
#include "kernels/cuda/simt.h"

namespace qmatmul::cuda {

// To F16 and BF16, to nearest, ties to even (kernels/half.h says why by integers).
QMATMUL_DEVICE uint16_t ToBF16(float value) {
  const uint32_t bits = simt::Bits(value);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
QMATMUL_DEVICE uint16_t ToF16(float value) {
  const uint32_t bits = simt::Bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fff'ffff;
  if (magnitude >= 0x4780'0000) return uint16_t(sign | 0x7c00);  // 2^16 and above
  if (magnitude >= 0x3880'0000)                                  // 2^-14: normal halves
    return uint16_t(sign | ((magnitude - 0x3800'0000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
  if (magnitude <= 0x3300'0000) return uint16_t(sign);  // up to 2^-25, a tie to zero
  const uint32_t shift = 126 - (magnitude >> 23);
  const uint32_t significand = (magnitude & 0x7f'ffff) | 0x80'0000;
  return uint16_t(
      sign | ((significand + (1u << (shift - 1)) - 1 + ((significand >> shift) & 1)) >> shift));
}

QMATMUL_DEVICE float ClampForConversion(float t) {
  t = t > 0x1p30f ? 0x1p30f : t;
  return t < -0x1p30f ? -0x1p30f : t;
}

class RowSink {
 public:
  // A sink of no row.
  QMATMUL_DEVICE RowSink() {}
  QMATMUL_DEVICE RowSink(const ProductArgs& p, int row) : p_(&p), row_(row) {
    output_ = p.outputs[int64_t(p.rows[row].part) * p.outputs_stride];
    state_ = p.states[row];
    const int64_t element = output_.dtype == DataType::kInt8 ? 1
                            : output_.dtype == DataType::kInt32 || output_.dtype == DataType::kF32
                                ? 4
                                : 2;
    data_ = output_.data + (row - output_.first_row) * int64_t(p.weight.n) * element;
  }

  QMATMUL_DEVICE bool any() const { return p_ != nullptr; }
  // The sum of group `group` without the zero point's part.
  QMATMUL_DEVICE int32_t Correct(int32_t acc, int group, int n) const {
    if (state_.correction == 0) return acc;
    const auto sum = uint32_t(p_->weight.sums[int64_t(group) * p_->weight.n + n]);
    return int32_t(uint32_t(acc) - uint32_t(state_.correction) * sum);
  }
  // A group's part of y.
  QMATMUL_DEVICE float Scaled(int32_t acc, int group, int n) const {
    return simt::Multiply(simt::ToFloat(acc), p_->weight.scales[int64_t(group) * p_->weight.n + n]);
  }
  // Counts a (corrected) sum in the row's check.
  QMATMUL_DEVICE void Check(int32_t acc, int n) {
    if (p_->check_vector != nullptr) check_ += uint64_t(int64_t(acc)) * p_->check_vector[n];
  }

  // One group, or an integer output: everything from the corrected sum.
  QMATMUL_DEVICE void PutSum(int n, int32_t acc) {
    Check(acc, n);
    if (!output_.raw) return PutScaled(n, Scaled(acc, 0, n));
    if (output_.dtype == DataType::kInt32) reinterpret_cast<int32_t*>(data_)[n] = acc;
    else PutNarrow(n, acc);
  }

  // `y` has its weight scales.
  QMATMUL_DEVICE void PutScaled(int n, float y) {
    y = simt::Multiply(y, state_.scale);
    if (output_.bias) y = simt::Add(y, p_->weight.bias[n]);
    if (output_.relu) y = y > 0.0f ? y : 0.0f;
    if (output_.dtype == DataType::kF32) {
      reinterpret_cast<float*>(data_)[n] = y;
    } else if (output_.dtype == DataType::kF16 || output_.dtype == DataType::kBF16) {
      const bool bf16 = output_.dtype == DataType::kBF16;
      const uint16_t half = bf16 ? ToBF16(y) : ToF16(y);
      if ((half & 0x7fff) == (bf16 ? 0x7f80 : 0x7c00)) Overflowed(n);
      reinterpret_cast<uint16_t*>(data_)[n] = half;
    } else {
      const float t = ClampForConversion(simt::Multiply(y, output_.inverse_scale));
      PutNarrow(n, simt::RoundToInt(t) + output_.zero_point);
    }
  }

  // Gives what was seen to the row's output and check.
  QMATMUL_DEVICE void Finish() {
    uint32_t count = overflows_, first = first_;
    for (int mask = 1; mask <= 2; mask *= 2) {
      count += simt::WarpXor(count, mask);
      const uint32_t other = simt::WarpXor(first, mask);
      first = other < first ? other : first;
    }
    if (!any()) return;
    if (count > 0 && simt::Thread() % 4 == 0) {
      simt::AtomicAdd(&output_.outcome->overflow_count, uint64_t(count));
      simt::AtomicMin(&output_.outcome->first, uint64_t(row_) << 32 | first);
    }
    if (p_->check_vector != nullptr) simt::AtomicAdd(&p_->row_checks[row_], check_);
  }

 private:
  QMATMUL_DEVICE void Overflowed(int n) {
    ++overflows_;
    first_ = uint32_t(n) < first_ ? uint32_t(n) : first_;
  }
  QMATMUL_DEVICE void PutNarrow(int n, int32_t value) {
    const bool byte = output_.dtype == DataType::kInt8;
    const int32_t low = byte ? -128 : -32768, high = byte ? 127 : 32767;
    const int32_t clamped = value < low ? low : value > high ? high : value;
    if (clamped != value) Overflowed(n);
    const int32_t kept = output_.overflow == Overflow::kWrap ? value : clamped;
    if (byte) reinterpret_cast<int8_t*>(data_)[n] = int8_t(kept);
    else reinterpret_cast<int16_t*>(data_)[n] = int16_t(kept);
  }

  const ProductArgs* p_ = nullptr;
  DeviceOutput output_;
  RowState state_ = {1.0f, 0};
  unsigned char* data_ = nullptr;
  int row_ = 0;
  uint32_t overflows_ = 0;
  uint32_t first_ = ~0u;
  uint64_t check_ = 0;
};

}  // namespace qmatmul::cuda
