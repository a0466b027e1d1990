// The work on one row before and after the product: quantizing and interleaving activations, and
// the epilogue. The bodies are the plain loops of row_ops.inc, compiled once per ISA; all of them
// give the bytes of docs/numerics.md, so which one runs never shows.
#pragma once

#include <cstdint>

#include "kernels/matmul.h"

namespace qmatmul::cpu {

// What the activations are turned into for the product. `bias` is what was added to each int8
// value: the sums are then too large by bias * colsum[n], which the epilogue takes off again.
enum class Operand : uint8_t {
  kS16,  // widened to int16: vpmaddwd, plain C. No bias; uint8 fits as it is.
  kU8,   // uint8: vpdpbusd. int8 values get +128.
  kS8,   // int8: sdot, smmla, tdpbssd, and INT4/INT2 weights. uint8 values get -128.
  kF32,  // float, for W8A32.
};

inline int ElementBytes(Operand operand) {
  return operand == Operand::kF32 ? 4 : operand == Operand::kS16 ? 2 : 1;
}
inline int32_t BiasOf(Operand operand, bool unsigned_source) {
  if (operand == Operand::kU8 && !unsigned_source) return 128;
  if (operand == Operand::kS8 && unsigned_source) return -128;
  return 0;
}

// |a| beyond 2⁵³, infinities and NaNs have magnitude bits above this (numerics §0).
inline constexpr uint32_t kActivationMagnitudeMax = 0x5A000000u;

// A row's values as the interleaver takes them: float for Operand::kF32, else int8 or uint8.
struct SourceRow {
  const void* values;
  bool is_unsigned;
};

// One row of one output, a run of columns of it at a time. The sums become y in two steps:
// `correct` and `scale` (or, for groups and for W8A32, sums that are float already), then `finish`.
struct EpilogueRow {
  int32_t* acc;                // n int32 sums; corrected in place
  const int32_t* column_sums;  // of these columns
  int32_t correction;          // acc[i] -= correction * column_sums[i] + offset, modulo 2³²
  int32_t offset;
  const float* weight_scales;  // one per column; 1 where the weight has none
  float activation_scale;      // 1 when there is none
  const float* bias;           // nullptr: none
  const Epilogue* epilogue;
  float inverse_scale;  // 1 / epilogue->scale, rounded once per request
  void* out;            // of these columns
  int64_t n;
  float* y;                // n floats
  int64_t overflow_count;  // set
  int64_t first_overflow;  // set: column within this run, -1 when none
};

struct RowOps {
  // Widens F32, F16 or BF16 to float.
  void (*widen)(DataType dtype, const void* source, float* row, int64_t k);
  // The largest magnitude's bits (NaN included).
  uint32_t (*magnitude)(const float* row, int64_t k);
  // q = rne(a * inv); |q| <= 127 by construction of inv.
  void (*quantize_dynamic)(const float* row, int64_t k, float inv, int8_t* q);
  // q = clamp(rne(clamp(a * inv, ±2³⁰)) + za, -128, 127).
  void (*quantize_static)(const float* row, int64_t k, float inv, int32_t za, int8_t* q);
  // Σ q[i]: of int8, or of uint8 - 128 when unsigned_source.
  int32_t (*sum)(bool unsigned_source, const void* q, int64_t k);
  // Writes the rows of a strip: element i of row r goes to strip[(i / kr * rows + r) * kr + i % kr]. Pads k to a
  // multiple of kr with zeros.
  void (*interleave)(Operand operand, int kr, const SourceRow* source, int rows, int64_t k,
                     void* strip);
  // Takes correction * column_sums and offset off the sums.
  void (*correct)(EpilogueRow* row);
  // Σ acc[i] * r[i] mod 2⁶⁴ (numerics §7) of corrected sums.
  uint64_t (*check)(const int32_t* acc, const uint32_t* r, int64_t n);
  // y = float(acc) * weight_scales; with `add`, y = y + that (the next group).
  void (*scale)(EpilogueRow* row, bool add);
  // y = sums * weight_scales; with `add`, y = y + that: the float sums of W8A32.
  void (*scale_float)(const float* sums, EpilogueRow* row, bool add);
  // Raw int32 sums to the output's type.
  void (*finish_raw)(EpilogueRow* row);
  // y * activation_scale, bias, activation, and to the output's type; `of_sums`: y as `scale` would make it, first.
  // May overwrite acc.
  void (*finish)(EpilogueRow* row, bool of_sums);
};

}  // namespace qmatmul::cpu
