// The reference against the vector set that numpy made (make_vectors.py): two independent readings
// of docs/numerics.md must give the same bytes.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>

#include "kernels/reference.h"

namespace qmatmul {
namespace {

const std::map<std::string, DataType> kTypes = {
    {"INT8", DataType::kInt8},       {"UINT8", DataType::kUint8}, {"INT16", DataType::kInt16},
    {"INT32", DataType::kInt32},     {"INT4", DataType::kInt4},   {"INT2", DataType::kInt2},
    {"F32", DataType::kF32},         {"F16", DataType::kF16},     {"BF16", DataType::kBF16},
    {"NONE", DataType::kUnspecified}};

// One line of vectors.txt: words "key=value"; tensors are "key=offset:bytes" into vectors.bin.
class VectorCase {
 public:
  VectorCase(const std::string& line, const std::string* blob) : blob_(blob) {
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      fields_[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  const std::string& text(const std::string& key) const { return fields_.at(key); }
  int64_t number(const std::string& key) const { return std::stoll(text(key)); }
  DataType type(const std::string& key) const { return kTypes.at(text(key)); }
  template <typename T>
  std::vector<T> tensor(const std::string& key) const {
    const size_t colon = text(key).find(':');
    const size_t offset = std::stoull(text(key)), bytes = std::stoull(text(key).substr(colon + 1));
    std::vector<T> values(bytes / sizeof(T));
    if (bytes > 0) std::memcpy(values.data(), blob_->data() + offset, bytes);
    return values;
  }

 private:
  std::map<std::string, std::string> fields_;
  const std::string* blob_;
};

std::string ReadAll(const std::string& name) {
  std::ifstream file(std::string(QMATMUL_VECTORS_DIR) + "/" + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

Epilogue EpilogueOf(const VectorCase& c) {
  Epilogue e;
  e.dtype = c.type("output_dtype");
  e.overflow = c.text("overflow") == "WRAP" ? Overflow::kWrap : Overflow::kSaturate;
  e.scaled = c.number("scaled") != 0;
  e.scale = std::bit_cast<float>(static_cast<uint32_t>(c.number("output_scale_bits")));
  e.zero_point = static_cast<int32_t>(c.number("output_zero_point"));
  e.activation = c.number("relu") != 0 ? Activation::kRelu : Activation::kNone;
  e.skip_bias = c.number("skip_bias") != 0;
  return e;
}

void Check(const VectorCase& c) {
  const WeightSpec spec{.dtype = c.type("weight_dtype"),
                        .layout = c.text("layout") == "KN" ? Layout::kKN : Layout::kNK,
                        .k = c.number("k"),
                        .n = c.number("n"),
                        .group_size = c.number("group_size"),
                        .scale_dtype = c.type("scale_dtype"),
                        .scale_count = c.number("scale_count"),
                        .bias_count = c.number("bias_count")};
  const auto data = c.tensor<std::byte>("weight"), scales = c.tensor<std::byte>("weight_scales");
  const auto bias = c.tensor<float>("bias");
  ASSERT_EQ(static_cast<int64_t>(data.size()), spec.data_bytes());
  ReferenceWeight weight;
  Fault fault = DecodeWeight({spec, data.data(), scales.data(), bias.data()}, &weight);
  ASSERT_TRUE(fault.ok()) << fault.reason << ": " << fault.message;

  const auto bytes = c.tensor<std::byte>("activations");
  const auto activation_scales = c.tensor<float>("activation_scales");
  const auto zero_points = c.tensor<int32_t>("zero_points");
  const ByteSpan span{bytes.data(), bytes.size()};
  const std::string& q = c.text("quantization");
  const ActivationView activations{c.type("activation_dtype"),
                                   c.number("rows"),
                                   spec.k,
                                   {&span, 1},
                                   q == "DYNAMIC"  ? Quantization::kDynamic
                                   : q == "STATIC" ? Quantization::kStatic
                                                   : Quantization::kNone,
                                   activation_scales,
                                   zero_points};
  const Epilogue epilogue = EpilogueOf(c);
  const auto want = c.tensor<std::byte>("output");
  std::vector<std::byte> got(want.size());
  const int64_t row_bytes = spec.n * BitsOf(epilogue.dtype) / 8;
  ASSERT_EQ(static_cast<int64_t>(want.size()), row_bytes * activations.rows);
  ReferenceDetails details;
  const Arithmetic arithmetic =
      c.text("arithmetic") == "W8A32" ? Arithmetic::kW8A32 : Arithmetic::kW8A8;
  fault =
      ReferenceMatMul(weight, activations, arithmetic, epilogue, {got.data(), row_bytes}, &details);
  ASSERT_TRUE(fault.ok()) << fault.reason << ": " << fault.message;
  EXPECT_TRUE(got == want) << "bytes differ from numpy's";
  EXPECT_EQ(details.outcome.overflow_count, c.number("overflow_count"));
  EXPECT_EQ(details.scales_used, c.tensor<float>("scales_used"));
}

TEST(NumpyVectors, TheReferenceGivesTheSameBytes) {
  const std::string blob = ReadAll("vectors.bin");
  std::istringstream lines(ReadAll("vectors.txt"));
  int count = 0;
  for (std::string line; std::getline(lines, line); count++) {
    SCOPED_TRACE(line);
    Check(VectorCase(line, &blob));
  }
  EXPECT_GE(count, 88);
}

}  // namespace
}  // namespace qmatmul
