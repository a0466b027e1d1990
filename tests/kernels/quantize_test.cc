// half.h over every half and its neighbours, and the quantizers against numbers worked out by hand.
#include "kernels/quantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/half.h"
#include "kernels/reference.h"
#include "tests/support/reference_call.h"
#include "tests/support/test_tensors.h"

namespace qmatmul {
namespace {

// Every finite half and the midpoint to the next, a float step to either side: rounding by
// definition.
template <typename Narrow, typename Widen>
void CheckRounding(uint16_t infinity, Narrow narrow, Widen widen) {
  for (uint32_t half = 0; half < infinity; half++) {
    const float value = widen(static_cast<uint16_t>(half));
    ASSERT_EQ(narrow(value), half);
    ASSERT_EQ(narrow(-value), half | 0x8000);
    // The step above the greatest half is as wide as the one below it.
    const double next = half + 1 == infinity ? 2.0 * value - widen(static_cast<uint16_t>(half - 1))
                                             : widen(static_cast<uint16_t>(half + 1));
    const auto middle = static_cast<float>((static_cast<double>(value) + next) / 2);
    ASSERT_EQ(narrow(middle), half + half % 2) << "ties go to even, at " << half;
    ASSERT_EQ(narrow(std::nextafter(middle, 0.0f)), half);
    ASSERT_EQ(narrow(std::nextafter(middle, INFINITY)), half + 1);
  }
  EXPECT_EQ(widen(infinity), INFINITY);
  EXPECT_EQ(narrow(-INFINITY), infinity | 0x8000);
  EXPECT_TRUE(std::isnan(widen(narrow(NAN))));
}

TEST(Half, F16RoundsToNearestEvenEverywhere) { CheckRounding(0x7C00, FloatToF16, F16ToFloat); }
// Ties of BF16 denormals need floats below 2^-133: half of a step is 2^-134.
TEST(Half, BF16RoundsToNearestEvenEverywhere) { CheckRounding(0x7F80, FloatToBF16, BF16ToFloat); }

TEST(Half, KnownBits) {
  EXPECT_EQ(FloatToF16(1), 0x3C00);
  EXPECT_EQ(FloatToF16(65519), 0x7BFF);
  EXPECT_EQ(FloatToF16(65520), 0x7C00);
  EXPECT_EQ(F16ToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(F16ToFloat(0x83FF), -0x3FFp-24f);
  EXPECT_EQ(FloatToBF16(1), 0x3F80);
  EXPECT_EQ(BF16ToFloat(0x0001), 0x1p-133f);
  EXPECT_EQ(std::bit_cast<uint32_t>(F16ToFloat(0x8000)), 0x8000'0000u);
}

TEST(QuantizeWeight, Int8PerColumn) {
  // Column 0: amax 254, scale 2: 254 → 127, 3 → 1.5 → 2, −5 → −2.5 → −2. Column 1: zeros. Column 2:
  // amax 1.27·2^-30 is far over 127·2^-47.
  const std::vector<float> values = {254, 0, 127, 3, -0.0f, -127, -5, 0, 64};
  QuantizedWeight weight;
  ASSERT_TRUE(QuantizeWeightInt8(values, Layout::kKN, 3, 3, &weight).ok());
  ReferenceWeight plain;
  ASSERT_TRUE(DecodeWeight(weight.view(), &plain).ok());
  EXPECT_EQ(plain.values, (std::vector<int8_t>{127, 0, 127, 2, 0, -127, -2, 0, 64}));
  EXPECT_EQ(plain.scales, (std::vector<float>{2, 0, 1}));
  // The transposed tensor in NK is the same weight.
  const std::vector<float> transposed = {254, 3, -5, 0, -0.0f, 0, 127, -127, 64};
  ASSERT_TRUE(QuantizeWeightInt8(transposed, Layout::kNK, 3, 3, &weight).ok());
  ReferenceWeight other;
  ASSERT_TRUE(DecodeWeight(weight.view(), &other).ok());
  EXPECT_EQ(other.values, plain.values);
  EXPECT_EQ(other.scales, plain.scales);
}

TEST(QuantizeWeight, Int4Groups) {
  // k = 4, g = 2, n = 1: amax 14 → scale 2: 14 → 7, −5 → −2.5 → −2; amax 7 → scale 1: −7, 3.
  for (Layout layout : {Layout::kKN, Layout::kNK}) {
    QuantizedWeight weight;
    ASSERT_TRUE(
        QuantizeWeightInt4(std::vector<float>{14, -5, -7, 3}, layout, 4, 1, 2, &weight).ok());
    ReferenceWeight plain;
    ASSERT_TRUE(DecodeWeight(weight.view(), &plain).ok());
    EXPECT_EQ(plain.values, (std::vector<int8_t>{7, -2, -7, 3}));
    EXPECT_EQ(plain.scales, (std::vector<float>{2, 1}));
  }
}

TEST(QuantizeWeight, Refusals) {
  QuantizedWeight weight;
  EXPECT_EQ(QuantizeWeightInt8(std::vector<float>{1, 2, 3}, Layout::kKN, 2, 2, &weight).reason,
            "SHAPE");
  EXPECT_EQ(QuantizeWeightInt8(std::vector<float>{1, NAN}, Layout::kKN, 2, 1, &weight).reason,
            "WEIGHT_RANGE");
  EXPECT_EQ(QuantizeWeightInt8(std::vector<float>{1, 0x1p60f}, Layout::kKN, 2, 1, &weight).reason,
            "WEIGHT_RANGE");
  EXPECT_EQ(QuantizeWeightInt4(std::vector<float>{1, 2, 3}, Layout::kKN, 3, 1, 2, &weight).reason,
            "GROUP_SIZE");
  EXPECT_EQ(QuantizeWeightInt8({}, Layout::kKN, 0, 1, &weight).reason, "SHAPE");
}

// The integers of QuantizeActivations times an identity are what the reference sums.
TEST(QuantizeActivationsTest, AgreesWithTheReference) {
  test::Random random(3);
  const int64_t k = 48;
  std::vector<int8_t> identity(static_cast<size_t>(k * k), 0);
  for (int64_t i = 0; i < k; i++) identity[static_cast<size_t>(i * k + i)] = 1;
  const test::TestWeight weight = test::Int8Weight(Layout::kKN, k, k, identity);
  for (DataType dtype :
       {DataType::kInt8, DataType::kUint8, DataType::kF32, DataType::kF16, DataType::kBF16}) {
    for (Quantization quantization :
         {Quantization::kNone, Quantization::kStatic, Quantization::kDynamic}) {
      if (IsFloat(dtype) == (quantization == Quantization::kNone)) continue;
      test::TestActivations a =
          IsFloat(dtype)
              ? FloatActivations(dtype, 16, k, test::FloatRows::kCorners, quantization, &random)
              : IntegerActivations(dtype, 16, k, test::Fill::kRandom, &random);
      if (quantization == Quantization::kStatic) a.scales = {0.37f}, a.zero_points = {-9};
      if (!IsFloat(dtype)) a.zero_points = {100};
      SplitAtRandom(&a, 5, &random);
      QuantizedActivations quantized;
      ASSERT_TRUE(QuantizeActivations(a.view(), &quantized).ok());
      const auto want = Multiply(weight, a, {.dtype = DataType::kInt32});
      ASSERT_TRUE(want.fault.ok()) << want.fault.message;
      const auto sums = want.As<int32_t>();
      for (size_t i = 0; i < sums.size(); i++)
        ASSERT_EQ(quantized.values[i] - quantized.zero_points[i / static_cast<size_t>(k)], sums[i])
            << i;
      if (quantization == Quantization::kDynamic) {
        EXPECT_EQ(quantized.scales, want.details.scales_used);
      }
    }
  }
}

TEST(QuantizeActivationsTest, RefusesWhatTheReferenceRefuses) {
  QuantizedActivations quantized;
  const auto a =
      test::FloatActivationsOf(DataType::kF16, 1, 2, {1, INFINITY}, Quantization::kDynamic);
  EXPECT_EQ(QuantizeActivations(a.view(), &quantized).reason, "ACTIVATION_RANGE");
}

}  // namespace
}  // namespace qmatmul
