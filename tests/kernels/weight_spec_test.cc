// What CheckSpec refuses and how it says so, each rule alone on a spec that is right but for it; and the line of a
// spec that a weight's digest begins with.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "kernels/matmul.h"

namespace qmatmul {
namespace {

WeightSpec Int8() {
  return {.dtype = DataType::kInt8,
          .layout = Layout::kNK,
          .k = 12,
          .n = 5,
          .scale_dtype = DataType::kF16,
          .scale_count = 5,
          .bias_count = 5};
}

WeightSpec Int4() {
  return {.dtype = DataType::kInt4,
          .layout = Layout::kKN,
          .k = 12,
          .n = 5,
          .group_size = 4,
          .scale_dtype = DataType::kBF16,
          .scale_count = 15};
}

TEST(WeightSpec, RightOnesPass) {
  EXPECT_TRUE(CheckSpec(Int8()).ok());
  EXPECT_TRUE(CheckSpec(Int4()).ok());
  for (const int64_t count : {0, 1, 5}) {
    WeightSpec spec = Int8();
    spec.scale_count = count;
    if (count == 0) spec.scale_dtype = DataType::kUnspecified;
    EXPECT_TRUE(CheckSpec(spec).ok()) << count;
  }
  WeightSpec limits = Int8();
  limits.k = kInnerMax;
  limits.n = limits.scale_count = limits.bias_count = kColumnsMax;
  EXPECT_TRUE(CheckSpec(limits).ok()) << CheckSpec(limits).message;
}

TEST(WeightSpec, EachRuleNamesTheValueAndTheLimit) {
  const struct {
    WeightSpec spec;
    std::function<void(WeightSpec*)> spoil;
    std::string reason, in_message;
  } rows[] = {
      {Int8(), [](WeightSpec* s) { s->dtype = DataType::kUnspecified; }, "DTYPE_MISSING", "never"},
      {Int8(), [](WeightSpec* s) { s->dtype = DataType::kUint8; }, "DTYPE", "UINT8"},
      {Int8(), [](WeightSpec* s) { s->dtype = DataType::kF16; }, "DTYPE", "F16 is not"},
      {Int8(), [](WeightSpec* s) { s->layout = Layout::kUnspecified; }, "LAYOUT_MISSING", "KN or"},
      {Int8(), [](WeightSpec* s) { s->k = 0; }, "SHAPE", "k = 0"},
      {Int8(), [](WeightSpec* s) { s->n = -3; }, "SHAPE", "n = -3"},
      {Int8(), [](WeightSpec* s) { s->k = kInnerMax + 1; }, "K_TOO_LARGE",
       std::to_string(kInnerMax)},
      {Int8(), [](WeightSpec* s) { s->n = kColumnsMax + 1; }, "N_TOO_LARGE",
       std::to_string(kColumnsMax)},
      {Int4(), [](WeightSpec* s) { s->group_size = 5; }, "GROUP_SIZE", "divide k = 12"},
      {Int4(), [](WeightSpec* s) { s->group_size = 0; }, "GROUP_SIZE", "group_size = 0"},
      {Int4(), [](WeightSpec* s) { s->group_size = 24; }, "GROUP_SIZE", "group_size = 24"},
      {Int8(), [](WeightSpec* s) { s->group_size = 4; }, "GROUP_SIZE", "INT4 only"},
      {Int8(), [](WeightSpec* s) { s->scale_count = 2; }, "SCALE_COUNT", "0, 1 or n = 5"},
      {Int4(), [](WeightSpec* s) { s->scale_count = 5; }, "SCALE_COUNT", "n = 15"},
      {Int8(), [](WeightSpec* s) { s->scale_dtype = DataType::kInt8; }, "SCALE_DTYPE", "required"},
      {Int8(), [](WeightSpec* s) { s->scale_count = 0; }, "SCALE_DTYPE", "scale_count is 0"},
      {Int8(), [](WeightSpec* s) { s->bias_count = 4; }, "BIAS_COUNT", "bias_count = 4"},
  };
  for (const auto& row : rows) {
    WeightSpec spec = row.spec;
    row.spoil(&spec);
    const Fault fault = CheckSpec(spec);
    EXPECT_EQ(fault.kind, FaultKind::kInvalidArgument) << row.reason << ", " << row.in_message;
    EXPECT_EQ(fault.reason, row.reason) << fault.message;
    EXPECT_NE(fault.message.find(row.in_message), std::string::npos) << fault.message;
  }
}

// Clients compute it too: a letter that changes makes every stored digest another's.
TEST(WeightSpec, IdentityLineHasAllThatMakesWeightsDiffer) {
  EXPECT_EQ(IdentityLine(Int8()), "qmatmul.weight.v1;INT8;NK;12;5;0;F16;5;5\n");
  EXPECT_EQ(IdentityLine(Int4()), "qmatmul.weight.v1;INT4;KN;12;5;4;BF16;15;0\n");
  WeightSpec bare = Int8();
  bare.dtype = DataType::kInt2;
  bare.scale_count = bare.bias_count = 0;
  EXPECT_EQ(IdentityLine(bare), "qmatmul.weight.v1;INT2;NK;12;5;0;NONE;0;0\n");
}

}  // namespace
}  // namespace qmatmul
