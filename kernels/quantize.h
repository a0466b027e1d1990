// Quantization outside the hot path: float weights to INT8 columns or INT4 groups, and activations
// to the rows of integers that numerics §4 says a W8A8 product multiplies.
//
// Why: clients prepare weights with it, and a check (verify.h) or a chain needs the integers
// themselves, which a Device keeps to itself. Devices quantize on their own while they pack rows.
//
// Thread-safety: free functions without shared state. Ownership: results own their memory.
//
// Weights are quantized symmetrically: scale = amax / limit, q = rne(w · (limit / amax)), fp32,
// limit 127 (INT8) or 7 (INT4), so |q| <= limit. Where the scale would fall under 2^-47 it is 0 and
// so is every q.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/matmul.h"

namespace qmatmul {

struct QuantizedWeight {
  WeightSpec spec;
  std::vector<std::byte> data;  // as a WeightView wants it
  std::vector<float> scales;    // one per column, or [k / group_size, n]

  WeightView view() const { return {spec, data.data(), scales.data(), nullptr}; }
};

// `values` is the float weight in `layout`: [k, n] for kKN, [n, k] for kNK; the result has the same
// layout. Faults: what CheckSpec says of the shape, SHAPE, WEIGHT_RANGE (a value that is not finite
// or whose scale would exceed 2^47).
Fault QuantizeWeightInt8(std::span<const float> values, Layout layout, int64_t k, int64_t n,
                         QuantizedWeight* weight);
Fault QuantizeWeightInt4(std::span<const float> values, Layout layout, int64_t k, int64_t n,
                         int64_t group_size, QuantizedWeight* weight);

// Activations as a W8A8 product multiplies them.
struct QuantizedActivations {
  int64_t rows = 0;
  int64_t k = 0;
  std::vector<int16_t> values;       // [rows, k]: int8 or uint8 values, zero point not taken off
  std::vector<int32_t> zero_points;  // one per row
  std::vector<float> scales;         // one per row; empty when integers came without scales
};

// `activations` must have passed the checks of numerics §0 on its counts, scales and zero points.
// Faults: SHAPE, ACTIVATION_RANGE.
Fault QuantizeActivations(const ActivationView& activations, QuantizedActivations* quantized);

}  // namespace qmatmul
