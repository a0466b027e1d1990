// The host's part after the sums: zero points, scales, bias, activation, the output's type, row checks
// and overflow counts, row by row, into the requests' own memory.
//
// Why apart from the tile loop: the sums of another device are finished by the same code (host_rows.cc).
//
// Thread-safety: members finish different columns of the same rows at the same time. Ownership: all is
// borrowed.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "kernels/cpu/activation_packer.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/device.h"
#include "kernels/weight_columns.h"

namespace qmatmul::cpu {

// Sums of a run of rows and columns of one weight.
struct SumsBlock {
  size_t index = 0;  // of the weight, within the step
  const WeightColumns* weight = nullptr;
  int64_t column_begin = 0;  // of the weight
  int64_t columns = 0;       // that exist
  int64_t row_begin = 0;     // of the packed rows
  int64_t row_end = 0;
  std::byte* sums = nullptr;  // [row_end - row_begin][ldc]: int32, or float for W8A32
  int64_t ldc = 0;
  bool is_corrected = false;  // the sums are free of the rows' corrections already
};

class RowFinisher {
 public:
  // `row_sums`, where a weight has an offset: Σ of the operand's values, [rows][groups].
  RowFinisher(bool is_float, int64_t groups, std::span<const std::span<const uint32_t>> checks,
              const std::vector<PackedRow>& rows, const std::vector<int32_t>& row_sums)
      : is_float_(is_float), groups_(groups), checks_(checks), rows_(rows), row_sums_(row_sums) {}

  // Where the sums of these rows may be made at once, since they are the results as they stand and the rows lie
  // below each other, *ldc apart: column 0 of the first. Null where they are not.
  std::byte* PlaceForSums(const SumsBlock& block, int64_t* ldc) const;
  // Whether the integer sums of these rows are asked for, beside what becomes of them (row checks, numerics §7).
  bool NeedsSums(const SumsBlock& block) const;
  // Adds the sums of one scale group to y, [rows][ldc]; groups come in ascending order.
  void AddGroup(const RowOps& ops, const SumsBlock& block, int64_t group, float* y);
  // Writes the results: of y after the last group of several, else of the sums, with y as scratch for
  // one row.
  void Finish(const RowOps& ops, const SumsBlock& block, float* y);

 private:
  bool group_wise() const { return groups_ > 1; }
  EpilogueRow Row(const SumsBlock& block, int64_t r, int64_t group, float* y) const;
  // Sums to y, with `add` onto the y of the groups before.
  void ScaleRow(const RowOps& ops, const SumsBlock& block, int64_t r, EpilogueRow* row, bool add);
  void CorrectRow(const RowOps& ops, const SumsBlock& block, int64_t r, EpilogueRow* row);

  const bool is_float_;
  const int64_t groups_;
  std::span<const std::span<const uint32_t>> checks_;
  const std::vector<PackedRow>& rows_;
  const std::vector<int32_t>& row_sums_;
  std::mutex outcomes_;
};

}  // namespace qmatmul::cpu
