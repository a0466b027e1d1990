// Every kernel of every device against the reference, bit for bit, through the Device door.
//
// A kernel is one row of Device::Kernels(); a new one is tested without an edit here. What this
// machine cannot run is SKIPPED with its reason. The same file is built once more against the
// library whose missing instruction sets are emulated.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstring>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/devices.h"
#include "tests/support/product_case.h"
#include "tests/support/test_devices.h"

namespace qmatmul {
namespace {

using test::CheckProduct;
using test::Fill;
using test::FloatRows;
using test::ProductCase;
using test::ProductRequest;
using test::Random;
using test::TestActivations;
using test::TestWeight;

struct Row {
  Device* device;
  KernelInfo kernel;
};

// What googletest prints and ctest lists.
void PrintTo(const Row& row, std::ostream* out) { *out << row.kernel.name; }

// Opened once: three members, so that columns are split unevenly.
const std::vector<std::unique_ptr<Device>>& Devices() {
  static const auto devices =
      test::OpenTestDevices({.threads = 3, .team_spin_us_max = 0, .disabled_kernels = ""});
  return devices;
}

std::vector<Row> Rows() {
  std::vector<Row> rows;
  for (const auto& device : Devices())
    for (const KernelInfo& kernel : device->Kernels()) rows.push_back({device.get(), kernel});
  return rows;
}

constexpr Layout kLayouts[] = {Layout::kKN, Layout::kNK};
constexpr DataType kScaleTypes[] = {DataType::kF32, DataType::kF16, DataType::kBF16};
constexpr DataType kFloatTypes[] = {DataType::kF32, DataType::kF16, DataType::kBF16};
constexpr DataType kOutputTypes[] = {DataType::kInt32, DataType::kInt16, DataType::kInt8,
                                     DataType::kF32,   DataType::kF16,   DataType::kBF16};
constexpr Overflow kOverflows[] = {Overflow::kSaturate, Overflow::kWrap, Overflow::kError};

class Conformance : public testing::TestWithParam<Row> {
 protected:
  void SetUp() override {
    const KernelInfo& kernel = GetParam().kernel;
    if (!kernel.supported || kernel.disabled) GTEST_SKIP() << kernel.name << ": " << kernel.reason;
  }

  void Check(const ProductCase& product) {
    CheckProduct(GetParam().device, GetParam().kernel.name, product);
  }
  Arithmetic arithmetic() const { return GetParam().kernel.arithmetic; }
  bool weight_only() const { return arithmetic() == Arithmetic::kW8A32; }
  DataType weight_type() const { return GetParam().kernel.weight; }

  // A weight of the kernel's type; INT4 in groups when `groups` > 1 divides k.
  TestWeight Weight(int64_t k, int64_t n, Fill fill, int64_t groups = 1) {
    const Layout layout = random_.Pick<Layout>(kLayouts);
    WeightSpec spec = test::MakeSpec(weight_type(), layout, k, n, k % groups == 0 ? k / groups : k);
    if (weight_type() != DataType::kInt4) {
      const std::array<int64_t, 3> counts = {0, 1, n};
      spec = test::WithScales(spec, random_.Pick<DataType>(kScaleTypes),
                              random_.Pick<int64_t>(counts));
    } else {
      spec.scale_dtype = random_.Pick<DataType>(kScaleTypes);
    }
    if (random_.Chance(50)) spec = test::WithBias(spec);
    return MakeWeight(spec, fill, &random_);
  }

