// The reference against numbers worked out by hand from docs/numerics.md. Nothing stands above the
// reference but this and the numpy vector set, so each expected value is derived in a comment.
#include "kernels/reference.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "tests/support/reference_call.h"
#include "tests/support/test_tensors.h"

namespace qmatmul {
namespace {

using test::FloatActivationsOf;
using test::Int8Weight;
using test::Multiply;
using test::ReferenceResult;
using test::TestActivations;
using test::TestWeight;

constexpr Quantization kNone = Quantization::kNone, kStatic = Quantization::kStatic,
                       kDynamic = Quantization::kDynamic;

TestActivations Int8(int64_t rows, int64_t k, const std::vector<int8_t>& values) {
  TestActivations a;
  a.dtype = DataType::kInt8;
  a.rows = rows;
  a.k = k;
  std::vector<std::byte> data(values.size());
  if (!values.empty()) std::memcpy(data.data(), values.data(), values.size());
  a.SetBytes(data);
  return a;
}

TestActivations Uint8(int64_t rows, int64_t k, const std::vector<uint8_t>& values) {
  TestActivations a = Int8(rows, k, {values.begin(), values.end()});
  a.dtype = DataType::kUint8;
  return a;
}

TestActivations F32(int64_t rows, int64_t k, const std::vector<float>& values, Quantization q) {
  return FloatActivationsOf(DataType::kF32, rows, k, values, q);
}

TestWeight Scaled(TestWeight weight, const std::vector<float>& scales) {
  weight.spec = test::WithScales(weight.spec, DataType::kF32, static_cast<int64_t>(scales.size()));
  weight.scales.resize(scales.size() * 4);
  std::memcpy(weight.scales.data(), scales.data(), weight.scales.size());
  return weight;
}

TestWeight Biased(TestWeight weight, const std::vector<float>& bias) {
  weight.spec.bias_count = static_cast<int64_t>(bias.size());
  weight.bias = bias;
  return weight;
}

TestWeight PackedBits(WeightSpec spec, const std::vector<uint8_t>& bytes) {
  TestWeight weight{.spec = spec, .data = {}, .scales = {}, .bias = {}};
  for (uint8_t byte : bytes) weight.data.push_back(std::byte{byte});
  return weight;
}

Epilogue To(DataType dtype, Overflow overflow = Overflow::kSaturate) {
  return {.dtype = dtype, .overflow = overflow};
}

Epilogue ScaledTo(DataType dtype, float scale, int32_t zero_point,
                  Overflow overflow = Overflow::kSaturate) {
  return {.dtype = dtype,
          .overflow = overflow,
          .scaled = true,
          .scale = scale,
          .zero_point = zero_point};
}

// y of one column each: sums of 0 plus these biases (0 · 1 + bias is exact).
ReferenceResult Finish(const std::vector<float>& y, const Epilogue& epilogue) {
  const auto n = static_cast<int64_t>(y.size());
  return Multiply(Biased(Int8Weight(Layout::kKN, 1, n, std::vector<int8_t>(y.size(), 1)), y),
                  Int8(1, 1, {0}), epilogue);
}

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

// --- §1: the integer product ---

TEST(ReferenceIntegers, TwoByTwo) {
  // [1 2; 3 4] · [5 6; 7 8] = [1·5+2·7 1·6+2·8; 3·5+4·7 3·6+4·8]
  const std::vector<int32_t> want = {19, 22, 43, 50};
  const TestActivations a = Int8(2, 2, {1, 2, 3, 4});
  EXPECT_EQ(
      Multiply(Int8Weight(Layout::kKN, 2, 2, {5, 6, 7, 8}), a, To(DataType::kInt32)).As<int32_t>(),
      want);
  EXPECT_EQ(
      Multiply(Int8Weight(Layout::kNK, 2, 2, {5, 7, 6, 8}), a, To(DataType::kInt32)).As<int32_t>(),
      want);
}

TEST(ReferenceIntegers, LongestSumFits) {
  // 131,071 · (−128)·(−128) = 131,071 · 16,384 = 2,147,467,264 < 2^31
  const std::vector<int8_t> lowest(131'071, -128);
  const auto result = Multiply(Int8Weight(Layout::kKN, 131'071, 1, lowest),
                               Int8(1, 131'071, lowest), To(DataType::kInt32));
  EXPECT_EQ(result.As<int32_t>(), std::vector<int32_t>{2'147'467'264});
}

TEST(ReferenceIntegers, WhatFp32CannotHold) {
  // K = 4096, all 127 but one 126 against 127: 4095·127·127 + 126·127 = 66,048,255 + 16,002; the
  // nearest fp32 (spacing 4 there) is 66,064,256.
  std::vector<int8_t> a(4096, 127);
  a[7] = 126;
  const TestWeight w = Int8Weight(Layout::kKN, 4096, 1, std::vector<int8_t>(4096, 127));
  EXPECT_EQ(Multiply(w, Int8(1, 4096, a), To(DataType::kInt32)).As<int32_t>()[0], 66'064'257);
  EXPECT_EQ(Multiply(w, Int8(1, 4096, a), To(DataType::kF32)).As<float>()[0], 66'064'256.0f);
}

TEST(ReferenceIntegers, ZeroPoints) {
  // (255 − 5)·1 + (0 − 5)·(−1) = 255
  TestActivations a = Uint8(1, 2, {255, 0});
  a.zero_points = {5};
  const TestWeight w = Int8Weight(Layout::kKN, 2, 1, {1, -1});
  EXPECT_EQ(Multiply(w, a, To(DataType::kInt32)).As<int32_t>()[0], 255);
  // Per row: (1 − 127)·1 + (2 − 127)·(−1) = −1; (1 + 128)·1 + (3 + 128)·(−1) = −2
  TestActivations rows = Int8(2, 2, {1, 2, 1, 3});
  rows.zero_points = {127, -128};
  EXPECT_EQ(Multiply(w, rows, To(DataType::kInt32)).As<int32_t>(), (std::vector<int32_t>{-1, -2}));
}

TEST(ReferenceIntegers, Int4NibblesLowFirst) {
  // KN, n = 3: 0x8F holds 15 then 8, that is 7, 0; 0x00's low nibble is −8. Second line 0x21, 0x09:
  // −7, −6, 1.
  WeightSpec spec = test::MakeSpec(DataType::kInt4, Layout::kKN, 2, 3);
  TestWeight w = Scaled(PackedBits(spec, {0x8F, 0x00, 0x21, 0x09}), {1, 1, 1});
  // [1 10]: 7 − 70, 0 − 60, −8 + 10
  const auto want = std::vector<int32_t>{-63, -60, 2};
  EXPECT_EQ(Multiply(w, Int8(1, 2, {1, 10}), To(DataType::kInt32)).As<int32_t>(), want);
  // NK: three lines of two.
  spec.layout = Layout::kNK;
  w = Scaled(PackedBits(spec, {0x1F, 0x28, 0x90}), {1, 1, 1});
  EXPECT_EQ(Multiply(w, Int8(1, 2, {1, 10}), To(DataType::kInt32)).As<int32_t>(), want);
}

TEST(ReferenceIntegers, Int2CodesLowFirst) {
  // 0b00'10'01'00 holds codes 0, 1, 2: −1, 0, 1.
  const TestWeight w =
      PackedBits(test::MakeSpec(DataType::kInt2, Layout::kKN, 1, 3), {0b0010'0100});
  EXPECT_EQ(Multiply(w, Int8(1, 1, {9}), To(DataType::kInt32)).As<int32_t>(),
            (std::vector<int32_t>{-9, 0, 9}));
}

TEST(ReferenceIntegers, NoRowsIsAnAnswer) {
  const auto result =
      Multiply(Int8Weight(Layout::kKN, 2, 1, {1, 2}), Int8(0, 2, {}), To(DataType::kInt32));
  EXPECT_TRUE(result.fault.ok());
  EXPECT_EQ(result.details.outcome.overflow_count, 0);
}

TEST(ReferenceIntegers, RowChecksWrapModulo2To64) {
  // acc = [19 22], r = [2 3]: 38 + 66 = 104; acc = [−19 −22]: 2^64 − 104
  const std::vector<uint32_t> r = {2, 3};
  const auto result =
      Multiply(Int8Weight(Layout::kKN, 2, 2, {5, 6, 7, 8}), Int8(2, 2, {1, 2, -1, -2}),
               To(DataType::kInt8), Arithmetic::kW8A8, r);
  EXPECT_EQ(result.details.row_checks, (std::vector<uint64_t>{104, uint64_t{0} - 104}));
}

// --- §2: the float epilogue ---

TEST(ReferenceFloats, EachStepRoundsAndNoneIsFused) {
  // acc = 4097 = 127·32 + 33; sw = 1 + 2^-12: 4097·sw = 4098 + 2^-12, half of the spacing 2^-11, to
  // even: 4098. bias −4098 leaves 0; a fused multiply-add would leave 2^-12.
  const float sw = 1 + 0x1p-12f;
  const TestWeight w = Scaled(Int8Weight(Layout::kKN, 2, 1, {32, 1}), {sw});
  const TestActivations a = Int8(1, 2, {127, 33});
  EXPECT_EQ(Multiply(Biased(w, {-4098}), a, To(DataType::kF32)).As<float>()[0], 0.0f);
  // Weight scale first: 4098·3 = 12,294. Activation scale first, or both multiplied first, would
  // give 12,294 + 3·2^-12, which rounds to 12,294 + 2^-10.
  TestActivations scaled = a;
  scaled.scales = {3};
  EXPECT_EQ(Multiply(w, scaled, To(DataType::kF32)).As<float>()[0], 12294.0f);
}

TEST(ReferenceFloats, PerColumnScalesPerRowScalesAndBias) {
  // acc = [1 2] and [3 4]; ·sw = [0.5 −2]; ·sa = 2, 4; + [1 10]: 1·0.5·2+1, 2·−2·2+10, 3·0.5·4+1,
  // 4·−2·4+10
  TestActivations a = Int8(2, 2, {1, 0, 0, 1});
  a.scales = {2, 4};
  const TestWeight w =
      Biased(Scaled(Int8Weight(Layout::kKN, 2, 2, {1, 2, 3, 4}), {0.5f, -2}), {1, 10});
  EXPECT_EQ(Multiply(w, a, To(DataType::kF32)).As<float>(), (std::vector<float>{2, 2, 7, -22}));
  Epilogue skip = To(DataType::kF32);
  skip.skip_bias = true;
  EXPECT_EQ(Multiply(w, a, skip).As<float>(), (std::vector<float>{1, -8, 6, -32}));
}

TEST(ReferenceFloats, ScalesOfEveryTypeAreWidenedExactly) {
  TestWeight w = Int8Weight(Layout::kKN, 1, 2, {1, 1});
  w.spec = test::WithScales(w.spec, DataType::kF16, 2);
  w.scales = {std::byte{0x01}, std::byte{0x00}, std::byte{0x00}, std::byte{0xC0}};  // 2^-24 and −2
  EXPECT_EQ(Multiply(w, Int8(1, 1, {3}), To(DataType::kF32)).As<float>(),
            (std::vector<float>{0x3p-24f, -6}));
  w.spec = test::WithScales(w.spec, DataType::kBF16, 1);
  w.scales = {std::byte{0xC0}, std::byte{0x3F}};  // 0x3FC0 is 1.5, for the whole tensor
  EXPECT_EQ(Multiply(w, Int8(1, 1, {3}), To(DataType::kF32)).As<float>(),
            (std::vector<float>{4.5f, 4.5f}));
}

TEST(ReferenceFloats, MinusZeroIsKeptAndReluMakesItPlus) {
  const TestWeight w = Scaled(Int8Weight(Layout::kKN, 1, 2, {1, 1}), {-1, 1});
  EXPECT_EQ(Bits(Multiply(w, Int8(1, 1, {0}), To(DataType::kF32)).As<float>()),
            Bits({-0.0f, 0.0f}));
  Epilogue relu = To(DataType::kF32);
  relu.activation = Activation::kRelu;
  EXPECT_EQ(Bits(Multiply(w, Int8(1, 1, {0}), relu).As<float>()), Bits({0.0f, 0.0f}));
  EXPECT_EQ(Multiply(w, Int8(1, 1, {5}), relu).As<float>(), (std::vector<float>{0, 5}));
}

TEST(ReferenceFloats, DenormalsAreKept) {
  // 3 · 2^-47 · 2^-47 · … cannot get there with one scale; bias can: 0 + 2^-149.
  EXPECT_EQ(Bits(Finish({0x1p-149f, -0x1p-130f}, To(DataType::kF32)).As<float>()),
            Bits({0x1p-149f, -0x1p-130f}));
}

TEST(ReferenceFloats, F16RoundsToEvenAndCountsInfinities) {
  const auto result = Finish({65504, 65519, 65520, -65520, 2049, 2051, 0x1p-24f, 0x1p-25f, 0x3p-25f,
                              0x1.8p-25f, 0x1.ff8p-15f, 0x1.ffcp-15f, -0x1p-26f, 1.0f / 3},
                             To(DataType::kF16));
  // Spacing 2 at 2048: 2049 ties to 2048 (0x6800), 2051 to 2052 (0x6802). Denormals count 2^-24:
  // 0.5 ties to 0, 1.5 to 2, 0.75 rounds to 1; 2^-14·(1 − 2^-10) is the greatest denormal 0x3FF;
  // half a unit above it ties up to the least normal 0x400. 1/3 = 0x1.555556p-2 → 0x3555.
  EXPECT_EQ(result.As<uint16_t>(),
            (std::vector<uint16_t>{0x7BFF, 0x7BFF, 0x7C00, 0xFC00, 0x6800, 0x6802, 0x0001, 0x0000,
                                   0x0002, 0x0001, 0x03FF, 0x0400, 0x8000, 0x3555}));
  EXPECT_EQ(result.details.outcome.overflow_count, 2);
  EXPECT_EQ(result.details.outcome.first_overflow_row, 0);
  EXPECT_EQ(result.details.outcome.first_overflow_column, 2);
}

TEST(ReferenceFloats, BF16RoundsToEvenDenormalsToo) {
  // Spacing 2^-7 at 1: 1 + 2^-8 ties to 1 (0x3F80), 1 + 3·2^-8 to 1 + 2^-6 (0x3F82), a little over
  // the tie goes up. Denormals count 2^-133: 2^-134 ties to 0, 3·2^-134 to 2, 2^-133 stays.
  EXPECT_EQ(Finish({1 + 0x1p-8f, 1 + 0x3p-8f, 1 + 0x1p-8f + 0x1p-23f, 0x1p-134f, 0x3p-134f,
                    0x1p-133f, -0x1p-149f},
                   To(DataType::kBF16))
                .As<uint16_t>(),
            (std::vector<uint16_t>{0x3F80, 0x3F82, 0x3F81, 0x0000, 0x0002, 0x0001, 0x8000}));
}

TEST(ReferenceFloats, GreatestResultStaysFinite) {
  // 131,071·16,384 ≈ 2^31; ·2^47·2^47 + 2^120 < 2^126 (numerics §0).
  const std::vector<int8_t> lowest(131'071, -128);
  TestActivations a = Int8(1, 131'071, lowest);
  a.scales = {0x1p47f};
  const TestWeight w =
      Biased(Scaled(Int8Weight(Layout::kKN, 131'071, 1, lowest), {0x1p47f}), {0x1p120f});
  const auto result = Multiply(w, a, To(DataType::kBF16));
  // float(2,147,467,264) = 2^31 − 2^14 exactly; ·2^94 = 2^125·(1 − 2^-17), + 2^120 = 2^125·(1.03125
  // − 2^-17); BF16 spacing at 2^125 is 2^118: 1.03125 is 132/128, so 0x7E00 + 4.
  EXPECT_EQ(result.As<uint16_t>()[0], 0x7E04);
  EXPECT_EQ(result.details.outcome.overflow_count, 0);
}

// --- §2: groups ---

// INT4, k = 16, g = 8, n = 1: the first group's sum is −4098, the second's 4097.
TestWeight TwoGroups(const std::vector<float>& scales) {
  // Nibbles, low first: −8 −8 −8 −8 | −1 −8… | then 7 7 7 7 7 | 1 | −8 −8 (those meet zeros).
  WeightSpec spec = test::MakeSpec(DataType::kInt4, Layout::kNK, 16, 1, 8);
  return Scaled(PackedBits(spec, {0x00, 0x00, 0x07, 0x00, 0xFF, 0xFF, 0x9F, 0x00}), scales);
}
// −8·127·4 − 34 = −4098; 7·(127·4 + 77) + 2 = 4097
TestActivations TwoGroupsRow() {
  return Int8(1, 16, {127, 127, 127, 127, 34, 0, 0, 0, 127, 127, 127, 127, 77, 2, 0, 0});
}

TEST(ReferenceGroups, EachGroupIsScaledRoundedAndAdded) {
  // 4097·(1 + 2^-12) rounds to 4098, so the sum is 0; fused it would be 2^-12.
  EXPECT_EQ(
      Multiply(TwoGroups({1, 1 + 0x1p-12f}), TwoGroupsRow(), To(DataType::kF32)).As<float>()[0],
      0.0f);
  // −4098·2 + 4097·4 = 8192, then ·0.5
  TestActivations a = TwoGroupsRow();
  a.scales = {0.5f};
  EXPECT_EQ(Multiply(TwoGroups({2, 4}), a, To(DataType::kF32)).As<float>()[0], 4096.0f);
}

TEST(ReferenceGroups, ZeroPointComesOffEveryGroup) {
  // za = 1 takes Σ W off each group: W sums are −8·7 − 1 = −57 and 35 + 1 − 16 = 20.
  TestActivations a = TwoGroupsRow();
  a.zero_points = {1};
  EXPECT_EQ(Multiply(TwoGroups({1, 2}), a, To(DataType::kF32)).As<float>()[0],
            (-4098.0f + 57) + 2 * (4097 - 20));
}

TEST(ReferenceGroups, RowCheckIsOfTheWholeSum) {
  const std::vector<uint32_t> r = {5};
  const auto result =
      Multiply(TwoGroups({1, 1}), TwoGroupsRow(), To(DataType::kF32), Arithmetic::kW8A8, r);
  EXPECT_EQ(result.details.row_checks[0], uint64_t{0} - 5);  // −4098 + 4097 = −1
}

TEST(ReferenceGroups, OneGroupIsThePerColumnFormula) {
  WeightSpec spec = test::MakeSpec(DataType::kInt4, Layout::kNK, 2, 1, 2);
  const auto result =
      Multiply(Scaled(PackedBits(spec, {0x9F}), {-1}), Int8(1, 2, {0, 0}), To(DataType::kF32));
  EXPECT_EQ(Bits(result.As<float>()), Bits({-0.0f}));  // not (+0) + (−0)
}

// --- §3: integer outputs ---

TEST(ReferenceIntegerOutputs, RawSumsSaturateWrapAndSayWhere) {
  // acc: 128 129 −129 | −128 127 40,000
  const TestWeight w =
      Scaled(Int8Weight(Layout::kKN, 3, 3, {127, 127, -127, 1, 2, -2, 100, 100, 100}), {1, 1, 1});
  TestActivations a = Int8(1, 3, {1, 1, 0});
  auto result = Multiply(w, a, To(DataType::kInt8));
  EXPECT_EQ(result.As<int8_t>(), (std::vector<int8_t>{127, 127, -128}));
  EXPECT_EQ(result.details.outcome.overflow_count, 3);
  // 128 → −128, 129 → −127, −129 → 127
  EXPECT_EQ(Multiply(w, a, To(DataType::kInt8, Overflow::kWrap)).As<int8_t>(),
            (std::vector<int8_t>{-128, -127, 127}));
  // Rows [0 0 1] → 100 100 100, then [0 −1 −1]: −101 −102 −98, then [−1 0 0]: −127 −127 127: none;
  // then [1 1 0].
  a = Int8(4, 3, {0, 0, 1, 0, -1, -1, -1, 0, 0, 1, 1, 0});
  result = Multiply(w, a, To(DataType::kInt8, Overflow::kError));
  EXPECT_TRUE(result.fault.ok());
  EXPECT_EQ(result.details.outcome.overflow_count, 3);
  EXPECT_EQ(result.details.outcome.first_overflow_row, 3);
  EXPECT_EQ(result.details.outcome.first_overflow_column, 0);
  // 16 bits: 100·127 + 127·127 + … = 28,956 fits; K = 3 cannot overflow unless all are large.
  const TestWeight large = Int8Weight(Layout::kKN, 3, 1, {127, 127, 127});
  EXPECT_EQ(Multiply(large, Int8(1, 3, {127, 127, 127}), To(DataType::kInt16)).As<int16_t>()[0],
            32767);
  EXPECT_EQ(Multiply(large, Int8(1, 3, {127, 127, 127}), To(DataType::kInt16, Overflow::kWrap))
                .As<int16_t>()[0],
            48387 - 65536);  // 3·127² = 48,387
}

TEST(ReferenceIntegerOutputs, ScaledTiesGoToEvenThenZeroPoint) {
  // t = y/2: 0.5 → 0, 1.5 → 2, 2.5 → 2, −0.5 → 0, −1.5 → −2; then + 1
  EXPECT_EQ(Finish({1, 3, 5, -1, -3}, ScaledTo(DataType::kInt8, 2, 1)).As<int8_t>(),
            (std::vector<int8_t>{1, 3, 3, 1, -1}));
}

TEST(ReferenceIntegerOutputs, TheScaleIsInvertedOnce) {
  // 1/15 in fp32 is above 1/15 by 0.875·2^-24 of itself, so 37.5·(1/15) = 2.5 + 2^-22, which rounds
  // to 3; a division would give 2.5 and then 2.
  EXPECT_EQ(Finish({37.5f}, ScaledTo(DataType::kInt16, 15, 0)).As<int16_t>()[0], 3);
}

TEST(ReferenceIntegerOutputs, HugeValuesAreClampedBeforeConversion) {
  // 2^120 · 2^47 is over fp32: +inf, clamped to 2^30. Saturated 127; wrapped, the low bits of 2^30
  // + 5.
  const std::vector<float> y = {0x1p120f, -0x1p120f, 0x1p29f};
  const auto saturated = Finish(y, ScaledTo(DataType::kInt8, 0x1p-47f, 5));
  EXPECT_EQ(saturated.As<int8_t>(), (std::vector<int8_t>{127, -128, 127}));
  EXPECT_EQ(saturated.details.outcome.overflow_count, 3);
  EXPECT_EQ(Finish(y, ScaledTo(DataType::kInt16, 0x1p-47f, 5, Overflow::kWrap)).As<int16_t>(),
            (std::vector<int16_t>{5, 5, 5}));
}

TEST(ReferenceIntegerOutputs, ZeroPointMovesTheEdge) {
  // 126 + 1 = 127 fits, 127 + 1 does not; −129 + 1 does.
  const auto result = Finish({126, 127, -129}, ScaledTo(DataType::kInt8, 1, 1));
  EXPECT_EQ(result.As<int8_t>(), (std::vector<int8_t>{127, 127, -128}));
  EXPECT_EQ(result.details.outcome.overflow_count, 1);
  EXPECT_EQ(result.details.outcome.first_overflow_column, 1);
}

// --- §4: quantizing activations ---

const TestWeight& Identity5() {
  static const TestWeight weight =
      Int8Weight(Layout::kKN, 5, 5,
                 {1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1});
  return weight;
}

TEST(ReferenceQuantization, DynamicTiesGoToEven) {
  // amax = 127: sa = 1, inv = 1; 0.5 → 0, 1.5 → 2, 2.5 → 2, −0.5 → 0
  const auto result = Multiply(Identity5(), F32(1, 5, {127, 0.5f, 1.5f, 2.5f, -0.5f}, kDynamic),
                               To(DataType::kInt32));
  EXPECT_EQ(result.As<int32_t>(), (std::vector<int32_t>{127, 0, 2, 2, 0}));
  EXPECT_EQ(result.details.scales_used, std::vector<float>{1});
}

TEST(ReferenceQuantization, DynamicRowsAreIndependent) {
  // Row 0: amax 3, sa = 3/127, inv = 127/3: 1 → 42.33 → 42, −3 → −127. Row 1: amax 254, sa = 2.
  const auto result = Multiply(
      Identity5(), F32(2, 5, {1, -3, 0, 0, 0, 254, 2, 3, 5, -254}, kDynamic), To(DataType::kF32));
  const float sa = 3.0f / 127.0f;
  // 2 → 1, 3 → 1.5 → 2, 5 → 2.5 → 2
  EXPECT_EQ(result.As<float>(),
            (std::vector<float>{42 * sa, -127 * sa, 0, 0, 0, 254, 2, 4, 4, -254}));
  EXPECT_EQ(result.details.scales_used, (std::vector<float>{sa, 2}));
}

TEST(ReferenceQuantization, TinyRowsAreZeroWithScaleZero) {
  const float under = std::nextafter(0x1p-100f, 0.0f);
  const auto result = Multiply(
      Identity5(),
      F32(3, 5, {under, -under, 0x1p-149f, 0, -0.0f, 0x1p-100f, 0, 0, 0, -0x1p-100f, 0, 0, 0, 0, 0},
          kDynamic),
      To(DataType::kInt32));
  EXPECT_EQ(result.As<int32_t>(),
            (std::vector<int32_t>{0, 0, 0, 0, 0, 127, 0, 0, 0, -127, 0, 0, 0, 0, 0}));
  EXPECT_EQ(result.details.scales_used, (std::vector<float>{0, 0x1p-100f / 127.0f, 0}));
}

TEST(ReferenceQuantization, HalvesAreWidenedFirst) {
  // F16: amax 65504 → inv = 127/65504; −65504 → −127; 2^-24 → 0. BF16 holds 254 exactly.
  const TestActivations f16 =
      FloatActivationsOf(DataType::kF16, 1, 5, {65504, -65504, 0x1p-24f, 0, 32768}, kDynamic);
  // 32,768·127/65,504 = 63.53 → 64
  EXPECT_EQ(Multiply(Identity5(), f16, To(DataType::kInt32)).As<int32_t>(),
            (std::vector<int32_t>{127, -127, 0, 0, 64}));
  const TestActivations bf16 =
      FloatActivationsOf(DataType::kBF16, 1, 5, {254, 1, 3, -5, 0}, kDynamic);
  EXPECT_EQ(Multiply(Identity5(), bf16, To(DataType::kInt32)).As<int32_t>(),
            (std::vector<int32_t>{127, 0, 2, -2, 0}));
}

TEST(ReferenceQuantization, StaticClampsAndTakesTheZeroPointOff) {
  // sa = 0.5, za = −4: 1 → 2 − 4 = −2; 1e10 → t = 2^30, 127; −1e10 → −128; 0.25 → 0.5 → 0 − 4. acc
  // = q + 4.
  TestActivations a = F32(1, 5, {1, 1e10f, -1e10f, 0.25f, 0.75f}, kStatic);
  a.scales = {0.5f};
  a.zero_points = {-4};
  const auto result = Multiply(Identity5(), a, To(DataType::kInt32));
  EXPECT_EQ(result.As<int32_t>(), (std::vector<int32_t>{2, 131, -124, 0, 2}));
  EXPECT_EQ(Multiply(Identity5(), a, To(DataType::kF32)).As<float>(),
            (std::vector<float>{1, 65.5f, -62, 0, 1}));
  // A negative scale and one per row: row 0 −1/−2 … = 0.5 → 0 (even), row 1 3/2 = 1.5 → 2
  TestActivations rows = F32(2, 5, {-1, 0, 0, 0, 0, 3, 0, 0, 0, 0}, kStatic);
  rows.scales = {-2, 2};
  EXPECT_EQ(Multiply(Identity5(), rows, To(DataType::kInt32)).As<int32_t>(),
            (std::vector<int32_t>{0, 0, 0, 0, 0, 2, 0, 0, 0, 0}));
}

// --- §5: weight-only ---

TEST(ReferenceWeightOnly, SumsGoInBlocksOf512) {
  // 2^24 + 1 = 2^24 in fp32. Two ones in the second block make 2 first: 2^24 + 2. In the first they
  // are lost.
  std::vector<float> a(514, 0.0f);
  a[0] = 0x1p24f;
  a[512] = a[513] = 1;
  const TestWeight w = Int8Weight(Layout::kKN, 514, 1, std::vector<int8_t>(514, 1));
  EXPECT_EQ(
      Multiply(w, F32(1, 514, a, kNone), To(DataType::kF32), Arithmetic::kW8A32).As<float>()[0],
      16777218.0f);
  std::swap(a[512], a[510]);
  std::swap(a[513], a[511]);
  EXPECT_EQ(
      Multiply(w, F32(1, 514, a, kNone), To(DataType::kF32), Arithmetic::kW8A32).As<float>()[0],
      16777216.0f);
}

TEST(ReferenceWeightOnly, ProductsAreRoundedBeforeTheyAreAdded) {
  // 127·(1 + 2^-23) = 127 + 1.98·2^-17 rounds to 127 + 2^-16; −127 leaves 2^-16, fused 127·2^-23.
  const auto result =
      Multiply(Int8Weight(Layout::kKN, 2, 1, {-127, 127}), F32(1, 2, {1, 1 + 0x1p-23f}, kNone),
               To(DataType::kF32), Arithmetic::kW8A32);
  EXPECT_EQ(result.As<float>()[0], 0x1p-16f);
}

TEST(ReferenceWeightOnly, TotalsStartAtPlusZeroAndThenScale) {
  // 0·(−1) = −0 and (+0) + (−0) = +0; the scale −2 makes it −0, bias 0 makes it +0 again.
  const TestWeight w = Scaled(Int8Weight(Layout::kKN, 1, 1, {-1}), {-2});
  EXPECT_EQ(
      Bits(Multiply(w, F32(1, 1, {0}, kNone), To(DataType::kF32), Arithmetic::kW8A32).As<float>()),
      Bits({-0.0f}));
  EXPECT_EQ(
      Bits(Multiply(Biased(w, {0}), F32(1, 1, {0}, kNone), To(DataType::kF32), Arithmetic::kW8A32)
               .As<float>()),
      Bits({0.0f}));
  EXPECT_EQ(
      Multiply(w, F32(1, 1, {2.5f}, kNone), To(DataType::kF32), Arithmetic::kW8A32).As<float>()[0],
      5.0f);
}

TEST(ReferenceWeightOnly, GroupsAreTheBlocks) {
  // INT4 values 7 and −7, g = 1, scales 1 and 1 + 2^-12, a = 1 and 4097/7…: take a = [1, 1]: 7·1 −
  // 7·(1 + 2^-12)
  WeightSpec spec = test::MakeSpec(DataType::kInt4, Layout::kNK, 2, 1, 1);
  const TestWeight w = Scaled(PackedBits(spec, {0x1F}), {1, 1 + 0x1p-12f});
  EXPECT_EQ(
      Multiply(w, F32(1, 2, {1, 1}, kNone), To(DataType::kF32), Arithmetic::kW8A32).As<float>()[0],
      -0x7p-12f);
  // (+0) + (−0) at the total: a = 0 gives +0 even with negative scales.
  EXPECT_EQ(Bits(Multiply(Scaled(w, {-1, -1}), F32(1, 2, {0, 0}, kNone), To(DataType::kF32),
                          Arithmetic::kW8A32)
                     .As<float>()),
            Bits({0.0f}));
}

// --- §6: top_k ---

TEST(ReferenceTopKTest, GreatestFirstTiesToTheLowerColumn) {
  const std::vector<int32_t> sums = {3, 9, -1, 9, 3};
  const auto* row = reinterpret_cast<const std::byte*>(sums.data());
  EXPECT_EQ(ReferenceTopK(row, DataType::kInt32, 5, 4), (std::vector<int32_t>{1, 3, 0, 4}));
  const std::vector<float> floats = {-0.0f, 0.0f, -1, 0x1p-149f};
  row = reinterpret_cast<const std::byte*>(floats.data());
  EXPECT_EQ(ReferenceTopK(row, DataType::kF32, 4, 4), (std::vector<int32_t>{3, 0, 1, 2}));
  const std::vector<uint16_t> halves = {0xFC00, 0x7C00, 0x3C00, 0x7C00};  // −inf inf 1 inf
  row = reinterpret_cast<const std::byte*>(halves.data());
  EXPECT_EQ(ReferenceTopK(row, DataType::kF16, 4, 3), (std::vector<int32_t>{1, 3, 2}));
  const std::vector<int8_t> bytes = {-128, 127, 0};
  row = reinterpret_cast<const std::byte*>(bytes.data());
  EXPECT_EQ(ReferenceTopK(row, DataType::kInt8, 3, 1), std::vector<int32_t>{1});
}

}  // namespace
}  // namespace qmatmul
