// What the epilogue has to know of a weight's columns, whichever device holds the weight itself.
//
// Ownership: borrowed from the packed weight. Immutable.
#pragma once

#include <cstdint>

namespace qmatmul {

struct WeightColumns {
  int64_t n = 0;       // columns that exist
  int64_t stride = 0;  // from the values of one scale group to those of the next, at least n
  const int32_t* group_sums = nullptr;  // Σ_k W[k][n] over each group's k
  const float* scales = nullptr;        // fp32; 1 where the weight has none
  const float* bias = nullptr;          // nullptr: none
  // What was added to each of the weight's values before they were multiplied.
  int32_t offset = 0;
};

}  // namespace qmatmul
