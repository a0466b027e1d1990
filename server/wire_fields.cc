#include "server/wire_fields.h"

#include <cmath>
#include <cstring>

#include "kernels/half.h"

namespace qmatmul {
namespace {

// The two enums have the same numbers, so that reading one is a check and a cast.
static_assert(static_cast<int>(DataType::kInt8) == v1::DATA_TYPE_INT8);
static_assert(static_cast<int>(DataType::kUint8) == v1::DATA_TYPE_UINT8);
static_assert(static_cast<int>(DataType::kInt16) == v1::DATA_TYPE_INT16);
static_assert(static_cast<int>(DataType::kInt32) == v1::DATA_TYPE_INT32);
static_assert(static_cast<int>(DataType::kF32) == v1::DATA_TYPE_F32);
static_assert(static_cast<int>(DataType::kF16) == v1::DATA_TYPE_F16);
static_assert(static_cast<int>(DataType::kBF16) == v1::DATA_TYPE_BF16);
static_assert(static_cast<int>(DataType::kInt4) == v1::DATA_TYPE_INT4);
static_assert(static_cast<int>(DataType::kInt2) == v1::DATA_TYPE_INT2);
static_assert(static_cast<int>(Layout::kKN) == v1::LAYOUT_KN);
static_assert(static_cast<int>(Layout::kNK) == v1::LAYOUT_NK);

Status EnumUnknown(const char* type, int value, const FieldPath& field) {
  return Invalid("ENUM_UNKNOWN", field,
                 field.Text() + " = " + std::to_string(value) + " is no value of " + type,
                 std::to_string(value));
}

}  // namespace

Status Invalid(std::string reason, std::string field, std::string message, std::string value,
               std::string limit) {
  Status status{Code::kInvalidArgument, std::move(reason), std::move(message), std::move(field)};
  if (!value.empty()) status.metadata.emplace_back("value", std::move(value));
  if (!limit.empty()) status.metadata.emplace_back("limit", std::move(limit));
  return status;
}

Status ReadDataType(v1::DataType value, const FieldPath& field, DataType* dtype) {
  if (value == v1::DATA_TYPE_UNSPECIFIED)
    return Invalid("DTYPE_MISSING", field,
                   field.Text() + " is required; a data type is never guessed");
  if (!v1::DataType_IsValid(value)) return EnumUnknown("DataType", value, field);
  *dtype = static_cast<DataType>(value);
  return {};
}

Status ReadLayout(v1::Layout value, const FieldPath& field, Layout* layout) {
  if (value == v1::LAYOUT_UNSPECIFIED)
    return Invalid("LAYOUT_MISSING", field,
                   field.Text() + " is required: KN or NK; it is never guessed");
  if (!v1::Layout_IsValid(value)) return EnumUnknown("Layout", value, field);
  *layout = static_cast<Layout>(value);
  return {};
}

Status ReadOverflow(v1::Overflow value, const FieldPath& field, Overflow* overflow) {
  switch (value) {
    case v1::OVERFLOW_UNSPECIFIED:
    case v1::OVERFLOW_SATURATE: *overflow = Overflow::kSaturate; return {};
    case v1::OVERFLOW_WRAP: *overflow = Overflow::kWrap; return {};
    case v1::OVERFLOW_ERROR: *overflow = Overflow::kError; return {};
    default: return EnumUnknown("Overflow", value, field);
  }
}

Status ReadActivation(v1::Activation value, const FieldPath& field, Activation* activation) {
  switch (value) {
    case v1::ACTIVATION_UNSPECIFIED:
    case v1::ACTIVATION_NONE: *activation = Activation::kNone; return {};
    case v1::ACTIVATION_RELU: *activation = Activation::kRelu; return {};
    default: return EnumUnknown("Activation", value, field);
  }
}

bool ScaleInRange(float scale) {
  const float magnitude = std::fabs(scale);
  return magnitude == 0.0f || (magnitude >= 0x1p-47f && magnitude <= 0x1p47f);  // false for NaN
}

Status ReadScales(const v1::Scales& message, const FieldPath& field, std::vector<float>* scales) {
  const std::string& data = message.data();
  scales->clear();
  if (data.empty()) return {};
  DataType dtype;
  if (Status status = ReadDataType(message.dtype(), field.Of(".dtype"), &dtype); !status.ok())
    return status;
  if (!IsFloat(dtype))
    return Invalid("SCALE_DTYPE", field.Of(".dtype"),
                   "scales are F32, F16 or BF16, not " + std::string(NameOf(dtype)),
                   std::string(NameOf(dtype)));
  const size_t size = static_cast<size_t>(BitsOf(dtype) / 8);
  if (data.size() % size != 0)
    return Invalid("BYTES_MISMATCH", field.Of(".data"),
                   std::to_string(data.size()) + " bytes are no whole number of " +
                       std::string(NameOf(dtype)) + " scales",
                   std::to_string(data.size()));
  scales->resize(data.size() / size);
  if (dtype == DataType::kF32) {
    std::memcpy(scales->data(), data.data(), data.size());
    return {};
  }
  for (size_t i = 0; i < scales->size(); ++i) {
    uint16_t half = 0;
    std::memcpy(&half, data.data() + 2 * i, sizeof half);
    (*scales)[i] = dtype == DataType::kF16 ? F16ToFloat(half) : BF16ToFloat(half);
  }
  return {};
}

v1::DataType ToWire(DataType dtype) { return static_cast<v1::DataType>(dtype); }

v1::Layout ToWire(Layout layout) { return static_cast<v1::Layout>(layout); }

v1::Overflow ToWire(Overflow overflow) {
  switch (overflow) {
    case Overflow::kSaturate: return v1::OVERFLOW_SATURATE;
    case Overflow::kWrap: return v1::OVERFLOW_WRAP;
    case Overflow::kError: return v1::OVERFLOW_ERROR;
  }
  return v1::OVERFLOW_UNSPECIFIED;
}

}  // namespace qmatmul
