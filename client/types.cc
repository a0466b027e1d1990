#include "client/types.h"

namespace qmatmul::client {
namespace {

// Rows in the order of the enumerators, which count from 0; convert.cc asserts that they are the
// contract's.
struct ElementType {
  std::string_view name;
  int bits;
};
constexpr ElementType kElementTypes[] = {
    {"UNSPECIFIED", 0}, {"INT8", 8}, {"UINT8", 8}, {"INT16", 16}, {"INT32", 32},
    {"F32", 32},        {"F16", 16}, {"BF16", 16}, {"INT4", 4},   {"INT2", 2},
};
constexpr std::string_view kLayouts[] = {"UNSPECIFIED", "KN", "NK"};
constexpr std::string_view kOverflows[] = {"UNSPECIFIED", "SATURATE", "WRAP", "ERROR"};
constexpr std::string_view kActivations[] = {"UNSPECIFIED", "NONE", "RELU"};
constexpr std::string_view kArithmetics[] = {"UNSPECIFIED", "W8A8", "W8A32"};
constexpr std::string_view kHealths[] = {"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"};

template <class Row, size_t kRows, class Enum>
constexpr Row RowOf(const Row (&rows)[kRows], Enum value, Row unknown) {
  const auto index = static_cast<size_t>(value);
  return index < kRows ? rows[index] : unknown;
}

constexpr std::string_view kUnknown = "UNKNOWN";  // a newer server's value

ElementType RowOf(DataType dtype) { return RowOf(kElementTypes, dtype, {kUnknown, 0}); }

}  // namespace

std::string_view NameOf(DataType dtype) { return RowOf(dtype).name; }
std::string_view NameOf(Layout layout) { return RowOf(kLayouts, layout, kUnknown); }
std::string_view NameOf(Overflow overflow) { return RowOf(kOverflows, overflow, kUnknown); }
std::string_view NameOf(Activation activation) { return RowOf(kActivations, activation, kUnknown); }
std::string_view NameOf(Arithmetic arithmetic) { return RowOf(kArithmetics, arithmetic, kUnknown); }
std::string_view NameOf(Health health) { return RowOf(kHealths, health, kUnknown); }

int BitsOf(DataType dtype) { return RowOf(dtype).bits; }

int64_t Scales::count() const {
  const int bits = BitsOf(dtype);
  return bits == 0 ? 0 : static_cast<int64_t>(bytes.size()) * 8 / bits;
}

}  // namespace qmatmul::client
