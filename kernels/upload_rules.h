// What every packer must say of an upload's bytes, whatever it makes of them: the same faults on every
// device (numerics §0, §1).
//
// Thread-safety: free functions without state. Ownership: views are borrowed for the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/matmul.h"

namespace qmatmul {

// Bytes [position, position + bytes) of an upload. UPLOAD_LONG when they run over the spec's;
// PADDING_BITS and INT2_CODE when the data among them is not a weight.
Fault CheckUpload(const WeightSpec& spec, int64_t position, std::span<const std::byte> bytes);
// UPLOAD_SHORT when the upload stops at `position` before it is whole.
Fault CheckUploadEnd(const WeightSpec& spec, int64_t position);

// What is added to an element before it is sent as an unsigned code.
inline int PlainOffset(DataType dtype) {
  return dtype == DataType::kInt4 ? 8 : dtype == DataType::kInt2 ? 1 : 0;
}

// Element `index` of a plain line as it was sent.
inline int8_t PlainElement(DataType dtype, const uint8_t* line, int64_t index) {
  if (dtype == DataType::kInt8) return static_cast<int8_t>(line[index]);
  if (dtype == DataType::kInt4)
    return static_cast<int8_t>((line[index / 2] >> (index % 2 * 4) & 15) - 8);
  return static_cast<int8_t>((line[index / 4] >> (index % 4 * 2) & 3) - 1);
}

// The other way: a whole line of values to its line_bytes() bytes, padding bits zero.
void PutPlainLine(DataType dtype, std::span<const int8_t> values, std::byte* line);

// Scales [first, first + count) of an upload, whose bytes `data` are, to fp32. SCALE_RANGE.
Fault ReadScales(const WeightSpec& spec, int64_t first, int64_t count, const std::byte* data,
                 float* values);
// Bias values [first, first + count), likewise. BIAS_RANGE.
Fault ReadBias(int64_t first, int64_t count, const std::byte* data, float* values);
// All scales to one a column and group, scales[group * stride + column], 1 where there are none. SCALE_RANGE.
Fault WidenScales(const WeightSpec& spec, const std::byte* data, int64_t stride, float* scales);

}  // namespace qmatmul
