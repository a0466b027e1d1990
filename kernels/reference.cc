#include "kernels/reference.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

namespace qmatmul {
namespace {

constexpr float kScaleMin = 0x1p-47f, kScaleMax = 0x1p47f;  // numerics §0
constexpr float kBiasMax = 0x1p120f;
constexpr float kActivationMax = 0x1p53f;
constexpr float kRowAmaxMin = 0x1p-100f;  // §4: a row below it is all zero
constexpr float kConvertMax = 0x1p30f;  // §3, §4: t is clamped to ± this before it becomes an int
constexpr int64_t kFloatBlock = 512;    // §5

Fault Invalid(std::string reason, std::string message) {
  return {FaultKind::kInvalidArgument, std::move(reason), std::move(message)};
}
std::string Num(int64_t value) { return std::to_string(value); }
std::string Num(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
  return text;
}

template <typename T>
T Load(const void* data, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * static_cast<int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

// --- half and bfloat16, by integer code ---

// value / 2^shift, to nearest, ties to even.
uint32_t ShiftRne(uint32_t value, int shift) {
  if (shift > 31) return 0;
  const uint32_t floor = value >> shift;
  const uint32_t rest = value - (floor << shift);
  const uint32_t half = uint32_t{1} << (shift - 1);
  return floor + (rest > half || (rest == half && (floor & 1) != 0) ? 1 : 0);
}

uint16_t HalfFromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fff'ffff;
  const int exponent = static_cast<int>(magnitude >> 23);  // biased by 127
  if (exponent >= 127 + 16) return static_cast<uint16_t>(sign | 0x7c00);
  // Normal halves: rebias the exponent (127 → 15); a carry out of the mantissa does the right
  // thing, up to and including infinity.
  if (exponent >= 127 - 14)
    return static_cast<uint16_t>(sign | ShiftRne(magnitude - (112u << 23), 13));
  // Denormal halves count units of 2^-24; the float is mantissa · 2^(exponent - 150).
  if (exponent == 0) return static_cast<uint16_t>(sign);
  const uint32_t mantissa = (magnitude & 0x7f'ffff) | 0x80'0000;
  return static_cast<uint16_t>(sign | ShiftRne(mantissa, 126 - exponent));
}

float FloatFromHalf(uint16_t half) {
  const int exponent = (half >> 10) & 31, mantissa = half & 0x3ff;
  float magnitude = 0;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? INFINITY : NAN;
  } else {
    magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  }
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

uint16_t BFloatFromFloat(float value) {  // value is no NaN (numerics §0)
  return static_cast<uint16_t>(ShiftRne(std::bit_cast<uint32_t>(value), 16));
}

float FloatFromBFloat(uint16_t half) { return std::bit_cast<float>(uint32_t{half} << 16); }

// Element `index` of a float tensor.
float LoadFloat(const void* data, DataType dtype, int64_t index) {
  if (dtype == DataType::kF16) return FloatFromHalf(Load<uint16_t>(data, index));
  if (dtype == DataType::kBF16) return FloatFromBFloat(Load<uint16_t>(data, index));
  return Load<float>(data, index);
}

// --- what is let in (numerics §0, §1, §3) ---

bool ScaleOk(float scale) {
  return scale == 0.0f || (std::fabs(scale) >= kScaleMin && std::fabs(scale) <= kScaleMax);
}

Fault CheckActivations(const WeightSpec& weight, const ActivationView& a, Arithmetic arithmetic) {
  const bool integer = a.dtype == DataType::kInt8 || a.dtype == DataType::kUint8;
  if (!integer && !IsFloat(a.dtype))
    return Invalid("DTYPE", "activation dtype " + std::string(NameOf(a.dtype)) +
                                " is not INT8, UINT8, F32, F16 or BF16");
  if (a.k != weight.k)
    return Invalid("K_MISMATCH",
                   "activations have k = " + Num(a.k) + ", the weight " + Num(weight.k));
  int64_t bytes = 0;
  for (const ByteSpan& piece : a.bytes) bytes += static_cast<int64_t>(piece.bytes);
  if (a.rows < 0 || bytes != a.rows * a.k * BitsOf(a.dtype) / 8)
    return Invalid("SHAPE", Num(bytes) + " bytes of activations are not [" + Num(a.rows) + ", " +
                                Num(a.k) + "]");
  const bool dynamic = a.quantization == Quantization::kDynamic;
  const bool fixed = a.quantization == Quantization::kStatic;
  if (arithmetic == Arithmetic::kW8A32) {
    if (integer) return Invalid("QUANTIZATION_SPEC", "W8A32 needs float activations");
    if (dynamic || fixed || !a.scales.empty() || !a.zero_points.empty())
      return Invalid("QUANTIZATION_SPEC",
                     "W8A32 takes no activation scales, zero points or dynamic quantization");
  } else if (integer ? dynamic : (dynamic == fixed)) {
    return Invalid("QUANTIZATION_SPEC",
                   "integer activations are not quantized dynamically; float ones take dynamic or "
                   "static scales");
  }
  if (dynamic && (!a.scales.empty() || !a.zero_points.empty()))
    return Invalid("QUANTIZATION_SPEC", "dynamic quantization takes no scales and no zero points");
  if (!integer && fixed && a.scales.empty())
    return Invalid("QUANTIZATION_SPEC", "static quantization needs scales");
  const auto count_ok = [&](size_t count) {
    return count <= 1 || static_cast<int64_t>(count) == a.rows;
  };
  if (!count_ok(a.scales.size()) || !count_ok(a.zero_points.size()))
    return Invalid("QUANTIZATION_SPEC",
                   "scales and zero points come one for the tensor or one per row");
  for (float s : a.scales)
    if (!ScaleOk(s) || (!integer && s == 0.0f))
      return Invalid("SCALE_RANGE", "activation scale " + Num(s) + " is outside numerics §0");
  const int32_t low = a.dtype == DataType::kUint8 ? 0 : -128,
                high = a.dtype == DataType::kUint8 ? 255 : 127;
  bool wide = a.dtype == DataType::kUint8;
  for (int32_t z : a.zero_points) {
    if (z < low || z > high)
      return Invalid("ZERO_POINT_RANGE", "activation zero point " + Num(int64_t{z}) +
                                             " is outside " + Num(int64_t{low}) + "…" +
                                             Num(int64_t{high}));
    wide = wide || z != 0;
  }
  if (wide && a.k > kInnerMaxWide)
    return Invalid("K_TOO_LARGE", "k = " + Num(a.k) + " exceeds " + Num(kInnerMaxWide) +
                                      " for UINT8 data or a zero point other than 0");
  return {};
}

Fault CheckEpilogue(const WeightSpec& weight, Arithmetic arithmetic, const Epilogue& e) {
  const bool narrow = e.dtype == DataType::kInt8 || e.dtype == DataType::kInt16;
  if (!narrow && e.dtype != DataType::kInt32 && !IsFloat(e.dtype))
    return Invalid("DTYPE", "output dtype " + std::string(NameOf(e.dtype)) +
                                " is not INT8, INT16, INT32, F32, F16 or BF16");
  if (e.scaled && !narrow)
    return Invalid("OUTPUT_SPEC", "an output scale is for INT8 and INT16 only");
  if (!e.scaled && e.zero_point != 0)
    return Invalid("OUTPUT_SPEC", "an output zero point needs an output scale");
  if (e.scaled && !(e.scale >= kScaleMin && e.scale <= kScaleMax))
    return Invalid("SCALE_RANGE", "output scale " + Num(e.scale) + " is not within 2^-47 … 2^47");
  const int32_t limit = e.dtype == DataType::kInt8 ? 128 : 32768;
  if (e.scaled && (e.zero_point < -limit || e.zero_point >= limit))
    return Invalid("ZERO_POINT_RANGE", "output zero point " + Num(int64_t{e.zero_point}) +
                                           " does not fit the output type");
  if (!e.raw()) return {};
  if (weight.bias_count > 0 && !e.skip_bias)
    return Invalid("OUTPUT_SPEC", "raw sums of a weight with a bias need skip_bias");
  if (e.activation != Activation::kNone) return Invalid("OUTPUT_SPEC", "raw sums take no RELU");
  if (weight.group_wise()) return Invalid("OUTPUT_SPEC", "a group-wise weight has no raw sums");
  if (arithmetic == Arithmetic::kW8A32) return Invalid("OUTPUT_SPEC", "W8A32 has no raw sums");
  return {};
}

// --- the arithmetic ---

// One row of activations as the integers that are multiplied (numerics §4), less the zero point.
struct IntegerRow {
  std::vector<int32_t> values;
  float scale = 1.0f;
  bool scaled = false;
};

void QuantizeRow(const std::vector<float>& a, float inverse, int32_t zero_point,
                 std::vector<int32_t>* q) {
  for (float value : a) {
    const float t = std::clamp(value * inverse, -kConvertMax, kConvertMax);
    const int32_t rounded = static_cast<int32_t>(std::nearbyint(t)) + zero_point;
    q->push_back(std::clamp(rounded, -128, 127) - zero_point);
  }
}

IntegerRow IntegersOf(const ActivationView& a, const std::byte* data,
                      const std::vector<float>& floats, int64_t m) {
  IntegerRow row;
  row.scaled = !a.scales.empty() || a.quantization == Quantization::kDynamic;
  if (!a.scales.empty()) row.scale = a.scale(m);
  const int32_t zero_point = a.zero_point(m);
  if (a.dtype == DataType::kInt8) {
    for (int64_t k = 0; k < a.k; k++)
      row.values.push_back(Load<int8_t>(data, m * a.k + k) - zero_point);
  } else if (a.dtype == DataType::kUint8) {
    for (int64_t k = 0; k < a.k; k++)
      row.values.push_back(Load<uint8_t>(data, m * a.k + k) - zero_point);
  } else if (a.quantization == Quantization::kStatic) {
    QuantizeRow(floats, 1.0f / row.scale, zero_point, &row.values);
  } else {
    float amax = 0;
    for (float value : floats) amax = std::max(amax, std::fabs(value));
    const bool zero = amax < kRowAmaxMin;
    row.scale = zero ? 0.0f : amax / 127.0f;
    if (zero) row.values.assign(floats.size(), 0);
    else QuantizeRow(floats, 127.0f / amax, 0, &row.values);
  }
  return row;
}

// Σ over k in [begin, end) of a[k]·W[k][n], for every n. It fits an int32 (numerics §1).
std::vector<int32_t> IntegerSums(const ReferenceWeight& w, const std::vector<int32_t>& a,
                                 int64_t begin, int64_t end) {
  const size_t n = static_cast<size_t>(w.spec.n);
  std::vector<int64_t> sums(n, 0);
  for (int64_t k = begin; k < end; k++)
    for (size_t j = 0; j < n; j++)
      sums[j] += int64_t{a[static_cast<size_t>(k)]} * w.values[static_cast<size_t>(k) * n + j];
  std::vector<int32_t> narrow(n);
  for (size_t j = 0; j < n; j++) {
    narrow[j] = static_cast<int32_t>(sums[j]);
    assert(narrow[j] == sums[j]);
  }
  return narrow;
}

float WeightScale(const ReferenceWeight& w, int64_t group, int64_t n) {
  return w.spec.scale_count == 1 ? w.scales[0]
                                 : w.scales[static_cast<size_t>(group * w.spec.n + n)];
}

// One row of W8A8 (numerics §1, §2), up to the activation scale: the sums over all of K, and y.
void IntegerProduct(const ReferenceWeight& w, const IntegerRow& a, std::vector<int32_t>* acc,
                    std::vector<float>* y) {
  const int64_t groups = w.spec.groups(), size = w.spec.k / groups;
  for (int64_t g = 0; g < groups; g++) {
    const std::vector<int32_t> part = IntegerSums(w, a.values, g * size, (g + 1) * size);
    for (size_t n = 0; n < part.size(); n++) {
      (*acc)[n] += part[n];
      float value = static_cast<float>(part[n]);
      if (w.spec.scale_count > 0) value = value * WeightScale(w, g, static_cast<int64_t>(n));
      (*y)[n] = g == 0 ? value : (*y)[n] + value;
    }
  }
  if (!a.scaled) return;
  for (float& value : *y) value = value * a.scale;
}

// One row of W8A32 (numerics §5), up to the bias.
void FloatProduct(const ReferenceWeight& w, const std::vector<float>& a, std::vector<float>* y) {
  const bool group_wise = w.spec.group_wise();
  const int64_t block = group_wise ? w.spec.group_size : kFloatBlock;
  for (int64_t n = 0; n < w.spec.n; n++) {
    float total = 0;
    for (int64_t begin = 0; begin < w.spec.k; begin += block) {
      float s = 0;
      for (int64_t k = begin; k < std::min(begin + block, w.spec.k); k++) {
        const float p = a[static_cast<size_t>(k)] *
                        static_cast<float>(w.values[static_cast<size_t>(k * w.spec.n + n)]);
        s = s + p;
      }
      if (group_wise) s = s * WeightScale(w, begin / block, n);
      total = total + s;
    }
    if (!group_wise && w.spec.scale_count > 0) total = total * WeightScale(w, 0, n);
    (*y)[static_cast<size_t>(n)] = total;
  }
}

// Writes one result as the output's type; true when it overflowed.
bool Store(const Epilogue& e, int32_t acc, float y, std::byte* out) {
  if (e.dtype == DataType::kF32) {
    std::memcpy(out, &y, 4);
    return false;
  }
  if (IsFloat(e.dtype)) {
    const uint16_t half = e.dtype == DataType::kF16 ? HalfFromFloat(y) : BFloatFromFloat(y);
    std::memcpy(out, &half, 2);
    return (half & 0x7fff) == (e.dtype == DataType::kF16 ? 0x7c00 : 0x7f80);
  }
  if (e.dtype == DataType::kInt32) {
    std::memcpy(out, &acc, 4);
    return false;
  }
  int32_t q = acc;
  if (e.scaled) {
    const float t = std::clamp(y * (1.0f / e.scale), -kConvertMax, kConvertMax);
    q = static_cast<int32_t>(std::nearbyint(t)) + e.zero_point;
  }
  const int32_t limit = e.dtype == DataType::kInt8 ? 128 : 32768;
  const int32_t clamped = std::clamp(q, -limit, limit - 1);
  const uint32_t bits = static_cast<uint32_t>(e.overflow == Overflow::kWrap ? q : clamped);
  std::memcpy(out, &bits, e.dtype == DataType::kInt8 ? 1 : 2);  // the low bytes: little-endian
  return q != clamped;
}

// The element at `position` of line `line` of a plain weight, as a number; false for a bad INT2
// code.
bool DecodeElement(const WeightView& w, int64_t line, int64_t position, int8_t* value) {
  const auto* bytes = static_cast<const uint8_t*>(w.data) + line * w.spec.line_bytes();
  if (w.spec.dtype == DataType::kInt8) {
    *value = static_cast<int8_t>(bytes[position]);
  } else if (w.spec.dtype == DataType::kInt4) {
    *value = static_cast<int8_t>(((bytes[position / 2] >> (4 * (position % 2))) & 15) - 8);
  } else {
    const int code = (bytes[position / 4] >> (2 * (position % 4))) & 3;
    if (code == 3) return false;
    *value = static_cast<int8_t>(code - 1);
  }
  return true;
}

Fault DecodeValues(const WeightView& view, ReferenceWeight* weight) {
  const WeightSpec& spec = view.spec;
  const bool kn = spec.layout == Layout::kKN;
  const int64_t length = kn ? spec.n : spec.k;
  const int used_bits = static_cast<int>(length * BitsOf(spec.dtype) % 8);
  weight->values.resize(static_cast<size_t>(spec.k * spec.n));
  for (int64_t line = 0; line < spec.lines(); line++) {
    for (int64_t i = 0; i < length; i++) {
      int8_t* value =
          &weight->values[static_cast<size_t>(kn ? line * spec.n + i : i * spec.n + line)];
      if (!DecodeElement(view, line, i, value))
        return Invalid("INT2_CODE", "line " + Num(line) + ", element " + Num(i) +
                                        ": INT2 code 3 means nothing; use 0, 1 or 2");
    }
    const auto last = Load<uint8_t>(view.data, (line + 1) * spec.line_bytes() - 1);
    if (used_bits != 0 && last >> used_bits != 0)
      return Invalid("PADDING_BITS",
                     "the unused bits of the last byte of line " + Num(line) + " must be 0");
  }
  return {};
}

}  // namespace

Fault DecodeWeight(const WeightView& view, ReferenceWeight* weight) {
  if (Fault fault = CheckSpec(view.spec); !fault.ok()) return fault;
  *weight = ReferenceWeight{.spec = view.spec, .values = {}, .scales = {}, .bias = {}};
  if (Fault fault = DecodeValues(view, weight); !fault.ok()) return fault;
  for (int64_t i = 0; i < view.spec.scale_count; i++) {
    weight->scales.push_back(LoadFloat(view.scales, view.spec.scale_dtype, i));
    if (!ScaleOk(weight->scales.back()))
      return Invalid("SCALE_RANGE", "scale " + Num(i) + " = " + Num(weight->scales.back()) +
                                        " is neither 0 nor within 2^-47 … 2^47");
  }
  for (int64_t i = 0; i < view.spec.bias_count; i++) {
    weight->bias.push_back(view.bias[i]);
    if (!(std::fabs(view.bias[i]) <= kBiasMax))
      return Invalid("BIAS_RANGE",
                     "bias " + Num(i) + " = " + Num(view.bias[i]) + " is not within ±2^120");
  }
  return {};
}

Fault ReferenceMatMul(const ReferenceWeight& weight, const ActivationView& activations,
                      Arithmetic arithmetic, const Epilogue& epilogue, const OutputView& output,
                      ReferenceDetails* details, std::span<const uint32_t> check_vector) {
  *details = {};
  if (Fault fault = CheckActivations(weight.spec, activations, arithmetic); !fault.ok())
    return fault;
  if (Fault fault = CheckEpilogue(weight.spec, arithmetic, epilogue); !fault.ok()) return fault;
  std::vector<std::byte> data;
  for (const ByteSpan& piece : activations.bytes)
    data.insert(data.end(), piece.data, piece.data + piece.bytes);
  const size_t n = static_cast<size_t>(weight.spec.n);
  const int64_t element_bytes = BitsOf(epilogue.dtype) / 8;
  for (int64_t m = 0; m < activations.rows; m++) {
    std::vector<float> floats;
    for (int64_t k = 0; IsFloat(activations.dtype) && k < activations.k; k++) {
      floats.push_back(LoadFloat(data.data(), activations.dtype, m * activations.k + k));
      if (!(std::fabs(floats.back()) <= kActivationMax))
        return Invalid("ACTIVATION_RANGE", "activation [" + Num(m) + ", " + Num(k) + "] = " +
                                               Num(floats.back()) + " is not within ±2^53");
    }
    std::vector<int32_t> acc(n, 0);
    std::vector<float> y(n, 0.0f);
    if (arithmetic == Arithmetic::kW8A32) {
      FloatProduct(weight, floats, &y);
    } else {
      const IntegerRow row = IntegersOf(activations, data.data(), floats, m);
      IntegerProduct(weight, row, &acc, &y);
      if (activations.quantization == Quantization::kDynamic)
        details->scales_used.push_back(row.scale);
      uint64_t check = 0;
      for (size_t j = 0; j < check_vector.size(); j++)
        check += static_cast<uint64_t>(int64_t{acc[j]}) * check_vector[j];
      if (!check_vector.empty()) details->row_checks.push_back(check);
    }
    for (size_t j = 0; j < n; j++) {
      if (!weight.bias.empty() && !epilogue.skip_bias) y[j] = y[j] + weight.bias[j];
      if (epilogue.activation == Activation::kRelu) y[j] = y[j] > 0 ? y[j] : 0.0f;
      std::byte* out = output.data + m * output.row_bytes + static_cast<int64_t>(j) * element_bytes;
      if (!Store(epilogue, acc[j], y[j], out)) continue;
      if (details->outcome.overflow_count++ > 0) continue;
      details->outcome.first_overflow_row = m;
      details->outcome.first_overflow_column = static_cast<int64_t>(j);
    }
  }
  return {};
}

std::vector<int32_t> ReferenceTopK(const std::byte* row, DataType dtype, int64_t n, int64_t count) {
  std::vector<double> values;  // holds every int32 and every float
  for (int64_t j = 0; j < n; j++) {
    switch (dtype) {
      case DataType::kInt8: values.push_back(Load<int8_t>(row, j)); break;
      case DataType::kInt16: values.push_back(Load<int16_t>(row, j)); break;
      case DataType::kInt32: values.push_back(Load<int32_t>(row, j)); break;
      default: values.push_back(static_cast<double>(LoadFloat(row, dtype, j)));
    }
  }
  std::vector<int32_t> columns(static_cast<size_t>(n));
  std::iota(columns.begin(), columns.end(), 0);
  std::stable_sort(columns.begin(), columns.end(), [&](int32_t a, int32_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  columns.resize(static_cast<size_t>(count));
  return columns;
}

}  // namespace qmatmul
