// What numerics §0, §1 and §3 refuse, row by row: the reference is also the oracle of refusals.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "kernels/reference.h"
#include "tests/support/reference_call.h"
#include "tests/support/test_tensors.h"

namespace qmatmul {
namespace {

using test::Fill;
using test::Random;
using test::TestActivations;
using test::TestWeight;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Call {
  TestWeight weight;
  TestActivations activations;
  Epilogue epilogue{.dtype = DataType::kF32};
  Arithmetic arithmetic = Arithmetic::kW8A8;
};

// A good call that rows of the table spoil: INT8 weight [8, 3], two rows.
Call GoodCall(DataType dtype, Quantization quantization) {
  Random random(1);
  Call call;
  call.weight = MakeWeight(
      test::WithScales(test::MakeSpec(DataType::kInt8, Layout::kKN, 8, 3), DataType::kF32, 3),
      Fill::kRandom, &random);
  call.activations = IsFloat(dtype) ? FloatActivations(dtype, 2, 8, test::FloatRows::kOrdinary,
                                                       quantization, &random)
                                    : IntegerActivations(dtype, 2, 8, Fill::kRandom, &random);
  call.activations.quantization = quantization;
  if (quantization == Quantization::kStatic) call.activations.scales = {0.5f};
  return call;
}

void SetFloat(TestActivations* a, size_t index, float value) {
  std::memcpy(a->memory[0]->data() + index * 4, &value, 4);
}
void SetScale(TestWeight* w, size_t index, float value) {
  std::memcpy(w->scales.data() + index * 4, &value, 4);
}

struct Refusal {
  const char* name;
  const char* reason;  // "" when it must be let in
  DataType dtype;
  Quantization quantization;
  std::function<void(Call*)> spoil;
};

constexpr DataType kS8 = DataType::kInt8, kU8 = DataType::kUint8, kF32 = DataType::kF32;
constexpr Quantization kNone = Quantization::kNone, kStatic = Quantization::kStatic,
                       kDynamic = Quantization::kDynamic;

const Refusal kRefusals[] = {
    {"GoodInt8", "", kS8, kNone, [](Call*) {}},
    {"GoodDynamic", "", kF32, kDynamic, [](Call*) {}},
    {"GoodStatic", "", kF32, kStatic, [](Call*) {}},
    {"ActivationNaN", "ACTIVATION_RANGE", kF32, kDynamic,
     [](Call* c) { SetFloat(&c->activations, 9, kNaN); }},
    {"ActivationInf", "ACTIVATION_RANGE", kF32, kDynamic,
     [](Call* c) { SetFloat(&c->activations, 0, -kInf); }},
    {"ActivationAtLimit", "", kF32, kDynamic,
     [](Call* c) { SetFloat(&c->activations, 3, -0x1p53f); }},
    {"ActivationOverLimit", "ACTIVATION_RANGE", kF32, kStatic,
     [](Call* c) { SetFloat(&c->activations, 15, std::nextafter(0x1p53f, kInf)); }},
    {"WeightOnlyNaN", "ACTIVATION_RANGE", kF32, kNone,
     [](Call* c) {
       c->arithmetic = Arithmetic::kW8A32;
       SetFloat(&c->activations, 1, kNaN);
     }},
    {"WeightScaleNaN", "SCALE_RANGE", kS8, kNone, [](Call* c) { SetScale(&c->weight, 1, kNaN); }},
    {"WeightScaleInf", "SCALE_RANGE", kS8, kNone, [](Call* c) { SetScale(&c->weight, 0, kInf); }},
    {"WeightScaleMinusZero", "", kS8, kNone, [](Call* c) { SetScale(&c->weight, 0, -0.0f); }},
    {"WeightScaleLeast", "", kS8, kNone, [](Call* c) { SetScale(&c->weight, 0, -0x1p-47f); }},
    {"WeightScaleTooSmall", "SCALE_RANGE", kS8, kNone,
     [](Call* c) { SetScale(&c->weight, 2, std::nextafter(0x1p-47f, 0.0f)); }},
    {"WeightScaleTooLarge", "SCALE_RANGE", kS8, kNone,
     [](Call* c) { SetScale(&c->weight, 2, std::nextafter(-0x1p47f, -kInf)); }},
    {"BiasAtLimit", "", kS8, kNone,
     [](Call* c) {
       c->weight.bias = {0x1p120f, -0x1p120f, 0}, c->weight.spec.bias_count = 3;
     }},
    {"BiasOverLimit", "BIAS_RANGE", kS8, kNone,
     [](Call* c) {
       c->weight.bias = {0, 0, 0x1.1p120f}, c->weight.spec.bias_count = 3;
     }},
    {"BiasNaN", "BIAS_RANGE", kS8, kNone,
     [](Call* c) {
       c->weight.bias = {0, kNaN, 0}, c->weight.spec.bias_count = 3;
     }},
    {"ActivationScaleInf", "SCALE_RANGE", kS8, kNone,
     [](Call* c) { c->activations.scales = {kInf}; }},
    {"ActivationScaleZero", "", kS8, kNone,
     [](Call* c) {
       c->activations.scales = {0, -0.0f};
     }},
    {"StaticScaleZero", "SCALE_RANGE", kF32, kStatic,
     [](Call* c) { c->activations.scales = {-0.0f}; }},
    {"OutputScaleZero", "SCALE_RANGE", kS8, kNone,
     [](Call* c) { c->epilogue = {.dtype = DataType::kInt8, .scaled = true, .scale = 0}; }},
    {"OutputScaleNegative", "SCALE_RANGE", kS8, kNone,
     [](Call* c) { c->epilogue = {.dtype = DataType::kInt8, .scaled = true, .scale = -1}; }},
    {"OutputScaleNaN", "SCALE_RANGE", kS8, kNone,
     [](Call* c) { c->epilogue = {.dtype = DataType::kInt8, .scaled = true, .scale = kNaN}; }},
    {"ZeroPointsAtBothEnds", "", kS8, kNone,
     [](Call* c) {
       c->activations.zero_points = {-128, 127};
     }},
    {"ZeroPoint128", "ZERO_POINT_RANGE", kS8, kNone,
     [](Call* c) {
       c->activations.zero_points = {0, 128};
     }},
    {"UnsignedZeroPoint255", "", kU8, kNone, [](Call* c) { c->activations.zero_points = {255}; }},
    {"UnsignedZeroPointMinus1", "ZERO_POINT_RANGE", kU8, kNone,
     [](Call* c) { c->activations.zero_points = {-1}; }},
    {"StaticZeroPoint128", "ZERO_POINT_RANGE", kF32, kStatic,
     [](Call* c) { c->activations.zero_points = {128}; }},
    {"OutputZeroPoint128", "ZERO_POINT_RANGE", kS8, kNone,
     [](Call* c) { c->epilogue = {.dtype = DataType::kInt8, .scaled = true, .zero_point = 128}; }},
    {"OutputZeroPointInt16", "", kS8, kNone,
     [](Call* c) {
       c->epilogue = {.dtype = DataType::kInt16, .scaled = true, .zero_point = -32768};
     }},
    {"FloatWithoutQuantization", "QUANTIZATION_SPEC", kF32, kNone, [](Call*) {}},
    {"DynamicWithZeroPoint", "QUANTIZATION_SPEC", kF32, kDynamic,
     [](Call* c) { c->activations.zero_points = {1}; }},
    {"DynamicWithScale", "QUANTIZATION_SPEC", kF32, kDynamic,
     [](Call* c) { c->activations.scales = {1}; }},
    {"DynamicIntegers", "QUANTIZATION_SPEC", kS8, kDynamic, [](Call*) {}},
    {"StaticWithoutScale", "QUANTIZATION_SPEC", kF32, kStatic,
     [](Call* c) { c->activations.scales = {}; }},
    {"ThreeScalesForTwoRows", "QUANTIZATION_SPEC", kS8, kNone,
     [](Call* c) {
       c->activations.scales = {1, 1, 1};
     }},
    {"WeightOnlyIntegers", "QUANTIZATION_SPEC", kS8, kNone,
     [](Call* c) { c->arithmetic = Arithmetic::kW8A32; }},
    {"WeightOnlyDynamic", "QUANTIZATION_SPEC", kF32, kDynamic,
     [](Call* c) { c->arithmetic = Arithmetic::kW8A32; }},
    {"WeightOnly", "", kF32, kNone, [](Call* c) { c->arithmetic = Arithmetic::kW8A32; }},
    {"RawOfWeightOnly", "OUTPUT_SPEC", kF32, kNone,
     [](Call* c) {
       c->arithmetic = Arithmetic::kW8A32, c->epilogue = {.dtype = DataType::kInt32};
     }},
    {"RawWithBias", "OUTPUT_SPEC", kS8, kNone,
     [](Call* c) {
       c->epilogue = {}, c->weight.bias = {1, 2, 3}, c->weight.spec.bias_count = 3;
     }},
    {"RawSkippingBias", "", kS8, kNone,
     [](Call* c) {
       c->epilogue = {.skip_bias = true}, c->weight.bias = {1, 2, 3}, c->weight.spec.bias_count = 3;
     }},
    {"RawWithRelu", "OUTPUT_SPEC", kS8, kNone,
     [](Call* c) { c->epilogue = {.dtype = DataType::kInt8, .activation = Activation::kRelu}; }},
    {"Int32WithScale", "OUTPUT_SPEC", kS8, kNone, [](Call* c) { c->epilogue = {.scaled = true}; }},
    {"FloatWithScale", "OUTPUT_SPEC", kS8, kNone,
     [](Call* c) { c->epilogue = {.dtype = DataType::kF16, .scaled = true}; }},
    {"ZeroPointWithoutScale", "OUTPUT_SPEC", kS8, kNone,
     [](Call* c) { c->epilogue = {.dtype = DataType::kInt8, .zero_point = 1}; }},
    {"OutputUint8", "DTYPE", kS8, kNone, [](Call* c) { c->epilogue.dtype = DataType::kUint8; }},
    {"OtherK", "K_MISMATCH", kS8, kNone,
     [](Call* c) { c->activations.k = 4, c->activations.rows = 4; }},
    {"BytesMissing", "SHAPE", kS8, kNone, [](Call* c) { c->activations.rows = 3; }},
    {"ActivationsInt32", "DTYPE", kS8, kNone,
     [](Call* c) { c->activations.dtype = DataType::kInt32; }},
};

TEST(ReferenceRefusals, Table) {
  for (const Refusal& row : kRefusals) {
    Call call = GoodCall(row.dtype, row.quantization);
    row.spoil(&call);
    const Fault fault =
        Multiply(call.weight, call.activations, call.epilogue, call.arithmetic).fault;
    EXPECT_EQ(fault.reason, row.reason) << row.name << ": " << fault.message;
    EXPECT_EQ(fault.ok(), *row.reason == '\0') << row.name;
  }
}

TEST(ReferenceRefusals, GroupWiseRawSums) {
  Random random(2);
  Call call = GoodCall(kS8, kNone);
  call.epilogue = {.dtype = DataType::kInt32};
  call.weight =
      MakeWeight(test::MakeSpec(DataType::kInt4, Layout::kKN, 8, 3, 4), Fill::kRandom, &random);
  EXPECT_EQ(Multiply(call.weight, call.activations, call.epilogue).fault.reason, "OUTPUT_SPEC");
  call.weight =
      MakeWeight(test::MakeSpec(DataType::kInt4, Layout::kKN, 8, 3, 8), Fill::kRandom, &random);
  EXPECT_TRUE(Multiply(call.weight, call.activations, call.epilogue).fault.ok())
      << "one group is per-column";
}

TEST(ReferenceRefusals, WideOperandsBoundK) {
  Random random(3);
  for (int64_t k : {int64_t{65'793}, int64_t{65'794}}) {
    const TestWeight weight =
        MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, k, 1), Fill::kLowest, &random);
    const std::string wide = k > kInnerMaxWide ? "K_TOO_LARGE" : "";
    TestActivations a = IntegerActivations(kU8, 1, k, Fill::kHighest, &random);
    auto result = Multiply(weight, a, {});
    EXPECT_EQ(result.fault.reason, wide);
    // 65,793 · 255 · (−128) = −2,147,483,520 fits in an int32 by 128.
    if (wide.empty()) { EXPECT_EQ(result.As<int32_t>()[0], -2'147'483'520); }
    a = IntegerActivations(kS8, 1, k, Fill::kHighest, &random);
    EXPECT_EQ(Multiply(weight, a, {}).fault.reason, "") << "without a zero point K may be larger";
    a.zero_points = {-1};
    EXPECT_EQ(Multiply(weight, a, {}).fault.reason, wide);
  }
}

TEST(ReferenceRefusals, CodesAndPaddingOfPlainWeights) {
  ReferenceWeight decoded;
  TestWeight w{.spec = test::MakeSpec(DataType::kInt2, Layout::kKN, 1, 3),
               .data = {std::byte{0b0011'0000}},
               .scales = {},
               .bias = {}};
  EXPECT_EQ(DecodeWeight(w.view(), &decoded).reason, "INT2_CODE");
  w.data = {std::byte{0b0100'0000}};
  EXPECT_EQ(DecodeWeight(w.view(), &decoded).reason, "PADDING_BITS");
  w.data = {std::byte{0b0010'1010}};
  EXPECT_TRUE(DecodeWeight(w.view(), &decoded).ok());
  Random random(4);
  w = MakeWeight(test::MakeSpec(DataType::kInt4, Layout::kNK, 3, 2), Fill::kRandom, &random);
  EXPECT_TRUE(DecodeWeight(w.view(), &decoded).ok());
  w.data[3] |= std::byte{0x10};  // line 1, its second byte's unused nibble
  EXPECT_EQ(DecodeWeight(w.view(), &decoded).reason, "PADDING_BITS");
  w.spec.k = 0;
  EXPECT_EQ(DecodeWeight(w.view(), &decoded).reason, "SHAPE");
}

}  // namespace
}  // namespace qmatmul
