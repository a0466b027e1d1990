#include "kernels/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/half.h"

namespace qmatmul {
namespace {

constexpr float kScaleMin = 0x1p-47f, kScaleMax = 0x1p47f;  // numerics §0
constexpr float kActivationMax = 0x1p53f;
constexpr float kRowAmaxMin = 0x1p-100f;  // §4
constexpr float kConvertMax = 0x1p30f;

Fault Invalid(std::string reason, std::string message) {
  return {FaultKind::kInvalidArgument, std::move(reason), std::move(message)};
}

// Elements of one scale: `count` of them, `stride` apart.
struct ScaleGroup {
  const float* first;
  int64_t count;
  int64_t stride;

  float at(int64_t i) const { return first[i * stride]; }
};

// The greatest magnitude, or -1 when a value is not finite.
float AmaxOf(const ScaleGroup& group) {
  float amax = 0;
  for (int64_t i = 0; i < group.count; i++) {
    if (!std::isfinite(group.at(i))) return -1;
    amax = std::max(amax, std::fabs(group.at(i)));
  }
  return amax;
}

// Quantizes each group of each column; `store(k, n, q)` takes the integers.
template <typename StoreFn>
Fault QuantizeGroups(std::span<const float> values, int64_t group_size, float limit,
                     QuantizedWeight* weight, StoreFn store) {
  const WeightSpec& spec = weight->spec;
  const bool kn = spec.layout == Layout::kKN;
  const int64_t stride = kn ? spec.n : 1;
  weight->scales.resize(static_cast<size_t>(spec.scale_count));
  for (int64_t begin = 0; begin < spec.k; begin += group_size) {
    for (int64_t n = 0; n < spec.n; n++) {
      const ScaleGroup group{values.data() + (kn ? begin * spec.n + n : n * spec.k + begin),
                             group_size, stride};
      const float amax = AmaxOf(group);
      if (amax < 0 || amax / limit > kScaleMax)
        return Invalid("WEIGHT_RANGE", "column " + std::to_string(n) + ", rows from " +
                                           std::to_string(begin) +
                                           ": a weight is not finite or needs a scale above 2^47");
      const bool zero = amax / limit < kScaleMin;
      weight->scales[static_cast<size_t>(begin / group_size * spec.n + n)] =
          zero ? 0.0f : amax / limit;
      const float inverse = zero ? 0.0f : limit / amax;
      for (int64_t i = 0; i < group_size; i++)
        store(begin + i, n, static_cast<int>(std::nearbyint(group.at(i) * inverse)));
    }
  }
  return {};
}

Fault StartWeight(std::span<const float> values, const WeightSpec& spec, QuantizedWeight* weight) {
  if (Fault fault = CheckSpec(spec); !fault.ok()) return fault;
  if (static_cast<int64_t>(values.size()) != spec.k * spec.n)
    return Invalid("SHAPE", std::to_string(values.size()) +
                                " values are not k * n = " + std::to_string(spec.k * spec.n));
  weight->spec = spec;
  weight->data.assign(static_cast<size_t>(spec.data_bytes()), std::byte{0});
  return {};
}

float LoadFloat(const std::byte* data, DataType dtype) {
  if (dtype == DataType::kF32) {
    float value;
    std::memcpy(&value, data, sizeof value);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, data, sizeof half);
  return dtype == DataType::kF16 ? F16ToFloat(half) : BF16ToFloat(half);
}

// One float row by numerics §4; returns sa.
float QuantizeRow(std::span<const float> row, const ActivationView& a, int64_t m, int16_t* q) {
  float scale, inverse;
  if (a.quantization == Quantization::kDynamic) {
    float amax = 0;
    for (float value : row) amax = std::max(amax, std::fabs(value));
    const bool zero = amax < kRowAmaxMin;
    scale = zero ? 0.0f : amax / 127.0f;
    inverse = zero ? 0.0f : 127.0f / amax;
  } else {
    scale = a.scale(m);
    inverse = 1.0f / scale;
  }
  const int32_t zero_point = a.zero_point(m);
  for (size_t k = 0; k < row.size(); k++) {
    const float t = std::clamp(row[k] * inverse, -kConvertMax, kConvertMax);
    const int32_t value = static_cast<int32_t>(std::nearbyint(t)) + zero_point;
    q[k] = static_cast<int16_t>(std::clamp(value, -128, 127));
  }
  return scale;
}

}  // namespace

Fault QuantizeWeightInt8(std::span<const float> values, Layout layout, int64_t k, int64_t n,
                         QuantizedWeight* weight) {
  const WeightSpec spec{.dtype = DataType::kInt8,
                        .layout = layout,
                        .k = k,
                        .n = n,
                        .scale_dtype = DataType::kF32,
                        .scale_count = n};
  if (Fault fault = StartWeight(values, spec, weight); !fault.ok()) return fault;
  return QuantizeGroups(values, k, 127.0f, weight, [&](int64_t row, int64_t column, int q) {
    const int64_t index = layout == Layout::kKN ? row * n + column : column * k + row;
    weight->data[static_cast<size_t>(index)] = static_cast<std::byte>(q);
  });
}

Fault QuantizeWeightInt4(std::span<const float> values, Layout layout, int64_t k, int64_t n,
                         int64_t group_size, QuantizedWeight* weight) {
  WeightSpec spec{.dtype = DataType::kInt4,
                  .layout = layout,
                  .k = k,
                  .n = n,
                  .group_size = group_size,
                  .scale_dtype = DataType::kF32};
  spec.scale_count = spec.groups() * n;
  if (Fault fault = StartWeight(values, spec, weight); !fault.ok()) return fault;
  return QuantizeGroups(values, group_size, 7.0f, weight, [&](int64_t row, int64_t column, int q) {
    const int64_t line = layout == Layout::kKN ? row : column;
    const int64_t position = layout == Layout::kKN ? column : row;
    std::byte& packed = weight->data[static_cast<size_t>(line * spec.line_bytes() + position / 2)];
    packed |= static_cast<std::byte>((q + 8) << (4 * (position % 2)));
  });
}

Fault QuantizeActivations(const ActivationView& a, QuantizedActivations* quantized) {
  std::vector<std::byte> data;
  for (const ByteSpan& piece : a.bytes)
    data.insert(data.end(), piece.data, piece.data + piece.bytes);
  const size_t width = static_cast<size_t>(BitsOf(a.dtype)) / 8;
  const size_t count = static_cast<size_t>(a.rows * a.k);
  if (data.size() != count * width)
    return Invalid("SHAPE", std::to_string(data.size()) + " bytes of activations are not [" +
                                std::to_string(a.rows) + ", " + std::to_string(a.k) + "]");
  *quantized = {.rows = a.rows,
                .k = a.k,
                .values = std::vector<int16_t>(count),
                .zero_points = {},
                .scales = {}};
  const size_t k = static_cast<size_t>(a.k);
  std::vector<float> row(k);
  for (int64_t m = 0; m < a.rows; m++) {
    const size_t first = static_cast<size_t>(m) * k;
    quantized->zero_points.push_back(a.zero_point(m));
    if (!IsFloat(a.dtype)) {
      for (size_t i = 0; i < k; i++) {
        const auto byte = static_cast<uint8_t>(data[first + i]);
        quantized->values[first + i] =
            a.dtype == DataType::kInt8 ? static_cast<int8_t>(byte) : byte;
      }
      if (!a.scales.empty()) quantized->scales.push_back(a.scale(m));
      continue;
    }
    for (size_t i = 0; i < k; i++) {
      row[i] = LoadFloat(data.data() + (first + i) * width, a.dtype);
      if (!(std::fabs(row[i]) <= kActivationMax))
        return Invalid("ACTIVATION_RANGE", "activation [" + std::to_string(m) + ", " +
                                               std::to_string(i) + "] = " + std::to_string(row[i]) +
                                               " is not within ±2^53");
    }
    quantized->scales.push_back(QuantizeRow(row, a, m, quantized->values.data() + first));
  }
  return {};
}

}  // namespace qmatmul
