#include "kernels/cpu/activation_packer.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace qmatmul::cpu {
namespace {

// The bytes [offset, offset + count) of pieces that split anywhere; copied to `room` only when they straddle
// one.
const void* Locate(std::span<const ByteSpan> spans, size_t offset, size_t count, std::byte* room) {
  size_t i = 0;
  while (offset >= spans[i].bytes) offset -= spans[i++].bytes;
  if (spans[i].bytes - offset >= count) return spans[i].data + offset;
  for (size_t done = 0; done < count; ++i, offset = 0) {
    const size_t take = std::min(spans[i].bytes - offset, count - done);
    std::memcpy(room + done, spans[i].data + offset, take);
    done += take;
  }
  return room;
}

}  // namespace

Arena::~Arena() { std::free(memory_); }

void* Arena::Reserve(size_t bytes) {
  if (bytes <= bytes_) return memory_;
  const size_t size = (std::max(bytes, bytes_ * 3 / 2) + 4095) / 4096 * 4096;
  void* memory = std::aligned_alloc(64, size);
  if (memory == nullptr) throw std::bad_alloc();
  std::free(memory_);
  memory_ = memory;
  bytes_ = size;
  return memory_;
}

void CutStrips(int64_t first, int64_t rows, int mr, std::vector<Strip>* strips) {
  const int64_t count = (rows + mr - 1) / mr;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t begin = rows * s / count, end = rows * (s + 1) / count;
    strips->push_back({first + begin, static_cast<int>(end - begin)});
  }
}

ActivationPacker::ActivationPacker(const MicroKernel& kernel, std::span<RowSegment> segments,
                                   int64_t k, int64_t group_k, std::vector<int64_t>* first_rows)
    : kernel_(kernel),
      segments_(segments),
      k_(k),
      group_k_(group_k),
      groups_(k / group_k),
      group_elements_((group_k + kernel.kr - 1) / kernel.kr * kernel.kr),
      row_bytes_(groups_ * group_elements_ * ElementBytes(kernel.operand)),
      first_row_(*first_rows) {
  first_row_.clear();
  for (const RowSegment& segment : segments) {
    first_row_.push_back(rows_);
    rows_ += segment.rows;
  }
}

void ActivationPacker::PackStrip(int64_t shift, const Strip& strip, void* strip_data,
                                 PackedRow* rows, int32_t* sums, Scratch* scratch) {
  const int64_t begin = shift + strip.row_begin;
  const auto after = std::upper_bound(first_row_.begin(), first_row_.end(), begin);
  auto s = static_cast<size_t>(after - first_row_.begin()) - 1;
  const int64_t value_bytes = kernel_.operand == Operand::kF32 ? 4 : 1;
  const int64_t room_bytes = (k_ * value_bytes + 63) / 64 * 64;
  auto* const room =
      static_cast<std::byte*>(scratch->values.Reserve(size_t(strip.rows * room_bytes)));
  SourceRow source[kStripRowsMax];
  for (int r = 0; r < strip.rows; ++r) {
    while (begin + r >= first_row_[s] + segments_[s].rows) ++s;
    const int64_t row = segments_[s].row_begin + (begin + r - first_row_[s]);
    source[r] =
        TakeRow(&segments_[s], row, room + r * room_bytes, &rows[strip.row_begin + r], scratch);
  }
  auto* out = static_cast<std::byte*>(strip_data);
  for (int64_t g = 0; g < groups(); ++g) {
    kernel_.ops->interleave(kernel_.operand, kernel_.kr, source, strip.rows, group_k_, out);
    out += group_elements() * strip.rows * ElementBytes(kernel_.operand);
    for (int r = 0; r < strip.rows; ++r) {
      SourceRow& from = source[r];
      if (sums != nullptr)
        sums[(strip.row_begin + r) * groups() + g] =
            kernel_.ops->sum(from.is_unsigned, from.values, group_k_);
      from.values = static_cast<const std::byte*>(from.values) + group_k_ * value_bytes;
    }
  }
}

