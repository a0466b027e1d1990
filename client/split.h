// How a MatMul that does not fit one message is cut by rows, and how the answers of its parts are
// made one. Rows are independent (docs/numerics.md §8), so the joined answer is byte for byte what
// one call would have given; where it would not be, because the weight changed between the parts,
// the call fails.
//
// Private to client/. Free functions without state.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/message.h"
#include "client/status.h"
#include "client/types.h"

namespace qmatmul::client {

// The parts of the call, in order: one when everything fits, else equal ones as large as fit.
// `columns` has n of the weight that each output comes from, 0 where it is not known; then the size
// of the reply is not looked at.
//   kResourceExhausted ROW_TOO_LARGE  one row does not fit
//   kInvalidArgument   BYTES_MISMATCH, SCALE_COUNT, ZERO_POINT_COUNT, BUFFER_SIZE: would have to be
//                      cut, but sizes do not agree
Result<std::vector<RowRange>> PlanRows(const Question& question, std::span<const int64_t> columns,
                                       int64_t message_bytes_max);

// The weight whose n is the width of output `i`.
const std::string& WidthWeight(const Question& question, size_t i);

struct Part {
  RowRange rows;
  Status status;  // ok: outputs are there
  std::vector<Output> outputs;
  // Given up because another part had failed: its status is not the call's.
  bool cancelled = false;
};

// The parts' outputs in one, or the error that the call in one piece would have given.
Result<std::vector<Output>> Join(const Question& question, std::vector<Part> parts);

// Whether the other parts of a call must still run to know its error: an overflow is counted over
// all of them.
bool NeedsOtherParts(const Status& status);

}  // namespace qmatmul::client
