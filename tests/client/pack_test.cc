// INT4 and INT2 values to the contract's bytes, worked out by hand.
#include "client/pack.h"

#include <gtest/gtest.h>

namespace qmatmul::client {
namespace {

struct Case {
  const char* what;
  DataType dtype;
  std::vector<int8_t> values;
  int64_t line;
  std::vector<int> bytes;
};

TEST(Pack, Bytes) {
  const Case cases[] = {
      {"both ends of a nibble", DataType::kInt4, {-8, 7}, 2, {0xf0}},
      {"0 is 8; the low nibble is first", DataType::kInt4, {0, 1}, 2, {0x98}},
      {"an odd line ends with a zero nibble", DataType::kInt4, {0, 0, 0}, 3, {0x88, 0x08}},
      {"every line starts on a byte", DataType::kInt4, {-7, 7, -7}, 1, {0x01, 0x0f, 0x01}},
      {"codes 0, 1, 2 from the low bits", DataType::kInt2, {-1, 0, 1, 0}, 4, {0x64}},
      {"a line of five", DataType::kInt2, {1, 1, 1, 1, 1}, 5, {0xaa, 0x02}},
      {"two lines of one", DataType::kInt2, {0, 1}, 1, {0x01, 0x02}},
      {"nothing", DataType::kInt2, {}, 3, {}},
  };
  for (const Case& c : cases) {
    const auto packed = PackWeight(c.dtype, c.values, c.line);
    ASSERT_TRUE(packed.ok()) << c.what << packed.status().ToString();
    std::vector<int> bytes;
    for (const std::byte byte : *packed) bytes.push_back(static_cast<int>(byte));
    EXPECT_EQ(bytes, c.bytes) << c.what;
  }
}

TEST(Pack, WhatDoesNotFitIsNamed) {
  const auto reason = [](DataType dtype, std::vector<int8_t> values, int64_t line) {
    const auto packed = PackWeight(dtype, values, line);
    return packed.ok() ? std::string("ok") : packed.status().ToString();
  };
  EXPECT_EQ(reason(DataType::kInt4, {0, 1, 2, 8}, 2),
            "INVALID_ARGUMENT WEIGHT_VALUE: value [1, 1] = 8 is outside -8 ... 7 of INT4");
  EXPECT_EQ(reason(DataType::kInt2, {0, -2}, 2),
            "INVALID_ARGUMENT WEIGHT_VALUE: value [0, 1] = -2 is outside -1 ... 1 of INT2");
  EXPECT_EQ(reason(DataType::kInt4, {0, 1, 2}, 2),
            "INVALID_ARGUMENT BYTES_MISMATCH: 3 values are not whole lines of 2");
  EXPECT_EQ(reason(DataType::kInt8, {0}, 1),
            "INVALID_ARGUMENT DTYPE_MISMATCH: INT4 and INT2 weights are packed, not INT8");
}

}  // namespace
}  // namespace qmatmul::client
