// What a call costs beside its arithmetic: Device::Run on products of one row, from one thread, less the
// micro-kernel on the same data; and what a prediction costs, which servers ask for on every request.
#pragma once

namespace qmatmul::bench {

// Prints one line a figure; with `json` one object a line.
void PrintCallCosts(bool json);

}  // namespace qmatmul::bench