  // Activations of a random type that the arithmetic and K allow.
  TestActivations Activations(int64_t rows, int64_t k, Fill fill = Fill::kRandom) {
    if (weight_only())
      return FloatActivations(random_.Pick<DataType>(kFloatTypes), rows, k, FloatRows::kOrdinary,
                              Quantization::kNone, &random_);
    const bool wide_ok = k <= kInnerMaxWide;
    switch (random_.Between(0, wide_ok ? 4 : 1)) {
      case 0: return IntegerActivations(DataType::kInt8, rows, k, fill, &random_);
      case 1:
        return FloatActivations(random_.Pick<DataType>(kFloatTypes), rows, k, FloatRows::kOrdinary,
                                Quantization::kDynamic, &random_);
      case 2: return WithZeroPoints(IntegerActivations(DataType::kUint8, rows, k, fill, &random_));
      case 3: return WithZeroPoints(IntegerActivations(DataType::kInt8, rows, k, fill, &random_));
      default: {
        TestActivations a = FloatActivations(random_.Pick<DataType>(kFloatTypes), rows, k,
                                             FloatRows::kOrdinary, Quantization::kStatic, &random_);
        a.scales.assign(random_.Chance(50) ? static_cast<size_t>(rows) : 1, 0.0f);
        for (float& scale : a.scales) scale = test::OrdinaryScale(&random_);
        if (a.scales.empty()) a.scales = {0.25f};
        return WithZeroPoints(std::move(a));
      }
    }
  }

  // None, one for the tensor, or one per row; the ends of the range come often.
  TestActivations WithZeroPoints(TestActivations a) {
    const int64_t low = a.dtype == DataType::kUint8 ? 0 : -128;
    const std::array<size_t, 3> counts = {0, 1, static_cast<size_t>(a.rows)};
    a.zero_points.resize(random_.Pick<size_t>(counts));
    for (int32_t& z : a.zero_points) {
      const int64_t end = random_.Chance(50) ? low : low + 255;
      z = static_cast<int32_t>(random_.Chance(60) ? end : random_.Between(low, low + 255));
    }
    if (IsFloat(a.dtype) || random_.Chance(40)) return a;
    a.scales.assign(random_.Chance(50) ? static_cast<size_t>(a.rows) : 1, 0.0f);
    for (float& scale : a.scales) scale = test::OrdinaryScale(&random_);
    return a;
  }

  // An epilogue that numerics §3 allows for this weight and arithmetic.
  Epilogue AnyEpilogue(const WeightSpec& spec) {
    Epilogue e;
    e.dtype = random_.Pick<DataType>(kOutputTypes);
    e.overflow = random_.Pick<Overflow>(kOverflows);
    e.scaled = (e.dtype == DataType::kInt8 || e.dtype == DataType::kInt16) && random_.Chance(60);
    const bool raw_ok = !spec.group_wise() && !weight_only();
    if (e.raw() && !raw_ok) {
      if (e.dtype == DataType::kInt32) e.dtype = DataType::kF32;
      else e.scaled = true;
    }
    if (e.scaled) {
      const int64_t limit = e.dtype == DataType::kInt8 ? 128 : 32768;
      e.scale = random_.Chance(20) ? 0x1p-47f : 40.0f * std::fabs(test::OrdinaryScale(&random_));
      e.zero_point =
          static_cast<int32_t>(random_.Chance(30) ? -limit : random_.Between(-limit, limit - 1));
    }
    e.skip_bias = e.raw() || random_.Chance(30);
    if (!e.raw() && random_.Chance(40)) e.activation = Activation::kRelu;
    return e;
  }

  ProductCase Case(std::string name, std::vector<TestWeight> weights,
                   std::vector<TestActivations> activations) {
    ProductCase product{.name = std::move(name),
                        .weights = std::move(weights),
                        .requests = {},
                        .arithmetic = arithmetic(),
                        .row_checks = false};
    product.row_checks = !weight_only() && random_.Chance(50);
    for (TestActivations& a : activations) {
      ProductRequest request{.activations = std::move(a), .epilogues = {}};
      for (const TestWeight& weight : product.weights)
        request.epilogues.push_back(AnyEpilogue(weight.spec));
      request.row_gap_bytes = random_.Chance(30) ? random_.Between(1, 70) : 0;
      product.requests.push_back(std::move(request));
    }
    return product;
  }

