#include "kernels/cpu/unpack.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <vector>

#include "kernels/half.h"
#include "kernels/upload_rules.h"

namespace qmatmul::cpu {
namespace {

// All n values of row k.
void ReadRow(const CpuPackedWeight& w, int64_t k, int8_t* values) {
  const int64_t n = w.spec().n, first = k % w.group_k() % kLineK;
  int8_t line[kLineValues];
  for (int64_t column = 0; column < n; column += kPanelColumns) {
    w.ReadLine(k, column, line);
    const int64_t columns = std::min(kPanelColumns, n - column);
    for (int64_t c = 0; c < columns; ++c) values[column + c] = line[c * kLineK + first];
  }
}

// All k values of column n.
void ReadColumn(const CpuPackedWeight& w, int64_t n, int8_t* values) {
  int8_t line[kLineValues];
  for (int64_t group = 0; group < w.spec().k; group += w.group_k())
    for (int64_t i = 0; i < w.group_k(); i += kLineK) {
      w.ReadLine(group + i, n, line);
      std::memcpy(values + group + i, line + n % kPanelColumns * kLineK,
                  size_t(std::min(kLineK, w.group_k() - i)));
    }
}

// The part of data that [begin, begin + out) is: whole lines are read, and what is wanted of them kept.
void ReadData(const CpuPackedWeight& w, int64_t begin, std::span<std::byte> out) {
  const WeightSpec& spec = w.spec();
  const int64_t line_bytes = spec.line_bytes();
  std::vector<int8_t> values(size_t(spec.layout == Layout::kKN ? spec.n : spec.k));
  std::vector<std::byte> bytes(static_cast<size_t>(line_bytes));
  for (size_t done = 0; done < out.size();) {
    const int64_t at = begin + int64_t(done), offset = at % line_bytes;
    if (spec.layout == Layout::kKN) ReadRow(w, at / line_bytes, values.data());
    else ReadColumn(w, at / line_bytes, values.data());
    PutPlainLine(spec.dtype, values, bytes.data());
    const size_t take = std::min(out.size() - done, size_t(line_bytes - offset));
    std::memcpy(out.data() + done, bytes.data() + offset, take);
    done += take;
  }
}

// As it was sent: widening was exact, so narrowing is.
void PutScale(DataType dtype, float scale, std::byte* out) {
  if (dtype == DataType::kF32) {
    std::memcpy(out, &scale, sizeof scale);
    return;
  }
  const uint16_t half = dtype == DataType::kF16 ? FloatToF16(scale) : FloatToBF16(scale);
  std::memcpy(out, &half, sizeof half);
}

std::vector<std::byte> ScalesAndBias(const CpuPackedWeight& w) {
  const WeightSpec& spec = w.spec();
  std::vector<std::byte> bytes(size_t(spec.scale_bytes() + spec.bias_bytes()));
  for (int64_t i = 0; i < spec.scale_count; ++i) {
    const float scale = w.scales(i / spec.n)[i % spec.n];
    PutScale(spec.scale_dtype, scale, bytes.data() + i * BitsOf(spec.scale_dtype) / 8);
  }
  if (spec.bias_count > 0)
    std::memcpy(bytes.data() + spec.scale_bytes(), w.bias(), size_t(spec.bias_bytes()));
  return bytes;
}

}  // namespace

void UnpackRows(const CpuPackedWeight& weight, int64_t k_begin, int64_t k_end, int8_t* out) {
  for (int64_t k = k_begin; k < k_end; ++k, out += weight.spec().n) ReadRow(weight, k, out);
}

void ReadUploadBytes(const CpuPackedWeight& weight, int64_t begin, std::span<std::byte> out) {
  const int64_t data_bytes = weight.spec().data_bytes();
  assert(begin >= 0 && begin + int64_t(out.size()) <= weight.spec().upload_bytes());
  const auto data = size_t(std::clamp<int64_t>(data_bytes - begin, 0, int64_t(out.size())));
  if (data > 0) ReadData(weight, begin, out.first(data));
  if (data == out.size()) return;
  const std::vector<std::byte> tail = ScalesAndBias(weight);
  std::memcpy(out.data() + data, tail.data() + std::max<int64_t>(begin - data_bytes, 0),
              out.size() - data);
}

}  // namespace qmatmul::cpu
