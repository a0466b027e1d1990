#include "kernels/cpu/pack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "kernels/half.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace qmatmul::cpu {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Four rows of sixteen columns become one 64-byte line.
void InterleaveLine(const int8_t* const rows[4], int8_t* line) {
#if defined(__SSE2__)
  __m128i r[4];
  for (int i = 0; i < 4; ++i) r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i]));
  const __m128i low01 = _mm_unpacklo_epi8(r[0], r[1]), high01 = _mm_unpackhi_epi8(r[0], r[1]);
  const __m128i low23 = _mm_unpacklo_epi8(r[2], r[3]), high23 = _mm_unpackhi_epi8(r[2], r[3]);
  auto* to = reinterpret_cast<__m128i*>(line);
  _mm_store_si128(to, _mm_unpacklo_epi16(low01, low23));
  _mm_store_si128(to + 1, _mm_unpackhi_epi16(low01, low23));
  _mm_store_si128(to + 2, _mm_unpacklo_epi16(high01, high23));
  _mm_store_si128(to + 3, _mm_unpackhi_epi16(high01, high23));
#else
  for (int c = 0; c < 16; ++c)
    for (int j = 0; j < 4; ++j) line[4 * c + j] = rows[j][c];
#endif
}

float ScaleAt(DataType dtype, const std::byte* data, int64_t i) {
  if (dtype == DataType::kF32) {
    float value;
    std::memcpy(&value, data + 4 * i, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, data + 2 * i, 2);
  return dtype == DataType::kF16 ? F16ToFloat(half) : BF16ToFloat(half);
}

bool ScaleInRange(float s) {
  const float magnitude = std::fabs(s);
  return magnitude == 0.0f || (magnitude >= 0x1p-47f && magnitude <= 0x1p47f);
}

}  // namespace

CpuPackedWeight::CpuPackedWeight(const WeightSpec& spec, const std::string& device)
    : PackedWeight(spec, kLayoutN16K4, device) {}

std::shared_ptr<CpuPackedWeight> CpuPackedWeight::Allocate(const WeightSpec& spec,
                                                           const std::string& device) {
  std::shared_ptr<CpuPackedWeight> w(new CpuPackedWeight(spec, device));
  w->lines_ = (spec.k + kLineK - 1) / kLineK;
  w->panels_ = (spec.n + kPanelColumns - 1) / kPanelColumns;
  const int64_t columns = w->panels_ * kPanelColumns;
  const int64_t panel_bytes = w->panels_ * w->panel_bytes();
  const int64_t alignment = panel_bytes >= kHugePage ? kHugePage : kLineBytes;
  w->bytes_ = RoundUp(panel_bytes + 3 * columns * 4, alignment);
  void* memory = std::aligned_alloc(size_t(alignment), size_t(w->bytes_));
  if (memory == nullptr) return nullptr;
  // Fewer TLB misses while a weight streams past; a refusal costs nothing but speed.
  if (alignment == kHugePage) (void)madvise(memory, size_t(w->bytes_), MADV_HUGEPAGE);
  std::memset(memory, 0, size_t(w->bytes_));
  w->memory_ = static_cast<std::byte*>(memory);
  w->panel_data_ = reinterpret_cast<int8_t*>(w->memory_);
  w->sums_ = reinterpret_cast<int32_t*>(w->memory_ + panel_bytes);
  w->scales_ = reinterpret_cast<float*>(w->sums_ + columns);
  w->bias_ = w->scales_ + columns;
  return w;
}

CpuPackedWeight::~CpuPackedWeight() { std::free(memory_); }

N16K4Packer::N16K4Packer(std::shared_ptr<CpuPackedWeight> weight) : weight_(std::move(weight)) {
  const WeightSpec& spec = weight_->spec();
  scatter_ = StripeLines() * spec.line_bytes() > kStagingBytes / 2;
}

Fault N16K4Packer::Append(std::span<const std::byte> bytes) {
  const WeightSpec& spec = weight_->spec();
  if (position_ + int64_t(bytes.size()) > spec.upload_bytes())
    return {FaultKind::kInvalidArgument, "UPLOAD_LONG",
            "upload of " + std::to_string(position_ + int64_t(bytes.size())) +
                " bytes runs over the " + std::to_string(spec.upload_bytes()) +
                " that the spec says (data, scales, bias)"};
  const int64_t data_left = std::max<int64_t>(spec.data_bytes() - position_, 0);
  const size_t data = std::min(bytes.size(), size_t(data_left));
  if (data > 0) TakeData(bytes.first(data));
  tail_.insert(tail_.end(), bytes.begin() + data, bytes.end());
  position_ += int64_t(bytes.size());
  return {};
}

void N16K4Packer::TakeData(std::span<const std::byte> bytes) {
  const WeightSpec& spec = weight_->spec();
  if (scatter_) return ScatterKN(bytes);
  while (!bytes.empty()) {
    const int64_t lines = std::min(StripeLines(), spec.lines() - line_);
    const size_t stripe = size_t(lines * spec.line_bytes());
    if (stage_.empty() && bytes.size() >= stripe) {  // a whole stripe: straight from the chunk
      PackStripe(reinterpret_cast<const int8_t*>(bytes.data()), lines);
      bytes = bytes.subspan(stripe);
      continue;
    }
    const size_t take = std::min(bytes.size(), stripe - stage_.size());
    stage_.insert(stage_.end(), bytes.begin(), bytes.begin() + take);
    bytes = bytes.subspan(take);
    if (stage_.size() < stripe) return;
    PackStripe(reinterpret_cast<const int8_t*>(stage_.data()), lines);
    stage_.clear();
  }
}

