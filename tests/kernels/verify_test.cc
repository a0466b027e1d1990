// Freivalds' check: right products pass whatever their types, and one wrong element never does.
#include "kernels/verify.h"

#include <gtest/gtest.h>

#include "kernels/devices.h"
#include "kernels/reference.h"
#include "tests/support/reference_call.h"
#include "tests/support/test_tensors.h"

namespace qmatmul {
namespace {

using test::Fill;
using test::Multiply;
using test::Random;
using test::TestActivations;
using test::TestWeight;

CheckVectors VectorsOf(const ReferenceWeight& weight) {
  CheckVectors vectors(weight.spec.k, weight.spec.n);
  vectors.AddRows(0, weight.values);
  vectors.Seal();
  return vectors;
}

TEST(Verify, ByHand) {
  // W = [5 6; 7 8], r = [2 3]: v = [28 38], V = 66. Row [1 2], za = 1: 28 + 76 − 66 = 38; the sums
  // are (0·5 + 1·7, 0·6 + 1·8) = [7 8], 7·2 + 8·3 = 38.
  CheckVectors vectors(2, std::vector<uint32_t>{2, 3});
  vectors.AddRows(0, std::vector<int8_t>{5, 6});
  vectors.AddRows(1, std::vector<int8_t>{7, 8});
  vectors.Seal();
  EXPECT_EQ(vectors.RowCheck(std::vector<int16_t>{1, 2}, 1), 38u);
  CheckVectors columns(2, std::vector<uint32_t>{2, 3});
  columns.AddColumns(0, std::vector<int8_t>{5, 7, 6, 8});
  columns.Seal();
  EXPECT_EQ(columns.RowCheck(std::vector<int16_t>{1, 2}, 1), 38u);
}

TEST(Verify, TheReferencesRowsPass) {
  Random random(21);
  for (DataType dtype : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
    const TestWeight weight =
        MakeWeight(test::MakeSpec(dtype, Layout::kNK, 96, 21, 32), Fill::kRandom, &random);
    ReferenceWeight plain;
    ASSERT_TRUE(DecodeWeight(weight.view(), &plain).ok());
    const CheckVectors vectors = VectorsOf(plain);
    EXPECT_TRUE(vectors.Intact());
    for (DataType type : {DataType::kInt8, DataType::kUint8, DataType::kF32}) {
      TestActivations a = type == DataType::kF32
                              ? FloatActivations(type, 9, 96, test::FloatRows::kCorners,
                                                 Quantization::kDynamic, &random)
                              : IntegerActivations(type, 9, 96, Fill::kRandom, &random);
      if (type != DataType::kF32) a.zero_points = {77};
      const auto result =
          Multiply(plain, a.view(), Arithmetic::kW8A8, {.dtype = DataType::kF16}, vectors.r());
      ASSERT_TRUE(result.fault.ok()) << result.fault.message;
      QuantizedActivations quantized;
      ASSERT_TRUE(QuantizeActivations(a.view(), &quantized).ok());
      EXPECT_EQ(FirstWrongRow(vectors, quantized, result.details.row_checks), std::nullopt);
    }
  }
}

TEST(Verify, OneWrongElementIsAlwaysCaught) {
  Random random(22);
  const int64_t rows = 3, k = 40, n = 17;
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, k, n), Fill::kRandom, &random);
  ReferenceWeight plain;
  ASSERT_TRUE(DecodeWeight(weight.view(), &plain).ok());
  const CheckVectors vectors = VectorsOf(plain);
  const TestActivations a = IntegerActivations(DataType::kInt8, rows, k, Fill::kRandom, &random);
  QuantizedActivations quantized;
  ASSERT_TRUE(QuantizeActivations(a.view(), &quantized).ok());
  const auto sums =
      Multiply(plain, a.view(), Arithmetic::kW8A8, {.dtype = DataType::kInt32}).As<int32_t>();
  for (size_t element = 0; element < sums.size(); element++) {
    for (int bit = 0; bit < 32; bit++) {
      std::vector<uint64_t> checks(static_cast<size_t>(rows), 0);
      for (size_t i = 0; i < sums.size(); i++) {
        const uint32_t flipped =
            static_cast<uint32_t>(sums[i]) ^ (i == element ? uint32_t{1} << bit : 0);
        checks[i / static_cast<size_t>(n)] +=
            static_cast<uint64_t>(int64_t{static_cast<int32_t>(flipped)}) *
            vectors.r()[i % static_cast<size_t>(n)];
      }
      ASSERT_EQ(FirstWrongRow(vectors, quantized, checks), static_cast<int64_t>(element) / n)
          << "bit " << bit;
    }
  }
}

TEST(Verify, DrawsAreSecretAndInRange) {
  const CheckVectors a(1, 1000), b(1, 1000);
  EXPECT_FALSE(std::equal(a.r().begin(), a.r().end(), b.r().begin()));
  for (uint32_t value : a.r()) EXPECT_TRUE(value >= 1 && value < (uint32_t{1} << 31)) << value;
}

TEST(Verify, AFlippedBitInRShows) {
  CheckVectors vectors(2, std::vector<uint32_t>{2, 3});
  vectors.AddRows(0, std::vector<int8_t>{5, 6, 7, 8});
  vectors.Seal();
  ASSERT_TRUE(vectors.Intact());
  const_cast<uint32_t&>(vectors.r()[1]) ^= 0x400;  // what bad memory would do
  EXPECT_FALSE(vectors.Intact());
}

}  // namespace
}  // namespace qmatmul
