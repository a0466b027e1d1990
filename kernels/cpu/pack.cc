#include "kernels/cpu/pack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/micro_kernel.h"
#include "kernels/upload_rules.h"

namespace qmatmul::cpu {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Sixty-four values to a packed line.
void EncodeLine(DataType dtype, const int8_t* values, uint8_t* line) {
  if (dtype == DataType::kInt8) {
    std::memcpy(line, values, kLineValues);
  } else if (dtype == DataType::kInt4) {
    for (int b = 0; b < 32; ++b)
      line[b] = static_cast<uint8_t>((values[b] + 8) | (values[b + 32] + 8) << 4);
  } else {
    for (int b = 0; b < 16; ++b)
      line[b] = static_cast<uint8_t>((values[b] + 1) | (values[b + 16] + 1) << 2 |
                                     (values[b + 32] + 1) << 4 | (values[b + 48] + 1) << 6);
  }
}

void DecodeLine(DataType dtype, const uint8_t* line, int8_t* values) {
  if (dtype == DataType::kInt8) {
    std::memcpy(values, line, kLineValues);
  } else if (dtype == DataType::kInt4) {
    for (int v = 0; v < 64; ++v)
      values[v] = static_cast<int8_t>((line[v % 32] >> (v / 32 * 4) & 15) - 8);
  } else {
    for (int v = 0; v < 64; ++v)
      values[v] = static_cast<int8_t>((line[v % 16] >> (v / 16 * 2) & 3) - 1);
  }
}

// Sets value v of a packed line, leaving the others.
void SetValue(DataType dtype, uint8_t* line, int64_t v, int8_t value) {
  if (dtype == DataType::kInt8) {
    line[v] = static_cast<uint8_t>(value);
    return;
  }
  const int bits = BitsOf(dtype);
  const int64_t bytes = kLineValues * bits / 8;
  const int shift = static_cast<int>(v / bytes) * bits;
  const int mask = ((1 << bits) - 1) << shift;
  line[v % bytes] =
      static_cast<uint8_t>((line[v % bytes] & ~mask) | (value + OffsetOf(dtype)) << shift);
}

}  // namespace

std::string_view LayoutOf(DataType weight) {
  if (weight == DataType::kInt4) return "n16k4.s4";
  return weight == DataType::kInt2 ? "n16k4.s2" : "n16k4.s8";
}

std::string LayoutOf(const WeightSpec& spec) {
  std::string layout(LayoutOf(spec.dtype));
  if (spec.group_wise()) layout += ".g" + std::to_string(spec.group_size);
  return layout;
}

int32_t OffsetOf(DataType weight) { return PlainOffset(weight); }

CpuPackedWeight::CpuPackedWeight(const WeightSpec& spec, const std::string& device)
    : PackedWeight(spec, LayoutOf(spec), device),
      groups_(spec.groups()),
      group_k_(spec.k / groups_),
      group_lines_((group_k_ + kLineK - 1) / kLineK),
      line_bytes_(kLineValues * BitsOf(spec.dtype) / 8),
      panels_((spec.n + kPanelColumns - 1) / kPanelColumns),
      panel_bytes_(groups_ * group_lines_ * line_bytes_) {}

std::shared_ptr<CpuPackedWeight> CpuPackedWeight::Allocate(const WeightSpec& spec,
                                                           const std::string& device) {
  std::shared_ptr<CpuPackedWeight> w(new CpuPackedWeight(spec, device));
  const int64_t columns = w->panels() * kPanelColumns;
  const int64_t panel_bytes = RoundUp(w->panels() * w->panel_bytes(), 64);
  const int64_t sum_rows = w->groups() + (w->groups() > 1 ? 1 : 0);
  const int64_t wanted = panel_bytes + (sum_rows + w->groups() + 1) * columns * 4;
  const int64_t alignment = panel_bytes >= kHugePage ? kHugePage : 64;
  w->bytes_ = RoundUp(wanted, alignment);
  void* memory = std::aligned_alloc(size_t(alignment), size_t(w->bytes_));
  if (memory == nullptr) return nullptr;
  // Fewer TLB misses while a weight streams past; a refusal costs nothing but speed.
  if (alignment == kHugePage) (void)madvise(memory, size_t(w->bytes_), MADV_HUGEPAGE);
  w->memory_ = static_cast<std::byte*>(memory);
  w->panel_data_ = reinterpret_cast<uint8_t*>(memory);
  w->sums_ = reinterpret_cast<int32_t*>(w->memory_ + panel_bytes);
  w->total_sums_ = w->sums_ + (sum_rows - 1) * columns;
  w->scales_ = reinterpret_cast<float*>(w->sums_ + sum_rows * columns);
  w->bias_ = w->scales_ + w->groups() * columns;
  w->columns_ = {spec.n, columns, w->sums_, w->scales_, w->bias(), OffsetOf(spec.dtype)};
  std::memset(w->memory_ + panel_bytes, 0, size_t(w->bytes_ - panel_bytes));
  return w;
}

