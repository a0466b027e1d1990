// Chains (numerics §6): byte-equal to separate calls, whatever the weights, arithmetics, tiles and
// neighbours; and what is said of an intermediate result that the next step cannot take.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/devices.h"
#include "tests/support/device_call.h"
#include "tests/support/product_case.h"
#include "tests/support/test_devices.h"

namespace qmatmul {
namespace {

using test::Fill;
using test::FloatRows;
using test::ProductCase;
using test::ProductRequest;
using test::Random;
using test::TestActivations;
using test::TestWeight;

constexpr DataType kOutputTypes[] = {DataType::kInt32, DataType::kInt16, DataType::kInt8,
                                     DataType::kF32,   DataType::kF16,   DataType::kBF16};
constexpr Arithmetic kArithmetics[] = {Arithmetic::kW8A8, Arithmetic::kW8A32};

const std::vector<std::unique_ptr<Device>>& Devices() {
  static const auto devices =
      test::OpenTestDevices({.threads = 3, .team_spin_us_max = 0, .disabled_kernels = ""});
  return devices;
}

TestWeight Weight(DataType dtype, int64_t k, int64_t n, Random* random) {
  WeightSpec spec = test::MakeSpec(dtype, random->Chance(50) ? Layout::kKN : Layout::kNK, k, n,
                                   k % 2 == 0 ? k / 2 : k);
  if (dtype != DataType::kInt4) spec = test::WithScales(spec, DataType::kF32, n);
  return MakeWeight(random->Chance(70) ? test::WithBias(spec) : spec, Fill::kRandom, random);
}

// A chain through widths[0] × widths[1], widths[1] × widths[2], … of the given types and arithmetics.
ProductCase Chain(std::string name, const std::vector<int64_t>& widths,
                  const std::vector<DataType>& types, const std::vector<Arithmetic>& arithmetics,
                  Random* random) {
  ProductCase product{.name = std::move(name), .weights = {}, .requests = {}};
  product.weights = {Weight(types[0], widths[0], widths[1], random)};
  product.arithmetic = arithmetics[0];
  for (size_t s = 1; s < types.size(); s++)
    product.then.push_back({Weight(types[s], widths[s], widths[s + 1], random), arithmetics[s]});
  return product;
}

// An epilogue that the last weight and its arithmetic allow.
Epilogue LastEpilogue(const ProductCase& product, DataType dtype, Random* random) {
  const test::ProductStep& last = product.then.back();
  Epilogue e{.dtype = dtype};
  e.scaled = dtype == DataType::kInt8 || (dtype == DataType::kInt16 && random->Chance(50));
  e.scale = 40.0f;
  if (e.raw() && (last.arithmetic == Arithmetic::kW8A32 || last.weight.spec.group_wise())) {
    e.scaled = dtype == DataType::kInt16;
    if (dtype == DataType::kInt32) e.dtype = DataType::kF32;
  }
  e.skip_bias = e.raw() || random->Chance(20);
  return e;
}

ProductRequest Request(const ProductCase& product, TestActivations activations, DataType dtype,
                       Random* random) {
  ProductRequest request{.activations = std::move(activations),
                         .epilogues = {LastEpilogue(product, dtype, random)}};
  for (size_t s = 0; s < product.then.size(); s++) {
    Epilogue e{.dtype = DataType::kF32};
    e.activation = random->Chance(60) ? Activation::kRelu : Activation::kNone;
    e.skip_bias = random->Chance(30);
    request.intermediates.push_back(e);
  }
  return request;
}

// Activations that the first step takes.
TestActivations Activations(const ProductCase& product, int64_t rows, Random* random) {
  const int64_t k = product.weights[0].spec.k;
  if (product.arithmetic == Arithmetic::kW8A32)
    return FloatActivations(DataType::kF16, rows, k, FloatRows::kOrdinary, Quantization::kNone,
                            random);
  if (random->Chance(50))
    return FloatActivations(DataType::kF32, rows, k, FloatRows::kCorners, Quantization::kDynamic,
                            random);
  TestActivations a = IntegerActivations(DataType::kUint8, rows, k, Fill::kRandom, random);
  a.scales = {0.02f};
  a.zero_points = {117};
  return a;
}

TEST(Chain, TwoStepsOfEveryWeightTypeArithmeticAndOutput) {
  Random random(51);
  const std::array<DataType, 3> types = {DataType::kInt8, DataType::kInt4, DataType::kInt2};
  for (const auto& device : Devices()) {
    for (DataType first : types) {
      for (DataType second : types) {
        for (Arithmetic a : kArithmetics) {
          for (Arithmetic b : kArithmetics) {
            ProductCase product =
                Chain("two steps", {40, 70, 33}, {first, second}, {a, b}, &random);
            for (DataType dtype : kOutputTypes)
              product.requests.push_back(
                  Request(product, Activations(product, 5, &random), dtype, &random));
            CheckProduct(device.get(), "", product);
          }
        }
      }
    }
  }
}

TEST(Chain, ThreeStepsMixed) {
  Random random(52);
  for (const auto& device : Devices()) {
    for (int bits = 0; bits < 8; bits++) {
      std::vector<Arithmetic> arithmetics;
      for (int s = 0; s < 3; s++) arithmetics.push_back(kArithmetics[bits >> s & 1]);
      ProductCase product =
          Chain("three steps", {64, 100, 36, 51},
                {DataType::kInt8, DataType::kInt2, DataType::kInt4}, arithmetics, &random);
      for (DataType dtype : kOutputTypes)
        product.requests.push_back(
            Request(product, Activations(product, 3, &random), dtype, &random));
      CheckProduct(device.get(), "", product);
    }
  }
}

TEST(Chain, SixteenSteps) {
  Random random(53);
  const std::vector<int64_t> widths(kChainStepsMax + 1, 24);
  for (const auto& device : Devices()) {
    ProductCase product = Chain("sixteen", widths, std::vector(kChainStepsMax, DataType::kInt8),
                                std::vector(kChainStepsMax, Arithmetic::kW8A8), &random);
    product.requests = {
        Request(product, Activations(product, 2, &random), DataType::kF32, &random)};
    CheckProduct(device.get(), "", product);
  }
}

// Segments in any order, rows that are nobody's, row checks of the last step, top_k at the end.
TEST(Chain, SegmentsOfManyRequestsWithTopK) {
  Random random(54);
  for (const auto& device : Devices()) {
    ProductCase product = Chain("segments", {30, 90, 120}, {DataType::kInt8, DataType::kInt8},
                                {Arithmetic::kW8A8, Arithmetic::kW8A8}, &random);
    product.row_checks = true;
    for (DataType dtype : kOutputTypes) {
      for (int64_t top_k : {0, 7, 120}) {
        ProductRequest request = Request(product, Activations(product, 9, &random), dtype, &random);
        if (top_k != 7) request.epilogues[0].overflow = Overflow::kWrap;
        request.segments = {{3, 4}, {0, 2}};
        request.top_k = {top_k};
        request.row_gap_bytes = top_k == 0 ? 3 : 0;
        product.requests.push_back(std::move(request));
      }
    }
    CheckProduct(device.get(), "", product);
  }
}

// Intermediate results of 300 rows of 40,000 are 48 MiB: six tiles and more.
TEST(Chain, RowsInTiles) {
  Random random(55);
  for (const auto& device : Devices()) {
    ProductCase product = Chain("tiles", {3, 40'000, 5}, {DataType::kInt8, DataType::kInt8},
                                {Arithmetic::kW8A8, Arithmetic::kW8A8}, &random);
    for (int64_t rows : {70, 0, 90, 140}) {
      ProductRequest request =
          Request(product, Activations(product, rows, &random), DataType::kInt16, &random);
      if (rows == 140) request.segments = {{60, 80}, {1, 50}};
      product.requests.push_back(std::move(request));
    }
    CheckProduct(device.get(), "", product);
  }
}

TEST(Chain, NoRows) {
  Random random(56);
  for (const auto& device : Devices()) {
    ProductCase product = Chain("no rows", {8, 8, 8}, {DataType::kInt8, DataType::kInt8},
                                {Arithmetic::kW8A8, Arithmetic::kW8A8}, &random);
    product.requests = {
        Request(product, Activations(product, 0, &random), DataType::kF32, &random)};
    CheckProduct(device.get(), "", product);
  }
}

// One request's chain of INT8 weights of ones, from k = 1 to n = 1: y grows by the scales and the width.
struct ScaleChain {
  std::vector<TestWeight> weights;
  std::vector<float> input;

  // The segment's fault after a Run beside another request whose rows are all 1.
  Fault Run(Device* device, std::vector<float>* neighbour) const {
    std::vector<std::shared_ptr<const PackedWeight>> packed;
    for (const TestWeight& weight : weights) packed.push_back(test::PackOn(device, weight));
    std::vector<WorkStep> steps;
    for (const auto& weight : packed) steps.push_back({{&weight, 1}, Arithmetic::kW8A8, {}});
    const std::vector<Epilogue> intermediates(weights.size() - 1, {.dtype = DataType::kF32});
    const std::vector<float> ones = {1, 1};
    const auto activations_of = [](const std::vector<float>& values) {
      return test::FloatActivationsOf(DataType::kF32, static_cast<int64_t>(values.size()), 1,
                                      values, Quantization::kDynamic);
    };
    const TestActivations mine = activations_of(input), other = activations_of(ones);
    const std::array<ActivationView, 2> views = {mine.view(), other.view()};
    std::vector<float> results(input.size());
    neighbour->assign(2, 0.0f);
    std::array<SegmentOutput, 2> outputs;
    std::array<RowSegment, 2> segments;
    for (size_t i = 0; i < 2; i++) {
      outputs[i].epilogue.dtype = DataType::kF32;
      outputs[i].view = {reinterpret_cast<std::byte*>(i == 0 ? results.data() : neighbour->data()),
                         4};
      segments[i].activations = &views[i];
      segments[i].rows = views[i].rows;
      segments[i].outputs = {&outputs[i], 1};
      segments[i].intermediates = intermediates;
    }
    RunReport report;
    const Fault fault = device->Run({segments, steps, "", 0}, &report);
    EXPECT_TRUE(fault.ok()) << fault.message;
    EXPECT_TRUE(segments[1].fault.ok()) << segments[1].fault.message;
    return segments[0].fault;
  }
};

// All ones, of one scale.
TestWeight Times(float scale, int64_t k = 1, int64_t n = 1) {
  TestWeight weight = test::Int8Weight(Layout::kKN, k, n, std::vector<int8_t>(size_t(k * n), 1));
  weight.spec = test::WithScales(weight.spec, DataType::kF32, 1);
  weight.scales.resize(4);
  std::memcpy(weight.scales.data(), &scale, 4);
  return weight;
}

// Quantization of a single value v gives 127 · (v / 127): the bound is met from below only by chance of
// rounding, so the inputs keep away from it by more than that.
TEST(Chain, IntermediateBeyondRangeNamesStepRowAndValue) {
  std::vector<float> neighbour;
  for (const auto& device : Devices()) {
    // Step 1 gives 2^50 · input, step 2 that · 1: rows of 2^3 · 1.5 are too much for step 2 already.
    const ScaleChain second{{Times(0x1p46f), Times(1), Times(1)}, {1, 2, 0x1.8p7f, 0x1.8p8f}};
    Fault fault = second.Run(device.get(), &neighbour);
    EXPECT_EQ(fault.kind, FaultKind::kInvalidArgument);
    EXPECT_EQ(fault.reason, "ACTIVATION_RANGE");
    EXPECT_NE(fault.message.find("the result of step 1 at [2, 0] is 1.35"), std::string::npos)
        << fault.message;
    EXPECT_NE(fault.message.find("which step 2 of 3 cannot take"), std::string::npos)
        << fault.message;
    EXPECT_NEAR(neighbour[1], 0x1p46f, 0x1p30f);

    // Row 3 is refused by step 2, row 1 only by step 3: the lower row is named.
    const ScaleChain third{{Times(0x1p20f), Times(0x1p20f), Times(0x1p-40f)},
                           {1, 0x1p15f, 1, 0x1p40f}};
    fault = third.Run(device.get(), &neighbour);
    EXPECT_NE(fault.message.find("the result of step 2 at [1, 0]"), std::string::npos)
        << fault.message;
    EXPECT_NE(fault.message.find("which step 3 of 3"), std::string::npos) << fault.message;
    EXPECT_NEAR(neighbour[0], 1.0f, 1e-5f);

    // The input's own fault comes first: separate calls would not have reached the second.
    const ScaleChain own{{Times(0x1p46f), Times(1)}, {0x1.8p10f, INFINITY}};
    fault = own.Run(device.get(), &neighbour);
    EXPECT_NE(fault.message.find("activations row 1"), std::string::npos) << fault.message;

    // Whatever the tiles: a row of this takes 80,004 bytes of scratch, so 300 are three tiles.
    ScaleChain tiles{{Times(4, 1, 20'000), Times(1, 20'000, 1), Times(1)},
                     std::vector<float>(300, 1.0f)};
    tiles.input[0] = 0x1p52f;
    tiles.input.back() = INFINITY;
    fault = tiles.Run(device.get(), &neighbour);
    EXPECT_NE(fault.message.find("activations row 299"), std::string::npos) << fault.message;

    // The last result may be as large as it likes.
    const ScaleChain last{{Times(0x1p5f), Times(0x1p46f)}, {0x1p30f}};
    EXPECT_TRUE(last.Run(device.get(), &neighbour).ok());
  }
}

}  // namespace
}  // namespace qmatmul
