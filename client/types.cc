#include "client/types.h"

namespace qmatmul::client {

std::string_view NameOf(DataType dtype) {
  switch (dtype) {
    case DataType::kUnspecified: return "UNSPECIFIED";
    case DataType::kInt8: return "INT8";
    case DataType::kUint8: return "UINT8";
    case DataType::kInt16: return "INT16";
    case DataType::kInt32: return "INT32";
    case DataType::kF32: return "F32";
    case DataType::kF16: return "F16";
    case DataType::kBF16: return "BF16";
    case DataType::kInt4: return "INT4";
    case DataType::kInt2: return "INT2";
  }
  return "UNKNOWN";
}

std::string_view NameOf(Layout layout) {
  switch (layout) {
    case Layout::kUnspecified: return "UNSPECIFIED";
    case Layout::kKN: return "KN";
    case Layout::kNK: return "NK";
  }
  return "UNKNOWN";
}

std::string_view NameOf(Overflow overflow) {
  switch (overflow) {
    case Overflow::kUnspecified: return "UNSPECIFIED";
    case Overflow::kSaturate: return "SATURATE";
    case Overflow::kWrap: return "WRAP";
    case Overflow::kError: return "ERROR";
  }
  return "UNKNOWN";
}

std::string_view NameOf(Activation activation) {
  switch (activation) {
    case Activation::kUnspecified: return "UNSPECIFIED";
    case Activation::kNone: return "NONE";
    case Activation::kRelu: return "RELU";
  }
  return "UNKNOWN";
}

std::string_view NameOf(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kUnspecified: return "UNSPECIFIED";
    case Arithmetic::kW8A8: return "W8A8";
    case Arithmetic::kW8A32: return "W8A32";
  }
  return "UNKNOWN";
}

std::string_view NameOf(Health health) {
  switch (health) {
    case Health::kUnknown: return "UNKNOWN";
    case Health::kServing: return "SERVING";
    case Health::kNotServing: return "NOT_SERVING";
    case Health::kServiceUnknown: return "SERVICE_UNKNOWN";
  }
  return "UNKNOWN";
}

int BitsOf(DataType dtype) {
  switch (dtype) {
    case DataType::kUnspecified: return 0;
    case DataType::kInt2: return 2;
    case DataType::kInt4: return 4;
    case DataType::kInt8:
    case DataType::kUint8: return 8;
    case DataType::kInt16:
    case DataType::kF16:
    case DataType::kBF16: return 16;
    case DataType::kInt32:
    case DataType::kF32: return 32;
  }
  return 0;
}

int64_t Scales::count() const {
  const int bits = BitsOf(dtype);
  return bits == 0 ? 0 : static_cast<int64_t>(bytes.size()) * 8 / bits;
}

}  // namespace qmatmul::client
