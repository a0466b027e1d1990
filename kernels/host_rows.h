// The host's part of a product whose sums another device computes: rows of many requests gathered and
// quantized into the plain form that device reads, and its sums finished into the requests' memory by the
// same code that finishes the CPU's own.
//
// Packed rows: [row][group][elements of the group, padded with zeros to a multiple of kRowStep], int8
// values for W8A8 (UINT8 data less 128, which the finishing takes back), floats for W8A32. Group by
// group: K in the weight's scale groups, one for most weights.
//
// Thread-safety: one Pack at a time, and no Finish beside it; threads may finish different columns of the
// packed rows at the same time. Ownership: segments, outputs and check vectors are borrowed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kernels/device.h"
#include "kernels/weight_columns.h"

namespace qmatmul {

class HostRows {
 public:
  static constexpr int64_t kRowStep = 16;

  // Sums of the packed rows for a run of columns of one weight.
  struct Sums {
    size_t index = 0;  // of the weight, within the step
    const WeightColumns* weight = nullptr;
    int64_t column_begin = 0;  // of the weight
    int64_t columns = 0;
    // [packed rows][stride], int32, or float for W8A32. Corrected in place.
    void* data = nullptr;
    int64_t stride = 0;
  };

  // `groups` divides k. `check_vectors` as in WorkStep, one for each weight of the step.
  HostRows(std::span<RowSegment> segments, int64_t k, int64_t groups, Arithmetic arithmetic,
           std::span<const std::span<const uint32_t>> check_vectors);
  ~HostRows();

  int64_t rows() const;            // of all segments
  int64_t group_elements() const;  // of a packed row, padding included
  int64_t row_bytes() const;       // of a packed row

  // Packs rows [begin, begin + count), counted through all segments, to `out`, and describes them for the
  // finishing. What is refused lands in its segment's fault. Faults: RESOURCE_EXHAUSTED SCRATCH_MEMORY.
  Fault Pack(int64_t begin, int64_t count, void* out);

  // Of several groups: adds one group's sums to y, [packed rows][sums.stride]; in ascending order.
  void AddGroup(const Sums& sums, int64_t group, float* y);
  // Writes the results: of y after the last group of several, else of the sums, with y as scratch for
  // sums.columns floats.
  void Finish(const Sums& sums, float* y);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qmatmul