CpuPackedWeight::~CpuPackedWeight() { std::free(memory_); }

uint8_t* CpuPackedWeight::line(int64_t k, int64_t n) const {
  const int64_t index = k / group_k() * group_lines() + k % group_k() / kLineK;
  return panel_data_ + n / kPanelColumns * panel_bytes() + index * line_bytes();
}

void CpuPackedWeight::ReadLine(int64_t k, int64_t n, int8_t* values) const {
  DecodeLine(spec().dtype, line(k, n), values);
}

CpuPacker::CpuPacker(std::shared_ptr<CpuPackedWeight> weight) : weight_(std::move(weight)) {
  const WeightSpec& spec = weight_->spec();
  scatter_ = StripeLines() * spec.line_bytes() > kStagingBytes / 2;
  if (!scatter_) return;
  // Every value is zero until it arrives; the padding stays so.
  const int zero = spec.dtype == DataType::kInt4 ? 0x88 : spec.dtype == DataType::kInt2 ? 0x55 : 0;
  std::memset(weight_->panel_data_, zero, size_t(weight_->panels() * weight_->panel_bytes()));
}

int64_t CpuPacker::StripeLines() const {
  const WeightSpec& spec = weight_->spec();
  if (spec.layout == Layout::kNK) return std::min(kPanelColumns, spec.n - line_);
  const int64_t group = weight_->group_k();
  return std::min(kLineK, group - line_ % group);
}

Fault CpuPacker::Append(std::span<const std::byte> bytes) {
  const WeightSpec& spec = weight_->spec();
  if (Fault f = CheckUpload(spec, position_, bytes); !f.ok()) return f;
  const int64_t data_left = std::max<int64_t>(spec.data_bytes() - position_, 0);
  const size_t data = std::min(bytes.size(), size_t(data_left));
  if (data > 0 && scatter_) Scatter(bytes.first(data));
  else if (data > 0) TakeData(bytes.first(data));
  tail_.insert(tail_.end(), bytes.begin() + int64_t(data), bytes.end());
  position_ += int64_t(bytes.size());
  return {};
}

void CpuPacker::TakeData(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const int64_t lines = StripeLines();
    const size_t stripe = size_t(lines * weight_->spec().line_bytes());
    if (stage_.empty() && bytes.size() >= stripe) {  // a whole stripe: straight from the chunk
      PackStripe(reinterpret_cast<const uint8_t*>(bytes.data()), lines);
      bytes = bytes.subspan(stripe);
      continue;
    }
    const size_t take = std::min(bytes.size(), stripe - stage_.size());
    stage_.insert(stage_.end(), bytes.begin(), bytes.begin() + int64_t(take));
    bytes = bytes.subspan(take);
    if (stage_.size() < stripe) return;
    PackStripe(reinterpret_cast<const uint8_t*>(stage_.data()), lines);
    stage_.clear();
  }
}

void CpuPacker::PackStripe(const uint8_t* stripe, int64_t lines) {
  const WeightSpec& spec = weight_->spec();
  if (spec.layout == Layout::kKN) PackRows(stripe, lines);
  else if (spec.dtype == DataType::kInt8) PackColumnsInt8(stripe, lines);
  else PackColumns(stripe, lines);
  line_ += lines;
}

// Up to four rows of N values: one line of every panel.
void CpuPacker::PackRows(const uint8_t* stripe, int64_t rows) {
  const WeightSpec& spec = weight_->spec();
  const int64_t n = spec.n, row_bytes = spec.line_bytes();
  uint8_t* line = weight_->line(line_, 0);
  for (int64_t column = 0; column < n; column += kPanelColumns, line += weight_->panel_bytes()) {
    const int64_t columns = std::min(kPanelColumns, n - column);
    alignas(16) int8_t values[kLineValues] = {};
    if (spec.dtype == DataType::kInt8 && rows == kLineK && columns == kPanelColumns) {
      const uint8_t* r = stripe + column;
      for (int64_t c = 0; c < kPanelColumns; ++c) {
        line[4 * c] = r[c];
        line[4 * c + 1] = r[row_bytes + c];
        line[4 * c + 2] = r[2 * row_bytes + c];
        line[4 * c + 3] = r[3 * row_bytes + c];
      }
      continue;
    }
    for (int64_t j = 0; j < rows; ++j)
      for (int64_t c = 0; c < columns; ++c)
        values[4 * c + j] = PlainElement(spec.dtype, stripe + j * row_bytes, column + c);
    EncodeLine(spec.dtype, values, line);
  }
}

// Up to sixteen columns of K values: one panel.
void CpuPacker::PackColumns(const uint8_t* stripe, int64_t columns) {
  const WeightSpec& spec = weight_->spec();
  const int64_t group = weight_->group_k();
  uint8_t* line = weight_->line(0, line_);
  for (int64_t k0 = 0; k0 < spec.k; k0 += group)
    for (int64_t i = 0; i < group; i += kLineK, line += weight_->line_bytes()) {
      int8_t values[kLineValues] = {};
      const int64_t count = std::min(kLineK, group - i);
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t j = 0; j < count; ++j)
          values[4 * c + j] = PlainElement(spec.dtype, stripe + c * spec.line_bytes(), k0 + i + j);
      EncodeLine(spec.dtype, values, line);
    }
}

