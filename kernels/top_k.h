// The k greatest of one finished row with their columns (numerics §6): greatest first, -0 = +0, ties
// to the lower column.
//
// Why here: what a result's order is does not depend on the device that computed it, so every device
// selects by this code, or proves itself against it.
//
// How: values become integers of the same order; a block of them is skipped at once when none exceeds
// the least that could still be among the k. What passes is gathered beside the best so far and thinned
// to k by nth_element when the buffer is full: O(n) whatever the order, and for the usual few of many
// little more than one look at each value.
//
// Thread-safety: a free function without shared state. Ownership: everything is borrowed for the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/matmul.h"

namespace qmatmul {

// `row` holds n values of an output type (INT8, INT16, INT32, F32, F16, BF16), anywhere in memory;
// 1 <= k <= n. Writes k values to `values` and k int32 columns to `columns`; neither need be aligned nor
// overlap `row`. ±inf takes its place at the end of the order. A NaN cannot come: numerics §0 lets in
// nothing that a product, a bias or a rounding could make one of. If one did, it would stand beyond the
// infinity of its sign, and the order would still be total.
// `scratch` keeps its memory from call to call: at most 8 bytes for each of 2k, k + 64 or n values.
void SelectTopK(const std::byte* row, DataType dtype, int64_t n, int64_t k, std::byte* values,
                std::byte* columns, std::vector<uint64_t>* scratch);

}  // namespace qmatmul
