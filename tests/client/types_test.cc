// The names of the SDK's enumerators are those of the contract's values of the same number.
#include "client/types.h"

#include <gtest/gtest.h>

#include "qmatmul/v1/qmatmul.pb.h"

namespace qmatmul::client {
namespace {

template <class Enum>
void ExpectNames(const google::protobuf::EnumDescriptor* contract, const std::string& prefix) {
  for (int i = 0; i < contract->value_count(); ++i) {
    const auto value = static_cast<Enum>(contract->value(i)->number());
    EXPECT_EQ(prefix + std::string(NameOf(value)), contract->value(i)->name());
  }
  EXPECT_EQ(NameOf(static_cast<Enum>(contract->value_count())), "UNKNOWN");
  EXPECT_EQ(NameOf(static_cast<Enum>(255)), "UNKNOWN");
}

TEST(Types, NamesAreTheContracts) {
  ExpectNames<DataType>(v1::DataType_descriptor(), "DATA_TYPE_");
  ExpectNames<Layout>(v1::Layout_descriptor(), "LAYOUT_");
  ExpectNames<Overflow>(v1::Overflow_descriptor(), "OVERFLOW_");
  ExpectNames<Activation>(v1::Activation_descriptor(), "ACTIVATION_");
  ExpectNames<Arithmetic>(v1::Arithmetic_descriptor(), "ARITHMETIC_");
}

TEST(Types, Bits) {
  const std::pair<DataType, int> rows[] = {
      {DataType::kUnspecified, 0}, {DataType::kInt8, 8},          {DataType::kUint8, 8},
      {DataType::kInt16, 16},      {DataType::kInt32, 32},        {DataType::kF32, 32},
      {DataType::kF16, 16},        {DataType::kBF16, 16},         {DataType::kInt4, 4},
      {DataType::kInt2, 2},        {static_cast<DataType>(99), 0}};
  for (const auto& [dtype, bits] : rows) EXPECT_EQ(BitsOf(dtype), bits) << NameOf(dtype);
}

}  // namespace
}  // namespace qmatmul::client
