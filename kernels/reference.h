// The normative arithmetic (docs/numerics.md, "qmatmul-arith/1") in the plainest way.
//
// Why: every kernel and every device is compared with this code bit for bit, so it must be right by
// reading. It is never optimised, and it includes no kernel code; only its own tests (numbers
// worked out by hand, and a vector set made by numpy) stand above it.
//
// Thread-safety: free functions without shared state. Ownership: views are borrowed for the call.
//
// Invariants
//   1. What it refuses is what numerics §0, §1 and §3 refuse, with the same reason word.
//   2. Float steps are fp32, each rounded to nearest even, never fused (the library is compiled
//   with
//      -ffp-contract=off).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/matmul.h"

namespace qmatmul {

// A weight decoded to one int8 per element, whatever its type and layout were.
struct ReferenceWeight {
  WeightSpec spec;
  std::vector<int8_t> values;  // [k, n] row-major
  std::vector<float> scales;   // spec.scale_count of them, widened
  std::vector<float> bias;     // spec.bias_count of them
};

// Faults: what CheckSpec says, SCALE_RANGE, BIAS_RANGE, INT2_CODE, PADDING_BITS.
Fault DecodeWeight(const WeightView& view, ReferenceWeight* weight);

// What a product leaves behind beside its output.
struct ReferenceDetails {
  Outcome outcome;
  std::vector<float> scales_used;    // dynamic quantization: sa of each row
  std::vector<uint64_t> row_checks;  // c[m], when a check vector was given; W8A8 only
};

// All rows of one request against one weight. `check_vector` is empty or r[n]. A result that
// overflows under Overflow::kError is no fault here: details->outcome names the first, and the
// output is void. Faults: K_MISMATCH, SHAPE, DTYPE, QUANTIZATION_SPEC, SCALE_RANGE,
// ZERO_POINT_RANGE, K_TOO_LARGE, ACTIVATION_RANGE, OUTPUT_SPEC.
Fault ReferenceMatMul(const ReferenceWeight& weight, const ActivationView& activations,
                      Arithmetic arithmetic, const Epilogue& epilogue, const OutputView& output,
                      ReferenceDetails* details, std::span<const uint32_t> check_vector = {});

// The columns of the `count` greatest of one finished row of n results, greatest first, -0 = +0,
// ties to the lower column. 1 <= count <= n.
std::vector<int32_t> ReferenceTopK(const std::byte* row, DataType dtype, int64_t n, int64_t count);

}  // namespace qmatmul
