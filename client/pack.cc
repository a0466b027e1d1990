#include "client/pack.h"

#include <string>

#include "client/convert.h"

namespace qmatmul::client {

Result<std::vector<std::byte>> PackWeight(DataType dtype, std::span<const int8_t> values,
                                          int64_t line_elements) {
  const bool int4 = dtype == DataType::kInt4;
  if (!int4 && dtype != DataType::kInt2)
    return Refusal(Code::kInvalidArgument, "DTYPE_MISMATCH",
                   "INT4 and INT2 weights are packed, not " + std::string(NameOf(dtype)));
  if (line_elements < 1 || values.size() % static_cast<size_t>(line_elements) != 0)
    return Refusal(Code::kInvalidArgument, "BYTES_MISMATCH",
                   std::to_string(values.size()) + " values are not whole lines of " +
                       std::to_string(line_elements));
  const int least = int4 ? -8 : -1, greatest = int4 ? 7 : 1;
  const size_t line = static_cast<size_t>(line_elements), bits = int4 ? 4 : 2, per_byte = 8 / bits;
  const size_t line_bytes = (line + per_byte - 1) / per_byte;
  std::vector<std::byte> packed(values.size() / line * line_bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] < least || values[i] > greatest)
      return Refusal(Code::kInvalidArgument, "WEIGHT_VALUE",
                     "value [" + std::to_string(i / line) + ", " + std::to_string(i % line) +
                         "] = " + std::to_string(values[i]) + " is outside " +
                         std::to_string(least) + " ... " + std::to_string(greatest) + " of " +
                         std::string(NameOf(dtype)));
    const size_t at = i % line;
    packed[i / line * line_bytes + at / per_byte] |= static_cast<std::byte>(values[i] - least)
                                                     << at % per_byte * bits;
  }
  return packed;
}

}  // namespace qmatmul::client
