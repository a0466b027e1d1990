// A unit of a packed weight (kernel_args.h draws it) taken apart.
//
// Thread-safety: pure device functions.
#pragma once

#include "kernels/cuda/kernel_args.h"
#include "kernels/cuda/simt.h"

namespace qmatmul::cuda {

template <DataType kWeight>
struct Unit {
  static constexpr int kBits = kWeight == DataType::kInt8 ? 8 : kWeight == DataType::kInt4 ? 4 : 2;
  static constexpr int kFields = 8 / kBits;  // of a byte
  static constexpr int kK = kUnitBytes * kFields;
  static constexpr int kShift = 8 - kBits;  // sums are too large by two to this power

  // Field e of each byte of `word`, at the top of the byte.
  static QMATMUL_DEVICE uint32_t Field(uint32_t word, int e) {
    if constexpr (kWeight == DataType::kInt8) return word;
    constexpr uint32_t mask = kWeight == DataType::kInt4 ? 0xf0f0f0f0u : 0xc0c0c0c0u;
    return (word << (8 - kBits - kBits * e)) & mask;
  }
};

// Where element k of a row lies: a byte, and the field in it.
struct Place {
  int64_t byte;
  int field;
};
QMATMUL_DEVICE Place PlaceOf(int bits, int32_t k, int32_t group_k, int32_t group_pad) {
  const int32_t padded = k / group_k * group_pad + k % group_k;
  const int32_t unit_k = kUnitBytes * 8 / bits;
  return {int64_t(padded / unit_k) * kUnitBytes + padded % kUnitBytes,
          padded % unit_k / kUnitBytes};
}

QMATMUL_DEVICE int BitsOfWeight(DataType dtype) {
  return dtype == DataType::kInt8 ? 8 : dtype == DataType::kInt4 ? 4 : 2;
}

// Field `field` of a byte whose elements have `bits` bits, as a number.
QMATMUL_DEVICE int32_t FieldValue(int bits, uint32_t byte, int field) {
  return int32_t(int8_t(byte << (8 - bits - bits * field))) >> (8 - bits);
}

}  // namespace qmatmul::cuda
