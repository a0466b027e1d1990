// One product through the reference, with its output in a plain vector.
//
// Thread-safety: values.
#pragma once

#include <cstring>
#include <vector>

#include "kernels/reference.h"
#include "tests/support/test_tensors.h"

namespace qmatmul::test {

struct ReferenceResult {
  Fault fault;
  ReferenceDetails details;
  std::vector<std::byte> bytes;  // dense [rows, n]

  template <typename T>
  std::vector<T> As() const {
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
    return values;
  }
};

inline ReferenceResult Multiply(const ReferenceWeight& weight, const ActivationView& activations,
                                Arithmetic arithmetic, const Epilogue& epilogue,
                                std::span<const uint32_t> check_vector = {}) {
  ReferenceResult result;
  const int64_t row_bytes = weight.spec.n * BitsOf(epilogue.dtype) / 8;
  result.bytes.resize(static_cast<size_t>(row_bytes * activations.rows));
  result.fault = ReferenceMatMul(weight, activations, arithmetic, epilogue,
                                 {result.bytes.data(), row_bytes}, &result.details, check_vector);
  return result;
}

inline ReferenceResult Multiply(const TestWeight& weight, const TestActivations& activations,
                                const Epilogue& epilogue, Arithmetic arithmetic = Arithmetic::kW8A8,
                                std::span<const uint32_t> check_vector = {}) {
  ReferenceWeight decoded;
  if (Fault fault = DecodeWeight(weight.view(), &decoded); !fault.ok()) return {fault, {}, {}};
  return Multiply(decoded, activations.view(), arithmetic, epilogue, check_vector);
}

}  // namespace qmatmul::test
