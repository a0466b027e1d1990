#include "kernels/matmul.h"

namespace qmatmul {
namespace {

Fault Invalid(std::string reason, std::string message) {
  return {FaultKind::kInvalidArgument, std::move(reason), std::move(message)};
}

std::string Num(int64_t value) { return std::to_string(value); }

}  // namespace

int BitsOf(DataType dtype) {
  switch (dtype) {
    case DataType::kInt2: return 2;
    case DataType::kInt4: return 4;
    case DataType::kInt8:
    case DataType::kUint8: return 8;
    case DataType::kInt16:
    case DataType::kF16:
    case DataType::kBF16: return 16;
    case DataType::kInt32:
    case DataType::kF32: return 32;
    case DataType::kUnspecified: return 0;
  }
  return 0;
}

std::string_view NameOf(DataType dtype) {
  switch (dtype) {
    case DataType::kInt2: return "INT2";
    case DataType::kInt4: return "INT4";
    case DataType::kInt8: return "INT8";
    case DataType::kUint8: return "UINT8";
    case DataType::kInt16: return "INT16";
    case DataType::kInt32: return "INT32";
    case DataType::kF32: return "F32";
    case DataType::kF16: return "F16";
    case DataType::kBF16: return "BF16";
    case DataType::kUnspecified: return "UNSPECIFIED";
  }
  return "UNKNOWN";
}

std::string_view NameOf(Layout layout) {
  switch (layout) {
    case Layout::kKN: return "KN";
    case Layout::kNK: return "NK";
    case Layout::kUnspecified: return "UNSPECIFIED";
  }
  return "UNKNOWN";
}

std::string_view NameOf(Overflow overflow) {
  switch (overflow) {
    case Overflow::kSaturate: return "SATURATE";
    case Overflow::kWrap: return "WRAP";
    case Overflow::kError: return "ERROR";
  }
  return "UNKNOWN";
}

std::string_view NameOf(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kW8A8: return "W8A8";
    case Arithmetic::kW8A32: return "W8A32";
  }
  return "UNKNOWN";
}

int64_t WeightSpec::line_bytes() const {
  const int64_t elements = layout == Layout::kKN ? n : k;
  return (elements * BitsOf(dtype) + 7) / 8;
}

Fault CheckSpec(const WeightSpec& s) {
  const bool int4 = s.dtype == DataType::kInt4;
  if (s.dtype == DataType::kUnspecified)
    return Invalid("DTYPE_MISSING",
                   "weight dtype is required: INT8, INT4 or INT2; it is never guessed");
  if (s.dtype != DataType::kInt8 && !int4 && s.dtype != DataType::kInt2)
    return Invalid("DTYPE",
                   "weight dtype " + std::string(NameOf(s.dtype)) + " is not INT8, INT4 or INT2");
  if (s.layout != Layout::kKN && s.layout != Layout::kNK)
    return Invalid("LAYOUT_MISSING", "weight layout is required: KN or NK; it is never guessed");
  if (s.k < 1) return Invalid("SHAPE", "k = " + Num(s.k) + " must be at least 1");
  if (s.n < 1) return Invalid("SHAPE", "n = " + Num(s.n) + " must be at least 1");
  if (s.k > kInnerMax)
    return Invalid("K_TOO_LARGE", "k = " + Num(s.k) + " exceeds " + Num(kInnerMax) +
                                      ", beyond which an int32 sum could overflow");
  if (s.n > kColumnsMax)
    return Invalid("N_TOO_LARGE", "n = " + Num(s.n) + " exceeds " + Num(kColumnsMax));
  if (int4) {
    if (s.group_size < 1 || s.group_size > s.k || s.k % s.group_size != 0)
      return Invalid("GROUP_SIZE",
                     "INT4 group_size = " + Num(s.group_size) + " must divide k = " + Num(s.k));
  } else if (s.group_size != 0) {
    return Invalid("GROUP_SIZE",
                   "group_size = " + Num(s.group_size) + " is for INT4 only; leave it 0");
  }
  const int64_t grouped = s.groups() * s.n;
  const bool count_ok = int4 ? s.scale_count == grouped
                             : s.scale_count == 0 || s.scale_count == 1 || s.scale_count == s.n;
  if (!count_ok)
    return Invalid("SCALE_COUNT", "scale_count = " + Num(s.scale_count) + " must be " +
                                      (int4 ? "(k / group_size) * n = " + Num(grouped)
                                            : "0, 1 or n = " + Num(s.n)));
  if (s.scale_count > 0 && !IsFloat(s.scale_dtype))
    return Invalid("SCALE_DTYPE", "scale_dtype is required with scale_count > 0: F32, F16 or BF16");
  if (s.scale_count == 0 && s.scale_dtype != DataType::kUnspecified)
    return Invalid("SCALE_DTYPE", "scale_dtype is set but scale_count is 0");
  if (s.bias_count != 0 && s.bias_count != s.n)
    return Invalid("BIAS_COUNT",
                   "bias_count = " + Num(s.bias_count) + " must be 0 or n = " + Num(s.n));
  return {};
}

std::string IdentityLine(const WeightSpec& s) {
  std::string line = "qmatmul.weight.v1;";
  line += NameOf(s.dtype);
  line += ';';
  line += NameOf(s.layout);
  for (int64_t v : {s.k, s.n, s.group_size}) line += ';' + Num(v);
  line += ';';
  line += s.scale_count > 0 ? NameOf(s.scale_dtype) : std::string_view("NONE");
  for (int64_t v : {s.scale_count, s.bias_count}) line += ';' + Num(v);
  line += '\n';
  return line;
}

}  // namespace qmatmul
