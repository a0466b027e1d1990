#include "kernels/stages.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include <string>

#include "kernels/top_k.h"

namespace qmatmul {
namespace {

constexpr int64_t kNoRow = std::numeric_limits<int64_t>::max();
constexpr int64_t kOwnInput = -1;  // before every row: separate calls would have refused it first
constexpr float kActivationMax = 0x1p53f;  // numerics §0

// Where row 0 would lie if row `first_row` lies at `first`. An integer, since nothing need be there.
std::byte* RowZero(std::byte* first, int64_t first_row, int64_t row_bytes) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  return reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(first) -
                                      static_cast<uintptr_t>(first_row * row_bytes));
}

int64_t ElementBytes(const Epilogue& epilogue) { return BitsOf(epilogue.dtype) / 8; }

// `seen` counts rows from `row_begin` of the request on.
void AddOutcome(const Outcome& seen, int64_t row_begin, Outcome* all) {
  all->overflow_count += seen.overflow_count;
  if (seen.first_overflow_row < 0) return;
  const int64_t row = seen.first_overflow_row + row_begin;
  // Tiles go up the rows, so that only the first one that saw any has the first.
  if (all->first_overflow_row >= 0 && all->first_overflow_row <= row) return;
  all->first_overflow_row = row;
  all->first_overflow_column = seen.first_overflow_column;
}

}  // namespace

bool Stages::Needed(const Work& work) {
  if (work.steps.size() > 1) return true;
  for (const RowSegment& segment : work.segments)
    for (const SegmentOutput& output : segment.outputs)
      if (output.top_k > 0) return true;
  return false;
}

Stages::Stages(const Work& work) : work_(work) {
  for (size_t step = 0; !IsLast(step); ++step) {
    assert(work.steps[step].weights.size() == 1);
    assert(work.steps[step + 1].weights[0]->spec().k == ColumnsOf(step));
    intermediate_bytes_[step % 2] = std::max(intermediate_bytes_[step % 2], ColumnsOf(step) * 4);
  }
  for (const RowSegment& segment : work.segments) {
    assert(segment.outputs.size() == weights());
    assert(segment.intermediates.size() + 1 == work.steps.size());
    rows_ += segment.rows;
    int64_t bytes = 0;
    for (size_t w = 0; w < weights(); ++w)
      if (segment.outputs[w].top_k > 0)
        bytes += ColumnsOf(work.steps.size() - 1, w) * ElementBytes(segment.outputs[w].epilogue);
    finished_bytes_ = std::max(finished_bytes_, bytes);
  }
  const int64_t row_bytes = intermediate_bytes_[0] + intermediate_bytes_[1] + finished_bytes_;
  const int64_t rows_max = std::max<int64_t>(kScratchBytes / std::max<int64_t>(row_bytes, 1), 1);
  tiles_ = (rows_ + rows_max - 1) / rows_max;
  tile_rows_ = tiles_ == 0 ? 0 : (rows_ + tiles_ - 1) / tiles_;
}

Fault Stages::Run(const Multiply& multiply) {
  const int64_t row_bytes = intermediate_bytes_[0] + intermediate_bytes_[1] + finished_bytes_;
  try {
    scratch_.reset(new std::byte[static_cast<size_t>(tile_rows_ * row_bytes)]);
    refused_rows_.assign(work_.segments.size(), kNoRow);
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      CutTile(rows_ * tile / tiles_, rows_ * (tile + 1) / tiles_);
      if (Fault fault = RunTile(multiply); !fault.ok()) return fault;
    }
  } catch (const std::bad_alloc&) {
    return {FaultKind::kResourceExhausted, "SCRATCH_MEMORY",
            "no memory for " + std::to_string(tile_rows_ * row_bytes) +
                " bytes of intermediate results; send fewer rows at a time, or free memory"};
  }
  return {};
}

// The segments' rows [begin, end), counted through all of them.
void Stages::CutTile(int64_t begin, int64_t end) {
  parts_.clear();
  int64_t first = 0;  // of the segment
  for (size_t s = 0; s < work_.segments.size() && first < end; ++s) {
    const RowSegment& segment = work_.segments[s];
    const int64_t from = std::max(begin, first), to = std::min(end, first + segment.rows);
    if (from < to)
      parts_.push_back({s, segment.row_begin + (from - first), to - from, from - begin, {}, {}});
    first += segment.rows;
  }
}

Fault Stages::RunTile(const Multiply& multiply) {
  for (size_t step = 0; step < work_.steps.size(); ++step) {
    staged_.assign(parts_.size(), {});
    outputs_.assign(parts_.size() * work_.steps[step].weights.size(), {});
    for (size_t p = 0; p < parts_.size(); ++p) Stage(step, p);
    if (Fault fault = multiply(step, staged_); !fault.ok()) return fault;
    for (size_t p = 0; p < parts_.size(); ++p) Settle(step, p);
  }
  return {};
}

