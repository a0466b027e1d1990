// Products of so many rows that the tile loop takes them in several blocks: the team packs one block while
// its last members are still at the one before, several weights read the same packed rows, and one of them has
// fewer panels than there are members. Built with ThreadSanitizer, this is the proof that nobody reads rows
// that are being packed.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/cpu/cpu_device.h"
#include "tests/support/device_call.h"

namespace qmatmul::cpu {
namespace {

using test::PackOn;
using test::TestActivations;

constexpr int64_t kRows = 700;  // 4 blocks of int16 rows at this K, 8 of float ones
constexpr int64_t kK = 600;
constexpr int64_t kColumns[] = {200, 20, 33};

// Rows [row_begin, row_begin + rows) of all products, written where they belong in `outputs`.
void Multiply(Device* device, std::span<const std::shared_ptr<const PackedWeight>> weights,
              const TestActivations& activations, Arithmetic arithmetic, int64_t row_begin,
              int64_t rows, std::vector<std::vector<float>>* outputs) {
  const ActivationView view = activations.view();
  std::vector<SegmentOutput> segment_outputs(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    segment_outputs[i].epilogue.dtype = DataType::kF32;
    const int64_t row_bytes = weights[i]->spec().n * 4;
    segment_outputs[i].view = {reinterpret_cast<std::byte*>((*outputs)[i].data()), row_bytes};
  }
  RowSegment segment;
  segment.activations = &view;
  segment.row_begin = row_begin;
  segment.rows = rows;
  segment.outputs = segment_outputs;
  const WorkStep step{weights, arithmetic, {}};
  RunReport report;
  const Fault fault = device->Run({{&segment, 1}, {&step, 1}, {}, 0}, &report);
  ASSERT_TRUE(fault.ok()) << fault.message;
  ASSERT_TRUE(segment.fault.ok()) << segment.fault.message;
}

void Check(DataType activation_type, Quantization quantization, Arithmetic arithmetic) {
  CpuDevice team({.threads = 3}, DetectCpuFeatures()), alone({.threads = 1}, DetectCpuFeatures());
  test::Random random(77);
  std::vector<std::shared_ptr<const PackedWeight>> weights;
  std::vector<std::vector<float>> wanted;
  for (const int64_t n : kColumns) {
    const WeightSpec spec =
        test::WithScales(test::MakeSpec(DataType::kInt8, Layout::kNK, kK, n), DataType::kF32, n);
    weights.push_back(PackOn(&team, MakeWeight(spec, test::Fill::kRandom, &random)));
    wanted.emplace_back(size_t(kRows * n));
  }
  TestActivations activations;
  if (activation_type == DataType::kF32)
    activations = test::FloatActivations(DataType::kF32, kRows, kK, test::FloatRows::kOrdinary,
                                         quantization, &random);
  else
    activations =
        test::IntegerActivations(activation_type, kRows, kK, test::Fill::kRandom, &random);
  // A few rows at a time are one block of one thread.
  for (int64_t begin = 0; begin < kRows; begin += 50)
    Multiply(&alone, weights, activations, arithmetic, begin, 50, &wanted);
  for (int round = 0; round < 5; ++round) {
    std::vector<std::vector<float>> results;
    for (const auto& one : wanted) results.emplace_back(one.size());
    Multiply(&team, weights, activations, arithmetic, 0, kRows, &results);
    for (size_t i = 0; i < results.size(); ++i)
      ASSERT_EQ(std::memcmp(results[i].data(), wanted[i].data(), results[i].size() * 4), 0)
          << "weight " << i << ", round " << round;
  }
}

TEST(TileLoop, ManyBlocksOfIntegers) {
  Check(DataType::kInt8, Quantization::kNone, Arithmetic::kW8A8);
}

TEST(TileLoop, ManyBlocksOfQuantizedFloats) {
  Check(DataType::kF32, Quantization::kDynamic, Arithmetic::kW8A8);
}

TEST(TileLoop, ManyBlocksOfFloats) {
  Check(DataType::kF32, Quantization::kNone, Arithmetic::kW8A32);
}

}  // namespace
}  // namespace qmatmul::cpu
