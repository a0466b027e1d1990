#include "kernels/upload_rules.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/half.h"

namespace qmatmul {
namespace {

Fault Invalid(const char* reason, std::string message) {
  return {FaultKind::kInvalidArgument, reason, std::move(message)};
}

// Some bytes of one line, the first of them byte `first` of it.
Fault CheckLine(const WeightSpec& spec, int64_t line, int64_t first,
                std::span<const std::byte> bytes) {
  if (spec.dtype == DataType::kInt2) {
    unsigned threes = 0;
    for (const std::byte b : bytes) {
      const auto codes = static_cast<unsigned>(b);
      threes |= codes & codes >> 1 & 0x55;
    }
    if (threes != 0)
      return Invalid("INT2_CODE", "INT2 code 3 in line " + std::to_string(line) +
                                      "; codes are 0, 1, 2 for -1, 0, 1");
  }
  const int64_t elements = spec.layout == Layout::kKN ? spec.n : spec.k;
  const int used = static_cast<int>(elements * BitsOf(spec.dtype) % 8);
  const bool is_end = first + static_cast<int64_t>(bytes.size()) == spec.line_bytes();
  if (used != 0 && is_end && static_cast<unsigned>(bytes.back()) >> used != 0)
    return Invalid("PADDING_BITS",
                   "unused bits of the last byte of line " + std::to_string(line) + " must be 0");
  return {};
}

float ScaleAt(DataType dtype, const std::byte* data, int64_t i) {
  if (dtype == DataType::kF32) {
    float value;
    std::memcpy(&value, data + 4 * i, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, data + 2 * i, 2);
  return dtype == DataType::kF16 ? F16ToFloat(half) : BF16ToFloat(half);
}

bool ScaleInRange(float s) {
  const float magnitude = std::fabs(s);
  return magnitude == 0.0f || (magnitude >= 0x1p-47f && magnitude <= 0x1p47f);
}

}  // namespace

Fault CheckUpload(const WeightSpec& spec, int64_t position, std::span<const std::byte> bytes) {
  const int64_t end = position + static_cast<int64_t>(bytes.size());
  if (end > spec.upload_bytes())
    return Invalid("UPLOAD_LONG", "upload of " + std::to_string(end) + " bytes runs over the " +
                                      std::to_string(spec.upload_bytes()) +
                                      " that the spec says (data, scales, bias)");
  if (spec.dtype == DataType::kInt8) return {};
  const int64_t data_end = std::min(end, spec.data_bytes());
  for (int64_t at = position; at < data_end;) {
    const int64_t line = at / spec.line_bytes(), first = at % spec.line_bytes();
    const int64_t take = std::min(spec.line_bytes() - first, data_end - at);
    const auto part = bytes.subspan(static_cast<size_t>(at - position), static_cast<size_t>(take));
    if (Fault fault = CheckLine(spec, line, first, part); !fault.ok()) return fault;
    at += take;
  }
  return {};
}

void PutPlainLine(DataType dtype, std::span<const int8_t> values, std::byte* line) {
  const int bits = BitsOf(dtype);
  const int per_byte = 8 / bits;
  const int offset = PlainOffset(dtype);
  const unsigned mask = (1U << bits) - 1;
  for (size_t i = 0; i < values.size(); i += size_t(per_byte)) {
    unsigned byte = 0;
    for (size_t e = 0; e < size_t(per_byte) && i + e < values.size(); ++e)
      byte |= (static_cast<unsigned>(values[i + e] + offset) & mask) << (e * size_t(bits));
    *line++ = static_cast<std::byte>(byte);
  }
}

Fault CheckUploadEnd(const WeightSpec& spec, int64_t position) {
  if (position == spec.upload_bytes()) return {};
  return Invalid("UPLOAD_SHORT", "upload stopped after " + std::to_string(position) + " of " +
                                     std::to_string(spec.upload_bytes()) +
                                     " bytes (data, scales, bias)");
}

Fault ReadScales(const WeightSpec& spec, int64_t first, int64_t count, const std::byte* data,
                 float* values) {
  for (int64_t i = 0; i < count; ++i) {
    const float s = ScaleAt(spec.scale_dtype, data, i);
    if (!std::isfinite(s) || !ScaleInRange(s))
      return Invalid("SCALE_RANGE", "weight scale " + std::to_string(first + i) + " = " +
                                        std::to_string(s) +
                                        " must be finite and 0 or of magnitude 2^-47 to 2^47");
    values[i] = s;
  }
  return {};
}

Fault ReadBias(int64_t first, int64_t count, const std::byte* data, float* values) {
  for (int64_t i = 0; i < count; ++i) {
    float b;
    std::memcpy(&b, data + 4 * i, 4);
    if (!(std::fabs(b) <= 0x1p120f))
      return Invalid("BIAS_RANGE", "bias " + std::to_string(first + i) + " = " + std::to_string(b) +
                                       " must be finite and at most 2^120 in magnitude");
    values[i] = b;
  }
  return {};
}

Fault WidenScales(const WeightSpec& spec, const std::byte* data, int64_t stride, float* scales) {
  const int64_t scale_bytes = BitsOf(spec.scale_dtype) / 8;
  for (int64_t first = 0; first < spec.scale_count; first += spec.n) {  // one scale, or groups of n
    const int64_t count = std::min(spec.n, spec.scale_count - first);
    if (Fault f = ReadScales(spec, first, count, data + first * scale_bytes,
                             scales + first / spec.n * stride);
        !f.ok())
      return f;
  }
  // One scale a column, so that the epilogue has one form.
  if (spec.scale_count == 0 || (spec.scale_count == 1 && spec.n > 1))
    std::fill_n(scales, spec.n, spec.scale_count == 1 ? scales[0] : 1.0f);
  return {};
}

}  // namespace qmatmul
