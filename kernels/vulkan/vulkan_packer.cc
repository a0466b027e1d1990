#include "kernels/vulkan/vulkan_packer.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "kernels/upload_rules.h"

namespace qmatmul::vulkan {
namespace {

// Invocations of a workgroup of place.comp, and the bytes that each takes.
constexpr int64_t kPlaceInvocations = 64, kPlaceBytes = 4;

// As the push constants of place.comp.
struct PlaceArguments {
  uint32_t bytes, line, line_at, line_bytes, elements, is_nk, group_k, steps, columns, column_begin,
      column_end;
};
static_assert(sizeof(PlaceArguments) <= Pipelines::kArgumentBytes);

std::string PlaceShader(DataType weight) { return "place_s" + std::to_string(BitsOf(weight)); }

uint32_t U32(int64_t value) { return static_cast<uint32_t>(value); }

// Value v of a dword of the packed weight.
int8_t ValueAt(DataType dtype, uint32_t dword, int64_t v) {
  const int bits = BitsOf(dtype);
  const uint32_t raw = dword >> (v % 4 * 8 + v / 4 * bits);
  if (dtype == DataType::kInt8) return static_cast<int8_t>(raw);
  return static_cast<int8_t>(dtype == DataType::kInt4 ? int(raw & 15) - 8 : int(raw & 3) - 1);
}

}  // namespace

Fault VulkanPacker::Start(Gpu& gpu, const std::shared_ptr<Pipelines>& pipelines,
                          std::shared_ptr<VulkanWeight> weight, std::unique_ptr<Packer>* packer) {
  std::unique_ptr<VulkanPacker> made(new VulkanPacker(std::move(weight)));
  if (Fault fault = made->Prepare(gpu, pipelines); !fault.ok()) return fault;
  *packer = std::move(made);
  return {};
}

Fault VulkanPacker::Prepare(Gpu& gpu, const std::shared_ptr<Pipelines>& pipelines) {
  const int64_t wanted = (weight_->spec().data_bytes() + 3) / 4 * 4;
  if (Fault f = gpu.Allocate(std::min(wanted, kStageBytes), Place::kUpload, &stage_); !f.ok())
    return f;
  if (Fault f = Commands::Make(gpu.shared_from_this(), pipelines, &commands_); !f.ok()) return f;
  if (Fault f = commands_->Begin(); !f.ok()) return f;
  for (const WeightPart& part : weight_->parts()) commands_->Fill(*part.buffer);
  return commands_->Submit();
}

Fault VulkanPacker::Append(std::span<const std::byte> bytes) {
  const WeightSpec& spec = weight_->spec();
  if (Fault f = CheckUpload(spec, position_, bytes); !f.ok()) return f;
  const int64_t data_left = std::max<int64_t>(spec.data_bytes() - position_, 0);
  const size_t data = std::min(bytes.size(), size_t(data_left));
  if (data > 0)
    if (Fault f = Stage(bytes.first(data)); !f.ok()) return f;
  // All data are in: what follows would hide where they ended.
  if (position_ == spec.data_bytes())
    if (Fault f = Flush(); !f.ok()) return f;
  try {
    tail_.insert(tail_.end(), bytes.begin() + int64_t(data), bytes.end());
  } catch (const std::bad_alloc&) {
    return {FaultKind::kResourceExhausted, "WEIGHT_MEMORY", "no memory for the upload's scales"};
  }
  position_ += int64_t(bytes.size() - data);
  return {};
}

Fault VulkanPacker::Stage(std::span<const std::byte> data) {
  const int64_t room = std::min(stage_->bytes(), kStageBytes);
  while (!data.empty()) {
    // The device may still be reading what was staged before.
    if (staged_ == 0)
      if (Fault f = commands_->Wait(); !f.ok()) return f;
    const auto take = size_t(std::min(int64_t(data.size()), room - staged_));
    std::memcpy(stage_->data() + staged_, data.data(), take);
    Sum(data.first(take));
    staged_ += int64_t(take);
    position_ += int64_t(take);
    data = data.subspan(take);
    if (staged_ < room) return {};
    if (Fault f = Flush(); !f.ok()) return f;
  }
  return {};
}

Fault VulkanPacker::Flush() {
  if (staged_ == 0) return {};
  if (Fault f = commands_->Begin(); !f.ok()) return f;
  uint32_t dispatches = 0;
  for (const WeightPart& part : weight_->parts()) {
    if (dispatches++ == Commands::kDispatchesMax) {
      if (Fault f = commands_->Submit(); !f.ok()) return f;
      if (Fault f = commands_->Begin(); !f.ok()) return f;
      dispatches = 1;
    }
    if (Fault f = Place(part); !f.ok()) return f;
  }
  staged_ = 0;
  return commands_->Submit();
}

Fault VulkanPacker::Place(const WeightPart& part) {
  const WeightSpec& spec = weight_->spec();
  const int64_t first = position_ - staged_;
  PlaceArguments at{};
  at.bytes = U32(staged_);
  at.line = U32(first / spec.line_bytes());
  at.line_at = U32(first % spec.line_bytes());
  at.line_bytes = U32(spec.line_bytes());
  at.elements = U32(spec.layout == Layout::kKN ? spec.n : spec.k);
  at.is_nk = spec.layout == Layout::kNK ? 1 : 0;
  at.group_k = U32(weight_->group_k());
  at.steps = U32(weight_->steps());
  at.columns = U32(part.stride);
  at.column_begin = U32(part.column_begin);
  at.column_end = U32(part.column_begin + part.columns);
  constexpr int64_t kGroupBytes = kPlaceInvocations * kPlaceBytes;
  return commands_->Dispatch(PlaceShader(spec.dtype), {stage_.get(), part.buffer.get()},
                             std::as_bytes(std::span(&at, 1)),
                             U32((staged_ + kGroupBytes - 1) / kGroupBytes), 1, 1);
}

void VulkanPacker::Sum(std::span<const std::byte> data) {
  const WeightSpec& spec = weight_->spec();
  const int64_t line_bytes = spec.line_bytes(), per_byte = 8 / BitsOf(spec.dtype);
  const int64_t elements = spec.layout == Layout::kKN ? spec.n : spec.k;
  const auto* bytes = reinterpret_cast<const uint8_t*>(data.data());
  int64_t at = position_;
  const int64_t end = at + int64_t(data.size());
  while (at < end) {
    const int64_t line = at / line_bytes, first = at % line_bytes;
    const int64_t take = std::min(line_bytes - first, end - at);
    const int64_t element = first * per_byte;
    SumLine(bytes, line, element, std::min(take * per_byte, elements - element));
    bytes += take;
    at += take;
  }
}

void VulkanPacker::SumLine(const uint8_t* bytes, int64_t line, int64_t element, int64_t count) {
  const WeightSpec& spec = weight_->spec();
  const int64_t n = spec.n, group_k = weight_->group_k();
  if (spec.layout == Layout::kKN) {
    int32_t* sums = weight_->group_sums_.data() + line / group_k * n + element;
    for (int64_t i = 0; i < count; ++i) sums[i] += PlainElement(spec.dtype, bytes, i);
    return;
  }
  for (int64_t i = 0; i < count;) {
    const int64_t group = (element + i) / group_k;
    const int64_t end = std::min((group + 1) * group_k - element, count);
    int32_t sum = 0;
    for (; i < end; ++i) sum += PlainElement(spec.dtype, bytes, i);
    weight_->group_sums_[size_t(group * n + line)] += sum;
  }
}

Fault VulkanPacker::Finish(std::shared_ptr<const PackedWeight>* weight) {
  VulkanWeight& w = *weight_;
  const WeightSpec& spec = w.spec();
  if (Fault f = CheckUploadEnd(spec, position_); !f.ok()) return f;
  if (Fault f = Flush(); !f.ok()) return f;
  if (Fault f = commands_->Wait(); !f.ok()) return f;
  if (Fault f = WidenScales(spec, tail_.data(), spec.n, w.scales_.data()); !f.ok()) return f;
  if (Fault f = ReadBias(0, spec.bias_count, tail_.data() + spec.scale_bytes(), w.bias_.data());
      !f.ok())
    return f;
  for (size_t i = 0; !w.total_sums_.empty() && i < w.group_sums_.size(); ++i)
    w.total_sums_[i % size_t(spec.n)] += w.group_sums_[i];
  *weight = std::move(weight_);
  return {};
}

namespace {

// A run of columns of one step, in the buffer that it is read back to.
struct ReadBack {
  int64_t k;       // of its first value
  int64_t values;  // of K that exist
  int64_t column_begin, columns;
};

class Unpacker {
 public:
  Unpacker(const VulkanWeight& weight, int64_t k_begin, int64_t k_end, std::span<int8_t> out)
      : weight_(weight), k_begin_(k_begin), k_end_(k_end), out_(out) {}

