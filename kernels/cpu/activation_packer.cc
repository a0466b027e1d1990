#include "kernels/cpu/activation_packer.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace qmatmul::cpu {
namespace {

// The bytes [offset, offset + count) of pieces that split anywhere; copied only when they straddle
// one.
const void* Locate(std::span<const ByteSpan> spans, size_t offset, size_t count, Arena* stitched) {
  size_t i = 0;
  while (offset >= spans[i].bytes) offset -= spans[i++].bytes;
  if (spans[i].bytes - offset >= count) return spans[i].data + offset;
  auto* out = static_cast<std::byte*>(stitched->Reserve(count));
  for (size_t done = 0; done < count; ++i, offset = 0) {
    const size_t take = std::min(spans[i].bytes - offset, count - done);
    std::memcpy(out + done, spans[i].data + offset, take);
    done += take;
  }
  return out;
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

std::vector<Strip> CutStrips(int64_t rows, int mr) {
  const int64_t count = (rows + mr - 1) / mr;
  std::vector<Strip> strips;
  strips.reserve(size_t(count));
  for (int64_t s = 0; s < count; ++s) {
    const int64_t begin = rows * s / count, end = rows * (s + 1) / count;
    strips.push_back({begin, static_cast<int>(end - begin)});
  }
  return strips;
}

ActivationPacker::ActivationPacker(const MicroKernel& kernel, std::span<RowSegment> segments,
                                   int64_t k)
    : kernel_(kernel), segments_(segments), k_(k) {
  first_row_.reserve(segments.size());
  for (const RowSegment& segment : segments) {
    first_row_.push_back(rows_);
    rows_ += segment.rows;
  }
}

void ActivationPacker::PackStrip(int64_t block_begin, const Strip& strip, void* strip_data,
                                 PackedRow* rows, Scratch* scratch) {
  const int64_t begin = block_begin + strip.row_begin;
  size_t s =
      size_t(std::upper_bound(first_row_.begin(), first_row_.end(), begin) - first_row_.begin()) -
      1;
  for (int r = 0; r < strip.rows; ++r) {
    while (begin + r >= first_row_[s] + segments_[s].rows) ++s;
    RowSegment* segment = &segments_[s];
    const ActivationView& view = *segment->activations;
    const int64_t row = segment->row_begin + (begin + r - first_row_[s]);
    const size_t bytes = size_t(k_) * size_t(BitsOf(view.dtype) / 8);
    const void* source = Locate(view.bytes, size_t(row) * bytes, bytes, &scratch->stitched);
    auto* out = static_cast<std::byte*>(strip_data) + r * 4 * ElementBytes(kernel_.operand);
    PackRow(segment, row, source, strip.rows, out, &rows[strip.row_begin + r], scratch);
  }
}

void ActivationPacker::PackRow(RowSegment* segment, int64_t row, const void* bytes, int strip_rows,
                               void* out, PackedRow* packed, Scratch* scratch) {
  const ActivationView& view = *segment->activations;
  *packed = {segment, row, 1.0f, view.zero_point(row)};
  const bool is_unsigned = view.dtype == DataType::kUint8;
  if (IsFloat(view.dtype)) {
    auto* q = static_cast<int8_t*>(scratch->quantized.Reserve(size_t(k_)));
    if (!Quantize(segment, row, bytes, q, packed, scratch)) std::memset(q, 0, size_t(k_));
    bytes = q;
  } else if (!view.scales.empty()) {
    packed->scale = view.scale(row);
  }
  packed->correction += BiasOf(kernel_.operand, is_unsigned);
  kernel_.ops->interleave(kernel_.operand, is_unsigned, bytes, k_, strip_rows, out);
}

bool ActivationPacker::Quantize(RowSegment* segment, int64_t row, const void* bytes, int8_t* q,
                                PackedRow* packed, Scratch* scratch) {
  const ActivationView& view = *segment->activations;
  auto* widened = static_cast<float*>(scratch->widened.Reserve(size_t(k_) * 4));
  const uint32_t magnitude = kernel_.ops->widen(view.dtype, bytes, widened, k_);
  if (magnitude > kActivationMagnitudeMax) {
    Refuse(segment, row);
    return false;
  }
  if (view.quantization == Quantization::kStatic) {
    packed->scale = view.scale(row);
    kernel_.ops->quantize_static(widened, k_, 1.0f / packed->scale, packed->correction, q);
    return true;
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
  return true;
}

void ActivationPacker::Refuse(RowSegment* segment, int64_t row) {
  std::lock_guard lock(faults_);
  if (!segment->fault.ok()) return;
  segment->fault = {FaultKind::kInvalidArgument, "ACTIVATION_RANGE",
                    "activations row " + std::to_string(row) +
                        " holds a value that is not finite or beyond 2^53 in magnitude"};
}

}  // namespace qmatmul::cpu