void Stages::Stage(size_t step, size_t p) {
  Part& part = parts_[p];
  const RowSegment& segment = work_.segments[part.segment];
  RowSegment& staged = staged_[p];
  staged.rows = part.rows;
  staged.activations = segment.activations;
  staged.row_begin = part.row_begin;
  if (step > 0) {
    const int64_t k = ColumnsOf(step - 1);
    part.bytes = {Intermediate(step - 1, part.tile_row), static_cast<size_t>(part.rows * k * 4)};
    part.view = {DataType::kF32, part.rows, k, {&part.bytes, 1}, Quantization::kNone, {}, {}};
    if (work_.steps[step].arithmetic == Arithmetic::kW8A8)
      part.view.quantization = Quantization::kDynamic;
    staged.activations = &part.view;
    staged.row_begin = 0;
  }
  const size_t count = work_.steps[step].weights.size();
  staged.outputs = {&outputs_[p * count], count};
  if (!IsLast(step)) {
    const int64_t row_bytes = ColumnsOf(step) * 4;
    std::byte* first = Intermediate(step, part.tile_row);
    staged.outputs[0].epilogue = segment.intermediates[step];
    staged.outputs[0].view = {RowZero(first, staged.row_begin, row_bytes), row_bytes};
    return;
  }
  const auto skip = static_cast<size_t>(part.row_begin - staged.row_begin);
  if (!segment.scales_used.empty()) staged.scales_used = segment.scales_used.subspan(skip);
  std::byte* finished = scratch_.get() +
                        tile_rows_ * (intermediate_bytes_[0] + intermediate_bytes_[1]) +
                        part.tile_row * finished_bytes_;
  for (size_t w = 0; w < count; ++w) {
    staged.outputs[w] = StageLast(step, part, w, finished);
    if (segment.outputs[w].top_k > 0) finished += part.rows * staged.outputs[w].view.row_bytes;
  }
}

SegmentOutput Stages::StageLast(size_t step, const Part& part, size_t weight,
                                std::byte* finished) const {
  const SegmentOutput& wanted = work_.segments[part.segment].outputs[weight];
  const int64_t row_begin = step == 0 ? part.row_begin : 0;  // of the staged segment
  const int64_t skip = part.row_begin - row_begin;
  SegmentOutput staged;
  staged.epilogue = wanted.epilogue;
  if (!wanted.row_checks.empty())
    staged.row_checks = wanted.row_checks.subspan(static_cast<size_t>(skip));
  if (wanted.top_k > 0) {
    const int64_t row_bytes = ColumnsOf(step, weight) * ElementBytes(wanted.epilogue);
    staged.view = {RowZero(finished, row_begin, row_bytes), row_bytes};
  } else {
    staged.view = {wanted.view.data + skip * wanted.view.row_bytes, wanted.view.row_bytes};
  }
  return staged;
}

void Stages::Settle(size_t step, size_t p) {
  const Part& part = parts_[p];
  const RowSegment& staged = staged_[p];
  RowSegment& segment = work_.segments[part.segment];
  if (!staged.fault.ok()) {
    if (step > 0) {
      NameRangeFault(step, part);
    } else if (refused_rows_[part.segment] != kOwnInput) {
      segment.fault = staged.fault;
      refused_rows_[part.segment] = kOwnInput;
    }
  }
  if (!IsLast(step)) return;
  for (size_t w = 0; w < segment.outputs.size(); ++w) {
    AddOutcome(staged.outputs[w].outcome, part.row_begin - staged.row_begin,
               &segment.outputs[w].outcome);
    if (segment.outputs[w].top_k == 0) continue;
    const OutputView& view = staged.outputs[w].view;
    // RowZero turned round: where row_begin lies.
    Select(part, w, {RowZero(view.data, -staged.row_begin, view.row_bytes), view.row_bytes});
  }
}

// Finds what this step refused, which its own fault names by rows of the tile and not surely the first.
void Stages::NameRangeFault(size_t step, const Part& part) {
  const int64_t k = ColumnsOf(step - 1);
  for (int64_t i = 0; i < part.rows * k; ++i) {
    float y;
    std::memcpy(&y, part.bytes.data + i * 4, 4);
    if (std::fabs(y) <= kActivationMax) continue;
    const int64_t row = part.row_begin + i / k;
    if (row >= refused_rows_[part.segment]) return;
    refused_rows_[part.segment] = row;
    char value[32];
    std::snprintf(value, sizeof value, "%.9g", static_cast<double>(y));
    work_.segments[part.segment].fault = {
        FaultKind::kInvalidArgument, "ACTIVATION_RANGE",
        "chain: the result of step " + std::to_string(step) + " at [" + std::to_string(row) + ", " +
            std::to_string(i % k) + "] is " + value + ", which step " + std::to_string(step + 1) +
            " of " + std::to_string(work_.steps.size()) +
            " cannot take: not within ±2^53; use smaller activations or scales"};
    return;
  }
}

void Stages::Select(const Part& part, size_t weight, const OutputView& finished) {
  const SegmentOutput& wanted = work_.segments[part.segment].outputs[weight];
  const int64_t n = ColumnsOf(work_.steps.size() - 1, weight);
  for (int64_t r = 0; r < part.rows; ++r) {
    const int64_t row = part.row_begin + r;
    SelectTopK(finished.data + r * finished.row_bytes, wanted.epilogue.dtype, n, wanted.top_k,
               wanted.view.data + row * wanted.view.row_bytes,
               wanted.indices + row * wanted.top_k * 4, &candidates_);
  }
}

std::byte* Stages::Intermediate(size_t step, int64_t tile_row) const {
  std::byte* odd_and_even =
      scratch_.get() + (step % 2 == 0 ? 0 : tile_rows_ * intermediate_bytes_[0]);
  return odd_and_even + tile_row * ColumnsOf(step) * 4;
}

int64_t Stages::ColumnsOf(size_t step, size_t weight) const {
  return work_.steps[step].weights[weight]->spec().n;
}

}  // namespace qmatmul