  Fault Run(Gpu& gpu, const std::shared_ptr<Pipelines>& pipelines) {
    if (Fault f = gpu.Allocate(kReadBytes, Place::kDownload, &buffer_); !f.ok()) return f;
    if (Fault f = Commands::Make(gpu.shared_from_this(), pipelines, &commands_); !f.ok()) return f;
    for (const WeightPart& part : weight_.parts())
      for (int64_t k = k_begin_; k < k_end_;) {
        const int64_t in_group = k % weight_.group_k(), step = in_group / weight_.values();
        const int64_t end = std::min((step + 1) * weight_.values(), weight_.group_k());
        const int64_t row = k / weight_.group_k() * weight_.steps() + step;
        if (Fault f =
                ReadStep(part, row, k - in_group % weight_.values(), end - step * weight_.values());
            !f.ok())
          return f;
        k += end - in_group;
      }
    return Take();
  }

 private:
  static constexpr int64_t kReadBytes = VulkanPacker::kStageBytes;

  // Row `row` of a part, whose first value is k.
  Fault ReadStep(const WeightPart& part, int64_t row, int64_t k, int64_t values) {
    for (int64_t at = 0; at < part.columns;) {
      if (used_ == kReadBytes)
        if (Fault f = Take(); !f.ok()) return f;
      const int64_t columns = std::min(part.columns - at, (kReadBytes - used_) / 4);
      regions_.push_back({VkDeviceSize((row * part.stride + at) * 4), VkDeviceSize(used_),
                          VkDeviceSize(columns * 4)});
      sources_.push_back(part.buffer.get());
      reads_.push_back({k, values, part.column_begin + at, columns});
      used_ += columns * 4;
      at += columns;
    }
    return {};
  }

