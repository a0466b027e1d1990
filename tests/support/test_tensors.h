// Weights and activations for tests: any type, layout and scale form, with ordinary or extreme
// values.
//
// Thread-safety: values; the views they give are good while they live and do not move.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/matmul.h"
#include "tests/support/guarded_buffer.h"
#include "tests/support/random.h"

namespace qmatmul::test {

// What integers hold. Extremes find saturating instructions and lost carries.
enum class Fill : uint8_t { kRandom, kLowest, kHighest, kMinusHighest, kAlternating, kSmall };

struct TestWeight {
  WeightSpec spec;
  std::vector<std::byte> data;
  std::vector<std::byte> scales;
  std::vector<float> bias;

  WeightView view() const { return {spec, data.data(), scales.data(), bias.data()}; }
  // Data, scales, bias: the bytes that a Packer takes.
  std::vector<std::byte> upload() const;
};

// A spec that CheckSpec accepts; `scale_count` as in WeightSpec. INT4 without a group size is
// per-column.
WeightSpec MakeSpec(DataType dtype, Layout layout, int64_t k, int64_t n, int64_t group_size = 0);
WeightSpec WithScales(WeightSpec spec, DataType scale_dtype, int64_t scale_count);
WeightSpec WithBias(WeightSpec spec);

TestWeight MakeWeight(const WeightSpec& spec, Fill fill, Random* random);
// An INT8 weight of given values, in the order of `layout`.
TestWeight Int8Weight(Layout layout, int64_t k, int64_t n, const std::vector<int8_t>& values);

struct TestActivations {
  DataType dtype = DataType::kUnspecified;
  int64_t rows = 0;
  int64_t k = 0;
  Quantization quantization = Quantization::kNone;
  std::vector<float> scales;
  std::vector<int32_t> zero_points;
  // Each piece lies in guarded memory of its own: reading past one faults. Copies share it.
  std::vector<std::shared_ptr<GuardedBuffer>> memory;
  std::vector<ByteSpan> pieces;

  ActivationView view() const {
    return {dtype, rows, k, pieces, quantization, scales, zero_points};
  }
  // All bytes in one piece of their own.
  std::vector<std::byte> bytes() const;
  // Lays out `data` in pieces that end at the given offsets (ascending) and at the end.
  void SetBytes(const std::vector<std::byte>& data, const std::vector<size_t>& cuts = {});
};

// What floats hold: ordinary rows, or one row of each kind in turn: zeros, -0, denormals, rows
// under 2^-100, ties of the quantization, huge rows up to 2^53.
enum class FloatRows : uint8_t { kOrdinary, kCorners };

TestActivations IntegerActivations(DataType dtype, int64_t rows, int64_t k, Fill fill,
                                   Random* random);
TestActivations FloatActivations(DataType dtype, int64_t rows, int64_t k, FloatRows kind,
                                 Quantization quantization, Random* random);
// Known float values, in one piece; F16 and BF16 are rounded.
TestActivations FloatActivationsOf(DataType dtype, int64_t rows, int64_t k,
                                   const std::vector<float>& values, Quantization quantization);
// Splits the bytes at up to `count` random places, in the middle of elements too.
void SplitAtRandom(TestActivations* activations, int count, Random* random);

// One scale as `dtype` holds it, widened again: what the arithmetic will see.
float RoundTo(DataType dtype, float value);
// A usable scale, 2^-9 … 1, either sign.
float OrdinaryScale(Random* random);

}  // namespace qmatmul::test