void CpuPacker::PackColumnsInt8(const uint8_t* stripe, int64_t columns) {
  const int64_t k = weight_->spec().k, whole = k / kLineK;
  uint8_t* panel = weight_->line(0, line_);
  if (columns < kPanelColumns) std::memset(panel, 0, size_t(weight_->panel_bytes()));
  // A few lines at a time, so that the sixteen streams and the lines they fill stay in L1.
  for (int64_t s0 = 0; s0 < whole; s0 += 64) {
    const int64_t s1 = std::min(s0 + 64, whole);
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t s = s0; s < s1; ++s)
        std::memcpy(panel + s * kLineValues + 4 * c, stripe + c * k + 4 * s, 4);
  }
  if (k % kLineK == 0) return;
  uint8_t* last = panel + whole * kLineValues;
  std::memset(last, 0, kLineValues);
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t i = 4 * whole; i < k; ++i) last[4 * c + i % 4] = stripe[c * k + i];
}

void CpuPacker::Scatter(std::span<const std::byte> bytes) {
  const WeightSpec& spec = weight_->spec();
  const int64_t per_byte = 8 / BitsOf(spec.dtype), line_bytes = spec.line_bytes();
  for (size_t i = 0; i < bytes.size(); ++i) {
    const int64_t position = position_ + int64_t(i), k = position / line_bytes;
    const auto byte = static_cast<uint8_t>(bytes[i]);
    for (int64_t e = 0; e < per_byte; ++e) {
      const int64_t n = position % line_bytes * per_byte + e;
      if (n >= spec.n) break;
      const int64_t v = n % kPanelColumns * kLineK + k % weight_->group_k() % kLineK;
      SetValue(spec.dtype, weight_->line(k, n), v, PlainElement(spec.dtype, &byte, e));
    }
  }
}

Fault CpuPacker::Finish(std::shared_ptr<const PackedWeight>* weight) {
  const WeightSpec& spec = weight_->spec();
  const int64_t stride = weight_->columns().stride;
  if (Fault f = CheckUploadEnd(spec, position_); !f.ok()) return f;
  if (Fault f = WidenScales(spec, tail_.data(), stride, weight_->scales_); !f.ok()) return f;
  if (Fault f = ReadBias(0, spec.bias_count, tail_.data() + spec.scale_bytes(), weight_->bias_);
      !f.ok())
    return f;
  SumColumns();
  if (spec.dtype == DataType::kInt8) CountOutliers();
  *weight = std::move(weight_);
  return {};
}

void CpuPacker::SumColumns() {
  const DataType dtype = weight_->spec().dtype;
  const int64_t columns = weight_->panels() * kPanelColumns;
  for (int64_t p = 0; p < weight_->panels(); ++p) {
    const uint8_t* line = weight_->panel(p);
    for (int64_t g = 0; g < weight_->groups(); ++g) {
      // Four values of a column are one 32-bit lane: shifts take them apart, so the loop
      // vectorises.
      int32_t sums[kPanelColumns] = {};
      for (int64_t s = 0; s < weight_->group_lines(); ++s, line += weight_->line_bytes()) {
        int32_t lanes[kPanelColumns];
        DecodeLine(dtype, line, reinterpret_cast<int8_t*>(lanes));
        for (int c = 0; c < kPanelColumns; ++c)
          sums[c] += (lanes[c] << 24 >> 24) + (lanes[c] << 16 >> 24) + (lanes[c] << 8 >> 24) +
                     (lanes[c] >> 24);
      }
      std::copy_n(sums, kPanelColumns, weight_->sums_ + g * columns + p * kPanelColumns);
    }
  }
  if (weight_->groups() == 1) return;
  for (int64_t g = 0; g < weight_->groups(); ++g)
    for (int64_t n = 0; n < columns; ++n) weight_->total_sums_[n] += weight_->group_sums(g)[n];
}

void CpuPacker::CountOutliers() {
  constexpr int64_t kStride = 8;
  int64_t outliers = 0, values = 0;
  for (int64_t p = 0; p < weight_->panels(); ++p)
    for (int64_t s = p % kStride; s < weight_->lines(); s += kStride, values += kLineValues) {
      const auto* line = reinterpret_cast<const int8_t*>(weight_->panel(p)) + s * kLineValues;
      for (int v = 0; v < kLineValues; v += 2) {
        const int positive = std::max<int>(line[v], 0) + std::max<int>(line[v + 1], 0);
        const int negative = std::min<int>(line[v], 0) + std::min<int>(line[v + 1], 0);
        outliers += positive > kPairSumMax || negative < -kPairSumMax;
      }
    }
  weight_->outlier_share_ = values == 0 ? 0 : double(outliers) / double(values);
}

}  // namespace qmatmul::cpu