SourceRow ActivationPacker::TakeRow(RowSegment* segment, int64_t row, std::byte* room,
                                    PackedRow* packed, Scratch* scratch) {
  const ActivationView& view = *segment->activations;
  *packed = {segment, row, 1.0f, 0};
  const bool to_floats = kernel_.operand == Operand::kF32, is_float = IsFloat(view.dtype);
  const size_t bytes = size_t(k_) * size_t(BitsOf(view.dtype) / 8);
  // What is not yet as it is interleaved passes through scratch.
  const bool is_ready = to_floats ? view.dtype == DataType::kF32 : !is_float;
  auto* const stitched =
      is_ready ? room : static_cast<std::byte*>(scratch->stitched.Reserve(bytes));
  const void* values = Locate(view.bytes, size_t(row) * bytes, bytes, stitched);
  if (to_floats) {
    uint32_t magnitude = 0;
    return {Widen(segment, row, values, reinterpret_cast<float*>(room), &magnitude), false};
  }
  packed->correction = view.zero_point(row);
  if (is_float) {
    auto* const q = reinterpret_cast<int8_t*>(room);
    Quantize(segment, row, values, packed, q, scratch);
    values = q;
  } else if (!view.scales.empty()) {
    packed->scale = view.scale(row);
  }
  const bool is_unsigned = view.dtype == DataType::kUint8;
  packed->correction += BiasOf(kernel_.operand, is_unsigned);
  return {values, is_unsigned};
}

const float* ActivationPacker::Widen(RowSegment* segment, int64_t row, const void* bytes,
                                     float* room, uint32_t* magnitude) {
  const DataType dtype = segment->activations->dtype;
  const bool as_they_stand =
      dtype == DataType::kF32 && reinterpret_cast<uintptr_t>(bytes) % alignof(float) == 0;
  const float* widened = static_cast<const float*>(bytes);
  if (!as_they_stand) {
    kernel_.ops->widen(dtype, bytes, room, k_);
    widened = room;
  }
  *magnitude = kernel_.ops->magnitude(widened, k_);
  if (*magnitude <= kActivationMagnitudeMax) return widened;
  Refuse(segment, row);
  *magnitude = 0;
  std::fill_n(room, k_, 0.0f);
  return room;
}

void ActivationPacker::Quantize(RowSegment* segment, int64_t row, const void* bytes,
                                PackedRow* packed, int8_t* q, Scratch* scratch) {
  const ActivationView& view = *segment->activations;
  uint32_t magnitude = 0;
  auto* const room = static_cast<float*>(scratch->widened.Reserve(size_t(k_) * 4));
  const float* widened = Widen(segment, row, bytes, room, &magnitude);
  if (view.quantization == Quantization::kStatic) {
    packed->scale = view.scale(row);
    kernel_.ops->quantize_static(widened, k_, 1.0f / packed->scale, packed->correction, q);
    return;
  }
  float amax;
  std::memcpy(&amax, &magnitude, 4);
  if (amax < 0x1p-100f) {  // a row of (almost) nothing is exactly nothing
    packed->scale = 0.0f;
    std::memset(q, 0, size_t(k_));
  } else {
    packed->scale = amax / 127.0f;
    kernel_.ops->quantize_dynamic(widened, k_, 127.0f / amax, q);
  }
  if (!segment->scales_used.empty()) segment->scales_used[size_t(row)] = packed->scale;
}

void ActivationPacker::Refuse(RowSegment* segment, int64_t row) {
  std::lock_guard lock(faults_);
  if (!segment->fault.ok()) return;
  segment->fault = {FaultKind::kInvalidArgument, "ACTIVATION_RANGE",
                    "activations row " + std::to_string(row) +
                        " holds a value that is not finite or beyond 2^53 in magnitude"};
}

}  // namespace qmatmul::cpu
