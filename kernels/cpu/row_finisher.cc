#include "kernels/cpu/row_finisher.h"

#include <algorithm>
#include <atomic>

namespace qmatmul::cpu {
namespace {

// Counts what one member saw of one output until the segment changes, then adds it once.
class OutcomeTally {
 public:
  OutcomeTally(std::mutex* mutex, size_t weight) : mutex_(mutex), weight_(weight) {}
  ~OutcomeTally() { Flush(); }
  void Add(RowSegment* segment, int64_t row, int64_t column, int64_t count) {
    if (segment != segment_) Flush();
    segment_ = segment;
    seen_.overflow_count += count;
    const bool before = row < seen_.first_overflow_row ||
                        (row == seen_.first_overflow_row && column < seen_.first_overflow_column);
    if (seen_.first_overflow_row >= 0 && !before) return;
    seen_.first_overflow_row = row;
    seen_.first_overflow_column = column;
  }

 private:
  void Flush() {
    if (segment_ == nullptr) return;
    std::lock_guard lock(*mutex_);
    Outcome& all = segment_->outputs[weight_].outcome;
    all.overflow_count += seen_.overflow_count;
    const bool before = seen_.first_overflow_row < all.first_overflow_row ||
                        (seen_.first_overflow_row == all.first_overflow_row &&
                         seen_.first_overflow_column < all.first_overflow_column);
    if (all.first_overflow_row < 0 || before) {
      all.first_overflow_row = seen_.first_overflow_row;
      all.first_overflow_column = seen_.first_overflow_column;
    }
    segment_ = nullptr;
    seen_ = {};
  }

  std::mutex* mutex_;
  size_t weight_;
  RowSegment* segment_ = nullptr;
  Outcome seen_;
};

}  // namespace

EpilogueRow RowFinisher::Row(const SumsBlock& x, int64_t r, int64_t group, float* y) const {
  const PackedRow& packed = rows_[size_t(r)];
  const SegmentOutput& output = packed.segment->outputs[x.index];
  const WeightColumns& weight = *x.weight;
  const int64_t first = group * weight.stride + x.column_begin;
  EpilogueRow row{};
  row.acc = reinterpret_cast<int32_t*>(x.sums) + (r - x.row_begin) * x.ldc;
  row.column_sums = weight.group_sums + first;
  row.correction = x.is_corrected ? 0 : packed.correction;
  if (weight.offset != 0 && !is_float_)
    row.offset = weight.offset * row_sums_[size_t(r * groups_ + group)];
  row.weight_scales = weight.scales + first;
  row.activation_scale = packed.scale;
  row.bias =
      weight.bias != nullptr && !output.epilogue.skip_bias ? weight.bias + x.column_begin : nullptr;
  row.epilogue = &output.epilogue;
  row.inverse_scale = 1.0f / output.epilogue.scale;
  row.out = output.view.data + packed.row * output.view.row_bytes +
            x.column_begin * (BitsOf(output.epilogue.dtype) / 8);
  row.n = x.columns;
  row.y = y;
  return row;
}

void RowFinisher::ScaleRow(const RowOps& ops, const SumsBlock& x, int64_t r, EpilogueRow* row,
                           bool add) {
  if (is_float_) {
    ops.scale_float(reinterpret_cast<const float*>(x.sums) + (r - x.row_begin) * x.ldc, row, add);
    return;
  }
  CorrectRow(ops, x, r, row);
  ops.scale(row, add);
}

void RowFinisher::CorrectRow(const RowOps& ops, const SumsBlock& x, int64_t r, EpilogueRow* row) {
  ops.correct(row);
  const PackedRow& packed = rows_[size_t(r)];
  SegmentOutput& output = packed.segment->outputs[x.index];
  if (output.row_checks.empty()) return;
  const uint64_t sum = ops.check(row->acc, checks_[x.index].data() + x.column_begin, row->n);
  std::atomic_ref(output.row_checks[size_t(packed.row)]).fetch_add(sum, std::memory_order_relaxed);
}

std::byte* RowFinisher::PlaceForSums(const SumsBlock& x, int64_t* ldc) const {
  const PackedRow& first = rows_[size_t(x.row_begin)];
  const SegmentOutput& output = first.segment->outputs[x.index];
  const OutputView& view = output.view;
  std::byte* const place = view.data + first.row * view.row_bytes;
  const bool are_results = output.epilogue.dtype == DataType::kInt32 && !is_float_ &&
                           !group_wise() && x.weight->offset == 0 && output.row_checks.empty();
  if (!are_results || reinterpret_cast<uintptr_t>(place) % alignof(int32_t) != 0 ||
      view.row_bytes % int64_t{sizeof(int32_t)} != 0)
    return nullptr;
  for (int64_t r = x.row_begin; r < x.row_end; ++r) {
    const PackedRow& packed = rows_[size_t(r)];
    if (packed.segment != first.segment || packed.row != first.row + (r - x.row_begin) ||
        (packed.correction != 0 && !x.is_corrected))
      return nullptr;
  }
  *ldc = view.row_bytes / int64_t{sizeof(int32_t)};
  return place;
}

bool RowFinisher::NeedsSums(const SumsBlock& x) const {
  return std::any_of(
      rows_.begin() + x.row_begin, rows_.begin() + x.row_end,
      [&x](const PackedRow& row) { return !row.segment->outputs[x.index].row_checks.empty(); });
}

void RowFinisher::AddGroup(const RowOps& ops, const SumsBlock& x, int64_t group, float* y) {
  for (int64_t r = x.row_begin; r < x.row_end; ++r) {
    EpilogueRow row = Row(x, r, group, y + (r - x.row_begin) * x.ldc);
    // The total of W8A32 starts at +0, which a first addend of −0 leaves as it is.
    if (group == 0 && is_float_) std::fill_n(row.y, row.n, 0.0f);
    ScaleRow(ops, x, r, &row, group > 0 || is_float_);
  }
}

void RowFinisher::Finish(const RowOps& ops, const SumsBlock& x, float* y) {
  OutcomeTally tally(&outcomes_, x.index);
  for (int64_t r = x.row_begin; r < x.row_end; ++r) {
    EpilogueRow row = Row(x, r, 0, group_wise() ? y + (r - x.row_begin) * x.ldc : y);
    if (row.epilogue->raw()) {
      CorrectRow(ops, x, r, &row);
      ops.finish_raw(&row);
    } else {
      const bool of_sums = !group_wise() && !is_float_;
      if (of_sums) CorrectRow(ops, x, r, &row);
      else if (!group_wise()) ScaleRow(ops, x, r, &row, false);
      ops.finish(&row, of_sums);
    }
    if (row.overflow_count == 0) continue;
    const PackedRow& packed = rows_[size_t(r)];
    tally.Add(packed.segment, packed.row, x.column_begin + row.first_overflow, row.overflow_count);
  }
}

}  // namespace qmatmul::cpu