void N16K4Packer::PackStripe(const int8_t* stripe, int64_t lines) {
  if (weight_->spec().layout == Layout::kKN) PackRowsKN(stripe, lines);
  else PackColumnsNK(stripe, lines);
  line_ += lines;
}

// Up to four rows of N values: line `line_ / 4` of every panel.
void N16K4Packer::PackRowsKN(const int8_t* stripe, int64_t rows) {
  const int64_t n = weight_->spec().n;
  int8_t* line = weight_->panel_data_ + line_ / kLineK * kLineBytes;
  static constexpr int8_t kZeros[16] = {};
  int64_t column = 0;
  for (; column + kPanelColumns <= n; column += kPanelColumns, line += weight_->panel_bytes()) {
    const int8_t* four[4];
    for (int64_t j = 0; j < 4; ++j) four[j] = j < rows ? stripe + j * n + column : kZeros;
    InterleaveLine(four, line);
  }
  for (int64_t c = 0; column + c < n; ++c)
    for (int64_t j = 0; j < rows; ++j) line[4 * c + j] = stripe[j * n + column + c];
}

// Up to sixteen columns of K values: one panel.
void N16K4Packer::PackColumnsNK(const int8_t* stripe, int64_t columns) {
  const int64_t k = weight_->spec().k;
  int8_t* panel = weight_->panel_data_ + line_ / kPanelColumns * weight_->panel_bytes();
  const int64_t whole = k / kLineK;
  // A few lines at a time, so that the sixteen streams and the lines they fill stay in L1.
  for (int64_t s0 = 0; s0 < whole; s0 += 64) {
    const int64_t s1 = std::min(s0 + 64, whole);
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t s = s0; s < s1; ++s)
        std::memcpy(panel + s * kLineBytes + 4 * c, stripe + c * k + 4 * s, 4);
  }
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t i = 4 * whole; i < k; ++i)
      panel[whole * kLineBytes + 4 * c + i % 4] = stripe[c * k + i];
}

// A row too wide to stage four of: each value goes to its place by itself.
void N16K4Packer::ScatterKN(std::span<const std::byte> bytes) {
  const int64_t n = weight_->spec().n;
  int64_t k = position_ / n, column = position_ % n;
  const auto* in = reinterpret_cast<const int8_t*>(bytes.data());
  for (size_t i = 0; i < bytes.size(); ++i) {
    int8_t* line = weight_->panel_data_ + column / kPanelColumns * weight_->panel_bytes() +
                   k / kLineK * kLineBytes;
    line[column % kPanelColumns * 4 + k % kLineK] = in[i];
    if (++column == n) {
      column = 0;
      ++k;
    }
  }
}

Fault N16K4Packer::Finish(std::shared_ptr<const PackedWeight>* weight) {
  const int64_t wanted = weight_->spec().upload_bytes();
  if (position_ != wanted)
    return {FaultKind::kInvalidArgument, "UPLOAD_SHORT",
            "upload stopped after " + std::to_string(position_) + " of " + std::to_string(wanted) +
                " bytes (data, scales, bias)"};
  if (Fault f = FinishScales(); !f.ok()) return f;
  if (Fault f = FinishBias(); !f.ok()) return f;
  SumColumns();
  *weight = std::move(weight_);
  return {};
}

Fault N16K4Packer::FinishScales() {
  const WeightSpec& spec = weight_->spec();
  for (int64_t i = 0; i < spec.scale_count; ++i) {
    const float s = ScaleAt(spec.scale_dtype, tail_.data(), i);
    if (!std::isfinite(s) || !ScaleInRange(s))
      return {FaultKind::kInvalidArgument, "SCALE_RANGE",
              "weight scale " + std::to_string(i) + " = " + std::to_string(s) +
                  " must be finite and 0 or of magnitude 2^-47 to 2^47"};
    weight_->scales_[i] = s;
  }
  // One scale a column, so that the epilogue has one form.
  if (spec.scale_count <= 1)
    std::fill_n(weight_->scales_, spec.n, spec.scale_count == 1 ? weight_->scales_[0] : 1.0f);
  return {};
}

Fault N16K4Packer::FinishBias() {
  const WeightSpec& spec = weight_->spec();
  const std::byte* data = tail_.data() + spec.scale_bytes();
  for (int64_t i = 0; i < spec.bias_count; ++i) {
    float b;
    std::memcpy(&b, data + 4 * i, 4);
    if (!(std::fabs(b) <= 0x1p120f))
      return {FaultKind::kInvalidArgument, "BIAS_RANGE",
              "bias " + std::to_string(i) + " = " + std::to_string(b) +
                  " must be finite and at most 2^120 in magnitude"};
    weight_->bias_[i] = b;
  }
  return {};
}

void N16K4Packer::SumColumns() {
  for (int64_t p = 0; p < weight_->panels(); ++p) {
    const int8_t* line = weight_->panel(p);
    int32_t sums[kPanelColumns] = {};
    for (int64_t s = 0; s < weight_->lines(); ++s, line += kLineBytes)
      for (int c = 0; c < kPanelColumns; ++c)
        sums[c] += line[4 * c] + line[4 * c + 1] + line[4 * c + 2] + line[4 * c + 3];
    std::copy_n(sums, kPanelColumns, weight_->sums_ + p * kPanelColumns);
  }
}

}  // namespace qmatmul::cpu