  // Reads what was asked for, and writes it to `out`.
  Fault Take() {
    if (Fault f = commands_->Begin(); !f.ok()) return f;
    for (size_t i = 0; i < regions_.size(); ++i)
      commands_->Copy(*sources_[i], *buffer_, {&regions_[i], 1});
    if (Fault f = commands_->Submit(); !f.ok()) return f;
    if (Fault f = commands_->Wait(); !f.ok()) return f;
    for (size_t i = 0; i < reads_.size(); ++i)
      Decode(reads_[i], buffer_->data() + regions_[i].dstOffset);
    regions_.clear();
    sources_.clear();
    reads_.clear();
    used_ = 0;
    return {};
  }

  void Decode(const ReadBack& read, const std::byte* data) {
    const WeightSpec& spec = weight_.spec();
    for (int64_t v = 0; v < read.values; ++v) {
      const int64_t k = read.k + v;
      if (k < k_begin_ || k >= k_end_) continue;
      int8_t* row = out_.data() + (k - k_begin_) * spec.n + read.column_begin;
      for (int64_t c = 0; c < read.columns; ++c) {
        uint32_t dword;
        std::memcpy(&dword, data + c * 4, 4);
        row[c] = ValueAt(spec.dtype, dword, v);
      }
    }
  }

  const VulkanWeight& weight_;
  const int64_t k_begin_, k_end_;
  std::span<int8_t> out_;
  std::unique_ptr<Buffer> buffer_;
  std::unique_ptr<Commands> commands_;
  int64_t used_ = 0;
  std::vector<VkBufferCopy> regions_;
  std::vector<const Buffer*> sources_;
  std::vector<ReadBack> reads_;
};

}  // namespace

Fault UnpackRows(Gpu& gpu, const std::shared_ptr<Pipelines>& pipelines, const VulkanWeight& weight,
                 int64_t k_begin, int64_t k_end, std::span<int8_t> out) {
  if (k_begin == k_end) return {};
  return Unpacker(weight, k_begin, k_end, out).Run(gpu, pipelines);
}

}  // namespace qmatmul::vulkan