  static std::string ShapeName(int64_t m, int64_t k, int64_t n) {
    return "M=" + std::to_string(m) + " K=" + std::to_string(k) + " N=" + std::to_string(n);
  }

  Random random_{20240607};
};

TEST_P(Conformance, EdgesOfTilesInEveryDimension) {
  // Around mr (1 … 16), kr (2, 4, 64) and nr (16, 32, 64) of any kernel, primes between.
  const std::array<int64_t, 17> ms = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 31};
  const std::array<int64_t, 17> ks = {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97};
  const std::array<int64_t, 16> ns = {1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65};
  for (int64_t m : ms) {
    for (int i = 0; i < 6; i++) {
      const int64_t k = random_.Pick<int64_t>(ks), n = random_.Pick<int64_t>(ns);
      Check(Case(ShapeName(m, k, n), {Weight(k, n, Fill::kRandom)}, {Activations(m, k)}));
    }
  }
  for (int64_t k : ks)
    Check(Case(ShapeName(3, k, 19), {Weight(k, 19, Fill::kRandom)}, {Activations(3, k)}));
  for (int64_t n : ns)
    Check(Case(ShapeName(5, 23, n), {Weight(23, n, Fill::kRandom)}, {Activations(5, 23)}));
}

TEST_P(Conformance, LargerThanBlocks) {
  // More rows, panels and k-blocks than one pass takes; enough work for every member of the team.
  const std::array<std::array<int64_t, 3>, 7> shapes = {{{67, 521, 131},
                                                         {1, 2053, 1031},
                                                         {2, 1025, 1500},
                                                         {200, 96, 80},
                                                         {6, 4099, 200},
                                                         {7, 1100, 40},
                                                         {13, 2111, 40}}};
  for (auto [m, k, n] : shapes)
    Check(Case(ShapeName(m, k, n), {Weight(k, n, Fill::kRandom)}, {Activations(m, k)}));
}

TEST_P(Conformance, ExtremeValues) {
  const std::array<Fill, 4> fills = {Fill::kLowest, Fill::kHighest, Fill::kMinusHighest,
                                     Fill::kAlternating};
  for (Fill weight_fill : fills)
    for (Fill fill : fills)
      Check(Case("fills " + std::to_string(int(weight_fill)) + " " + std::to_string(int(fill)),
                 {Weight(259, 35, weight_fill)},
                 {Activations(7, 259, fill), Activations(1, 259, fill)}));
}

TEST_P(Conformance, LongestK) {
  const int64_t k = kInnerMax;
  const std::array<std::pair<Fill, Fill>, 4> fills = {{{Fill::kLowest, Fill::kLowest},
                                                       {Fill::kHighest, Fill::kHighest},
                                                       {Fill::kHighest, Fill::kLowest},
                                                       {Fill::kRandom, Fill::kRandom}}};
  for (const auto& [weight_fill, fill] : fills)
    for (const int64_t m : {1, 2})  // one row takes all of K at once
      Check(Case(ShapeName(m, k, 11), {Weight(k, 11, weight_fill)}, {Activations(m, k, fill)}));
  if (weight_only()) return;
  // The longest with wide operands: 65,793 · 255 · −128 is 128 from the edge of int32.
  const int64_t wide = kInnerMaxWide;
  TestActivations unsigned_row =
      IntegerActivations(DataType::kUint8, 1, wide, Fill::kHighest, &random_);
  TestActivations shifted = IntegerActivations(DataType::kInt8, 1, wide, Fill::kLowest, &random_);
  shifted.zero_points = {127};
  Check(Case(ShapeName(2, wide, 2), {Weight(wide, 2, Fill::kLowest)}, {unsigned_row, shifted}));
}

class ConformanceOfW8A8 : public Conformance {};

// The sums of some rows are results as they stand, and may be made in the requests' memory; the rows beside them
// are another segment's, another request's, at another distance, or have zero points.
TEST_P(ConformanceOfW8A8, SumsThatAreResults) {
  constexpr int64_t k = 300;
  const auto plain = [&](int64_t rows, int64_t gap) {
    ProductRequest request{
        .activations = IntegerActivations(DataType::kInt8, rows, k, Fill::kRandom, &random_),
        .epilogues = {{.dtype = DataType::kInt32, .skip_bias = true}}};
    request.row_gap_bytes = gap;
    return request;
  };
  for (const int64_t n : {64, 70}) {
    ProductCase product = Case(ShapeName(0, k, n), {Weight(k, n, Fill::kRandom)}, {});
    product.row_checks = false;
    for (const int64_t gap : {0, 12, 7}) {
      product.requests = {plain(41, gap)};
      Check(product);
    }
    product.requests = {plain(40, 12), plain(5, 12)};
    product.requests[0].segments = {{8, 10}, {0, 1}, {1, 6}, {20, 20}};
    Check(product);
    product.requests = {plain(9, 8), plain(9, 8)};
    product.requests[1].activations.zero_points = {-128};
    Check(product);
  }
  // Rows of a multiple of 4 KiB, of tall and of low strips.
  for (const int64_t n : {1024, 1003}) {
    ProductCase product = Case(ShapeName(0, k, n), {Weight(k, n, Fill::kRandom)}, {});
    product.row_checks = false;
    for (const int64_t rows : {4, 25}) {
      product.requests = {plain(rows, (1024 - n) * 4)};
      Check(product);
    }
  }
}

TEST_P(ConformanceOfW8A8, ZeroPointsAtBothEnds) {
  for (DataType dtype : {DataType::kInt8, DataType::kUint8}) {
    const int32_t low = dtype == DataType::kUint8 ? 0 : -128;
    for (const std::vector<int32_t>& zero_points :
         {std::vector<int32_t>{low}, {low + 255}, {low, low + 255, 0, 1, low + 7}}) {
      TestActivations a = IntegerActivations(dtype, 5, 70, Fill::kAlternating, &random_);
      a.zero_points = zero_points;
      Check(Case("zero points of " + std::string(NameOf(dtype)), {Weight(70, 33, Fill::kRandom)},
                 {a}));
    }
  }
}

TEST_P(Conformance, EveryOutputTypeAndOverflowRule) {
  const TestWeight weight = [&] {
    WeightSpec spec = test::MakeSpec(weight_type(), Layout::kKN, 37, 19);
    return MakeWeight(test::WithBias(test::WithScales(spec, DataType::kF32, 19)), Fill::kRandom,
                      &random_);
  }();
  for (DataType dtype : kOutputTypes) {
    for (Overflow overflow : kOverflows) {
      for (bool scaled : {false, true}) {
        for (Activation activation : {Activation::kNone, Activation::kRelu}) {
          Epilogue e{
              .dtype = dtype, .overflow = overflow, .scaled = scaled, .activation = activation};
          if (scaled && dtype != DataType::kInt8 && dtype != DataType::kInt16) continue;
          if (e.raw() && (activation == Activation::kRelu || weight_only())) continue;
          e.skip_bias = e.raw();
          if (scaled) e.scale = 3.0f, e.zero_point = -5;
          ProductCase product =
              Case(std::string(NameOf(dtype)), {weight}, {Activations(6, 37), Activations(5, 37)});
          for (ProductRequest& request : product.requests) request.epilogues = {e};
          Check(product);
        }
      }
    }
  }
}

TEST_P(Conformance, EveryActivationType) {
  const TestWeight weight = Weight(61, 21, Fill::kRandom);
  for (DataType dtype : kFloatTypes) {
    for (FloatRows kind : {FloatRows::kOrdinary, FloatRows::kCorners}) {
      if (weight_only()) {
        Check(Case("weight-only", {weight},
                   {FloatActivations(dtype, 16, 61, kind, Quantization::kNone, &random_)}));
        continue;
      }
      Check(Case("dynamic", {weight},
                 {FloatActivations(dtype, 16, 61, kind, Quantization::kDynamic, &random_)}));
      for (float scale : {0.5f, -0.03f, 0x1p-47f, 0x1p47f}) {
        TestActivations a = FloatActivations(dtype, 16, 61, kind, Quantization::kStatic, &random_);
        a.scales = {scale};
        a.zero_points = {-4};
        Check(Case("static", {weight}, {a}));
      }
    }
  }
}

// Epilogue inputs at the edges of F16, BF16 and fp32's denormals: sums of 0 plus such a bias.
TEST_P(Conformance, FloatCornersOfTheEpilogue) {
  const std::vector<float> corners = {
      0.0f,      -0.0f,        0x1p-149f,   -0x1p-149f, 0x1p-126f, 0x1.fffffcp-127f,
      65504,     65519,        65520,       -65520,     0x1p-24f,  0x1p-25f,
      0x3p-25f,  0x1.ffcp-15f, 2049,        2051,       0x1p-134f, 0x3p-134f,
      0x1p-133f, 1 + 0x1p-8f,  1 + 0x3p-8f, 0x1p120f,   -0x1p120f, 0.5f,
      1.5f,      2.5f,         -0.5f,       -1.5f,      127.5f,    128.5f,
      -128.5f,   32767.5f,     0x1p31f};
  const auto n = static_cast<int64_t>(corners.size());
  WeightSpec spec = test::MakeSpec(weight_type(), Layout::kNK, 3, n);
  TestWeight weight =
      MakeWeight(test::WithScales(spec, DataType::kF32, n), Fill::kRandom, &random_);
  weight.spec = test::WithBias(weight.spec);
  weight.bias = corners;
  const TestActivations zeros =
      test::FloatActivationsOf(DataType::kF32, 1, 3, {0, 0, 0},
                               weight_only() ? Quantization::kNone : Quantization::kDynamic);
  for (DataType dtype : kOutputTypes) {
    if (dtype == DataType::kInt32) continue;
    for (Overflow overflow : kOverflows) {
      ProductCase product = Case("corners", {weight}, {zeros});
      Epilogue e{.dtype = dtype, .overflow = overflow};
      e.scaled = !IsFloat(dtype);
      product.requests[0].epilogues = {e};
      Check(product);
    }
  }
}

// In columns that one byte, and two, would not hold: the first of two in the second row.
TEST_P(Conformance, TheFirstOverflowIsFoundInFarColumns) {
  const int64_t k = 3;
  std::vector<TestWeight> weights;
  for (size_t column : {size_t{300}, size_t{65'537}}) {
    std::vector<float> scales(column + 3, 0x1p-20f);
    scales[column] = scales.back() = 1e6f;
    const auto n = static_cast<int64_t>(scales.size());
    const WeightSpec spec = test::MakeSpec(weight_type(), Layout::kNK, k, n);
    weights.push_back(
        MakeWeight(test::WithScales(spec, DataType::kF32, n), Fill::kHighest, &random_));
    std::memcpy(weights.back().scales.data(), scales.data(), weights.back().scales.size());
  }
  const TestActivations zeros_and_ones =
      test::FloatActivationsOf(DataType::kF32, 2, k, {0, 0, 0, 1, 1, 1},
                               weight_only() ? Quantization::kNone : Quantization::kDynamic);
  ProductCase product = Case("far columns", weights, {zeros_and_ones});
  const Epilogue int16{.dtype = DataType::kInt16, .overflow = Overflow::kError, .scaled = true};
  product.requests[0].epilogues = {int16, {.dtype = DataType::kF16}};
  Check(product);
}

TEST_P(Conformance, RefusedRowsLeaveTheOthersAlone) {
  const TestWeight weight = Weight(40, 17, Fill::kRandom);
  const Quantization quantization = weight_only() ? Quantization::kNone : Quantization::kDynamic;
  TestActivations good =
      FloatActivations(DataType::kF32, 3, 40, FloatRows::kOrdinary, quantization, &random_);
  for (float poison : {INFINITY, -INFINITY, NAN, std::nextafter(0x1p53f, INFINITY)}) {
    TestActivations bad =
        FloatActivations(DataType::kF32, 4, 40, FloatRows::kOrdinary, quantization, &random_);
    std::memcpy(bad.memory[0]->data() + 4 * (2 * 40 + 39), &poison, 4);
    Check(Case("poison", {weight}, {good, bad, good}));
  }
}

TEST_P(Conformance, ManyRequestsInOneRun) {
  for (int i = 0; i < 6; i++) {
    const int64_t k = random_.Between(1, 150), n = random_.Between(1, 90);
    std::vector<TestActivations> activations;
    for (int64_t r = random_.Between(2, 9); r > 0; r--) {
      activations.push_back(Activations(random_.Between(0, 9), k));
      SplitAtRandom(&activations.back(), static_cast<int>(random_.Between(0, 5)), &random_);
    }
    Check(
        Case("mixed " + ShapeName(0, k, n), {Weight(k, n, Fill::kRandom)}, std::move(activations)));
  }
}

TEST_P(Conformance, SegmentsOfOneRequest) {
  for (int i = 0; i < 5; i++) {
    const int64_t k = random_.Between(1, 90), n = random_.Between(1, 60);
    ProductCase product = Case("segments " + ShapeName(20, k, n), {Weight(k, n, Fill::kRandom)},
                               {Activations(20, k), Activations(3, k)});
    SplitAtRandom(&product.requests[0].activations, 6, &random_);
    // Row 7 and rows 18, 19 belong to another batch: nobody writes them here.
    product.requests[0].segments = {{8, 10}, {0, 1}, {1, 6}};
    Check(product);
  }
}

TEST_P(Conformance, SeveralWeightsShareTheRows) {
  const int64_t k = 144;
  std::vector<TestWeight> weights;
  for (int64_t n : {int64_t{1}, int64_t{64}, int64_t{37}, int64_t{16}})
    weights.push_back(Weight(k, n, Fill::kRandom, 3));
  Check(Case("four weights", weights, {Activations(9, k), Activations(1, k)}));
  weights.resize(kWeightsPerCallMax, weights[2]);
  Check(Case("sixteen weights", weights, {Activations(2, k)}));
}

// Every step by this kernel: dense products in tiles, from the caller's memory and from scratch.
TEST_P(Conformance, ChainWithTopK) {
  for (int64_t m : {1, 7, 40}) {
    ProductCase product =
        Case(ShapeName(m, 65, 33), {Weight(65, 130, Fill::kRandom)}, {Activations(m, 65)});
    product.row_checks = false;
    product.then.push_back({Weight(130, 90, Fill::kRandom, 2), arithmetic()});
    product.then.push_back({Weight(90, 33, Fill::kRandom), arithmetic()});
    for (ProductRequest& request : product.requests) {
      request.epilogues = {AnyEpilogue(product.then.back().weight.spec)};
      request.top_k = {random_.Between(0, 33)};
      for (int i = 0; i < 2; i++)
        request.intermediates.push_back({.dtype = DataType::kF32, .activation = Activation::kRelu});
    }
    Check(product);
  }
}

class ConformanceOfInt4 : public Conformance {};

TEST_P(ConformanceOfInt4, Groups) {
  for (int64_t group : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{4}, int64_t{6}, int64_t{32},
                        int64_t{33}, int64_t{128}, int64_t{513}})
    for (int64_t groups : {int64_t{1}, int64_t{2}, int64_t{5}, int64_t{20}}) {
      const std::string name = "group " + std::to_string(group) + " x " + std::to_string(groups);
      const TestWeight weight = Weight(group * groups, 37, Fill::kRandom, groups);
      Check(Case(name, {weight}, {Activations(7, group * groups), Activations(1, group * groups)}));
      // A single row may keep its sums to itself, where nobody asks for them.
      ProductCase one_row = Case(name + ", one row", {weight}, {Activations(1, group * groups)});
      one_row.row_checks = false;
      Check(one_row);
    }
}

// W8A32 adds scaled blocks to a total that starts at +0, W8A8 starts with the first: of −0 alone the one
// makes +0, the other −0 (numerics §5, §2).
TEST_P(ConformanceOfInt4, ScalesOfNegativeZero) {
  WeightSpec spec = test::MakeSpec(DataType::kInt4, Layout::kKN, 64, 35, 32);
  TestWeight weight = MakeWeight(spec, Fill::kHighest, &random_);
  const float negative_zero = -0.0f;
  for (size_t i = 0; i < weight.scales.size(); i += 4)
    std::memcpy(weight.scales.data() + i, &negative_zero, 4);
  ProductCase product = Case("scales of −0", {weight}, {Activations(3, 64)});
  product.requests[0].epilogues = {{.dtype = DataType::kF32}};
  Check(product);
}

TEST_P(Conformance, RandomShapes) {
  for (int i = 0; i < 60; i++) {
    const int64_t m = random_.Between(0, 40), k = random_.Between(1, 300),
                  n = random_.Between(1, 130);
    const Fill fill = random_.Chance(30) ? Fill::kAlternating : Fill::kRandom;
    Check(Case(ShapeName(m, k, n), {Weight(k, n, fill, random_.Between(1, 4))},
               {Activations(m, k, fill)}));
  }
}

// Rows that `applies` to; W8A32 takes no zero points, and only INT4 has groups.
std::vector<Row> RowsWhere(bool (*applies)(const KernelInfo&)) {
  std::vector<Row> rows;
  for (const Row& row : Rows())
    if (applies(row.kernel)) rows.push_back(row);
  return rows;
}

std::string TestNameOf(const testing::TestParamInfo<Row>& row) {
  std::string name = row.param.kernel.name;
  const auto odd = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; };
  std::replace_if(name.begin(), name.end(), odd, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Kernels, Conformance, testing::ValuesIn(Rows()), TestNameOf);
INSTANTIATE_TEST_SUITE_P(Kernels, ConformanceOfW8A8,
                         testing::ValuesIn(RowsWhere([](const KernelInfo& k) {
                           return k.arithmetic == Arithmetic::kW8A8;
                         })),
                         TestNameOf);
INSTANTIATE_TEST_SUITE_P(Kernels, ConformanceOfInt4,
                         testing::ValuesIn(RowsWhere([](const KernelInfo& k) {
                           return k.weight == DataType::kInt4;
                         })),
                         TestNameOf);

// The device's own choice, with weights of every type in one call: each goes to a kernel that fits
// it.
TEST(ConformanceOfTheChoice, WeightsOfEveryTypeInOneRun) {
  Random random(5);
  const int64_t k = 120;
  for (const auto& device : Devices()) {
    for (int64_t rows : {1, 2, 33}) {
      ProductCase product{.name = "mixed weights", .weights = {}, .requests = {}};
      ProductRequest request{
          .activations = IntegerActivations(DataType::kInt8, rows, k, Fill::kRandom, &random),
          .epilogues = {}};
      request.activations.zero_points = {3};
      for (DataType dtype : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
        for (int64_t n : {5, 50}) {
          product.weights.push_back(
              MakeWeight(test::MakeSpec(dtype, Layout::kKN, k, n, k / 4), Fill::kRandom, &random));
          request.epilogues.push_back({.dtype = DataType::kF32});
        }
      }
      product.requests.push_back(std::move(request));
      CheckProduct(device.get(), "", product);
    }
  }
}

}  // namespace
}  // namespace qmatmul
