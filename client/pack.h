// INT4 and INT2 weights as the contract sends them, from one int8 value an element: nibbles of
// value + 8, two per byte, low nibble first; codes of value + 1, four per byte, low bits first. Each
// line of the layout starts on a byte, and the unused bits of its last byte are 0.
//
// Without state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "client/status.h"
#include "client/types.h"

namespace qmatmul::client {

// `values` are lines of `line_elements`: n of them for KN, k for NK. For WeightUpload::data.
//   kInvalidArgument  WEIGHT_VALUE     a value outside -8 … 7 (INT4) or -1 … 1 (INT2)
//                     BYTES_MISMATCH   values are not whole lines
//                     DTYPE_MISMATCH   another type than INT4 or INT2
Result<std::vector<std::byte>> PackWeight(DataType dtype, std::span<const int8_t> values,
                                          int64_t line_elements);

}  // namespace qmatmul::client
