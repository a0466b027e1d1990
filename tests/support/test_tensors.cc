#include "tests/support/test_tensors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/half.h"

namespace qmatmul::test {
namespace {

void AppendFloat(std::vector<std::byte>* bytes, DataType dtype, float value) {
  std::array<std::byte, 4> raw;
  size_t width = 2;
  if (dtype == DataType::kF32) {
    width = 4;
    std::memcpy(raw.data(), &value, width);
  } else {
    const uint16_t half = dtype == DataType::kF16 ? FloatToF16(value) : FloatToBF16(value);
    std::memcpy(raw.data(), &half, width);
  }
  bytes->insert(bytes->end(), raw.begin(), raw.begin() + width);
}

// A value of [low, high] by the fill's rule.
int Draw(Fill fill, int low, int high, int64_t index, Random* random) {
  switch (fill) {
    case Fill::kLowest: return low;
    case Fill::kHighest: return high;
    case Fill::kMinusHighest: return std::max(low, -high);
    case Fill::kAlternating: return index % 2 == 0 ? low : high;
    case Fill::kSmall: return std::clamp(static_cast<int>(random->Between(-4, 4)), low, high);
    case Fill::kRandom: break;
  }
  return static_cast<int>(random->Between(low, high));
}

// Values of one row for FloatRows::kCorners.
float CornerValue(DataType dtype, int64_t row, int64_t k, Random* random) {
  const float sign = random->Chance(50) ? -1.0f : 1.0f;
  switch (row % 8) {
    case 0: return 0.0f;
    case 1: return -0.0f;
    case 2:  // denormals of the type
      return sign * (dtype == DataType::kF16 ? 0x1p-24f : 0x1p-140f) *
             static_cast<float>(random->Between(0, 500));
    case 3: return sign * 0x1p-101f * std::fabs(random->Unit());  // under 2^-100: all zero
    case 4: return sign * (k % 3 == 0 ? 0x1p-100f : 0x1p-101f);   // just not under it
    case 5:  // amax = 127 makes inv = 1, so every half is a tie of rne
      return k == 0 ? 127.0f : static_cast<float>(random->Between(-253, 253)) / 2;
    case 6:
      return dtype == DataType::kF16 ? sign * 65504.0f : sign * 0x1p53f * std::fabs(random->Unit());
    default: return k == 0 ? 60000.0f : random->Unit();  // an outlier that flattens its row
  }
}

}  // namespace

std::vector<std::byte> TestWeight::upload() const {
  std::vector<std::byte> bytes = data;
  bytes.insert(bytes.end(), scales.begin(), scales.end());
  const auto* first = reinterpret_cast<const std::byte*>(bias.data());
  bytes.insert(bytes.end(), first, first + bias.size() * sizeof(float));
  return bytes;
}

WeightSpec MakeSpec(DataType dtype, Layout layout, int64_t k, int64_t n, int64_t group_size) {
  WeightSpec spec{.dtype = dtype, .layout = layout, .k = k, .n = n};
  if (dtype != DataType::kInt4) return spec;
  spec.group_size = group_size > 0 ? group_size : k;
  return WithScales(spec, DataType::kF32, k / spec.group_size * n);
}

WeightSpec WithScales(WeightSpec spec, DataType scale_dtype, int64_t scale_count) {
  spec.scale_count = scale_count;
  spec.scale_dtype = scale_count > 0 ? scale_dtype : DataType::kUnspecified;
  return spec;
}

WeightSpec WithBias(WeightSpec spec) {
  spec.bias_count = spec.n;
  return spec;
}

TestWeight MakeWeight(const WeightSpec& spec, Fill fill, Random* random) {
  TestWeight weight{.spec = spec, .data = {}, .scales = {}, .bias = {}};
  weight.data.assign(static_cast<size_t>(spec.data_bytes()), std::byte{0});
  const int bits = BitsOf(spec.dtype);
  const int64_t length = spec.layout == Layout::kKN ? spec.n : spec.k;
  // Codes are the values plus an offset; INT2 has the codes 0, 1, 2 only.
  const int low = bits == 8 ? -128 : bits == 4 ? -8 : -1;
  const int high = bits == 8 ? 127 : bits == 4 ? 7 : 1;
  const int offset = bits == 8 ? 0 : -low;
  for (int64_t line = 0; line < spec.lines(); line++) {
    for (int64_t i = 0; i < length; i++) {
      const int value = Draw(fill, low, high, line + i, random) + offset;
      std::byte& packed = weight.data[static_cast<size_t>(line * spec.line_bytes() + i * bits / 8)];
      packed |= static_cast<std::byte>((value & ((1 << bits) - 1)) << (i * bits % 8));
    }
  }
  for (int64_t i = 0; i < spec.scale_count; i++)
    AppendFloat(&weight.scales, spec.scale_dtype, i % 17 == 5 ? -0.0f : OrdinaryScale(random));
  for (int64_t i = 0; i < spec.bias_count; i++) weight.bias.push_back(random->Unit() * 100);
  return weight;
}

TestWeight Int8Weight(Layout layout, int64_t k, int64_t n, const std::vector<int8_t>& values) {
  TestWeight weight{
      .spec = MakeSpec(DataType::kInt8, layout, k, n), .data = {}, .scales = {}, .bias = {}};
  weight.data.resize(values.size());
  std::memcpy(weight.data.data(), values.data(), values.size());
  return weight;
}

std::vector<std::byte> TestActivations::bytes() const {
  std::vector<std::byte> all;
  for (const ByteSpan& piece : pieces) all.insert(all.end(), piece.data, piece.data + piece.bytes);
  return all;
}

void TestActivations::SetBytes(const std::vector<std::byte>& data,
                               const std::vector<size_t>& cuts) {
  std::vector<std::shared_ptr<GuardedBuffer>> fresh;
  pieces.clear();
  size_t begin = 0;
  const auto add = [&](size_t end) {
    fresh.push_back(std::make_shared<GuardedBuffer>(end - begin));
    if (end > begin) std::memcpy(fresh.back()->data(), data.data() + begin, end - begin);
    pieces.push_back({fresh.back()->data(), end - begin});
    begin = end;
  };
  for (size_t cut : cuts) add(cut);
  add(data.size());
  memory = std::move(fresh);
}

TestActivations IntegerActivations(DataType dtype, int64_t rows, int64_t k, Fill fill,
                                   Random* random) {
  TestActivations a;
  a.dtype = dtype;
  a.rows = rows;
  a.k = k;
  const int low = dtype == DataType::kUint8 ? 0 : -128,
            high = dtype == DataType::kUint8 ? 255 : 127;
  std::vector<std::byte> data;
  for (int64_t i = 0; i < rows * k; i++)
    data.push_back(static_cast<std::byte>(Draw(fill, low, high, i, random)));
  a.SetBytes(data);
  return a;
}

TestActivations FloatActivations(DataType dtype, int64_t rows, int64_t k, FloatRows kind,
                                 Quantization quantization, Random* random) {
  std::vector<float> values;
  for (int64_t m = 0; m < rows; m++)
    for (int64_t i = 0; i < k; i++)
      values.push_back(kind == FloatRows::kCorners ? CornerValue(dtype, m, i, random)
                                                   : random->Unit() * 4);
  return FloatActivationsOf(dtype, rows, k, values, quantization);
}

TestActivations FloatActivationsOf(DataType dtype, int64_t rows, int64_t k,
                                   const std::vector<float>& values, Quantization quantization) {
  TestActivations a;
  a.dtype = dtype;
  a.rows = rows;
  a.k = k;
  a.quantization = quantization;
  std::vector<std::byte> data;
  for (float value : values) AppendFloat(&data, dtype, value);
  a.SetBytes(data);
  return a;
}

void SplitAtRandom(TestActivations* activations, int count, Random* random) {
  const std::vector<std::byte> data = activations->bytes();
  std::vector<size_t> cuts;
  for (int i = 0; i < count; i++)
    cuts.push_back(static_cast<size_t>(random->Between(0, static_cast<int64_t>(data.size()))));
  std::sort(cuts.begin(), cuts.end());
  activations->SetBytes(data, cuts);
}

float RoundTo(DataType dtype, float value) {
  if (dtype == DataType::kF16) return F16ToFloat(FloatToF16(value));
  if (dtype == DataType::kBF16) return BF16ToFloat(FloatToBF16(value));
  return value;
}

float OrdinaryScale(Random* random) {
  const float magnitude =
      std::ldexp(1.0f + std::fabs(random->Unit()), static_cast<int>(random->Between(-9, -1)));
  return random->Chance(25) ? -magnitude : magnitude;
}

}  // namespace qmatmul::test
