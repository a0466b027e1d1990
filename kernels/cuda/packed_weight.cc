#include "kernels/cuda/packed_weight.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "kernels/upload_rules.h"

namespace qmatmul::cuda {
namespace {

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

template <typename T>
T* At(std::byte* base, int64_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

int Blocks(int64_t threads) { return static_cast<int>((threads + 127) / 128); }

}  // namespace

std::string_view LayoutOf(DataType weight) {
  if (weight == DataType::kInt4) return "nk32.s4";
  return weight == DataType::kInt2 ? "nk64.s2" : "nk16.s8";
}

std::string LayoutOf(const WeightSpec& spec) {
  std::string layout(LayoutOf(spec.dtype));
  if (spec.group_wise()) layout += ".g" + std::to_string(spec.group_size);
  return layout;
}

CudaPackedWeight::CudaPackedWeight(const WeightSpec& spec, std::shared_ptr<Gpu> gpu)
    : PackedWeight(spec, LayoutOf(spec), gpu->info().id), gpu_(std::move(gpu)) {
  args_.n = static_cast<int32_t>(spec.n);
  args_.k = static_cast<int32_t>(spec.k);
  args_.groups = static_cast<int32_t>(spec.groups());
  args_.group_k = static_cast<int32_t>(spec.k / spec.groups());
  args_.group_pad =
      static_cast<int32_t>(RoundUp(args_.group_k, spec.dtype == DataType::kInt2 ? 64 : kStepK));
  args_.row_bytes = int64_t{args_.groups} * args_.group_pad * BitsOf(spec.dtype) / 8;
}

CudaPackedWeight::~CudaPackedWeight() { gpu_->arena().Free(memory_); }

Fault CudaPackedWeight::Allocate(const WeightSpec& spec, std::shared_ptr<Gpu> gpu,
                                 std::shared_ptr<CudaPackedWeight>* weight) {
  if (Fault fault = gpu->CheckLost(); !fault.ok()) return fault;
  Gpu* const g = gpu.get();
  weight->reset(new CudaPackedWeight(spec, std::move(gpu)));
  CudaPackedWeight& w = **weight;
  const int64_t line = RoundUp(spec.n * 4, 16), groups = w.args_.groups;
  const int64_t sums = RoundUp(w.data_bytes(), Arena::kBlockBytes);
  const int64_t scales = sums + RoundUp(groups * spec.n * 4, 16);
  const int64_t bias = scales + RoundUp(groups * spec.n * 4, 16);
  const int64_t totals = bias + (spec.bias_count > 0 ? line : 0);
  const int64_t end = totals + (groups > 1 ? line : 0);
  Error error = g->arena().Allocate(end, &w.memory_);
  if (error.ok()) {
    const Gpu::Hold lane(g);
    if (!lane) return g->CheckLost();
    error = g->runtime().Clear(lane->stream, w.memory_, end);
    if (error.ok()) error = g->runtime().Synchronize(lane->stream);
  }
  if (!error.ok())
    return g->FaultOf(error, "WEIGHT_MEMORY",
                      "a packed weight of k = " + std::to_string(spec.k) + ", n = " +
                          std::to_string(spec.n) + ": " + std::to_string(end) + " bytes");
  w.bytes_ = Arena::BlockBytes(end);
  w.args_.data = At<unsigned char>(w.memory_, 0);
  w.args_.sums = At<int32_t>(w.memory_, sums);
  w.args_.scales = At<float>(w.memory_, scales);
  if (spec.bias_count > 0) w.args_.bias = At<float>(w.memory_, bias);
  if (groups > 1) w.device_totals_ = At<int32_t>(w.memory_, totals);
  return {};
}

CudaPacker::CudaPacker(std::shared_ptr<CudaPackedWeight> weight) : weight_(std::move(weight)) {
  SkipEmpty();
}

int64_t CudaPacker::SectionBytes() const {
  const WeightSpec& spec = weight_->spec();
  if (section_ == Section::kData) return spec.data_bytes();
  if (section_ == Section::kScales) return spec.scale_bytes();
  return section_ == Section::kBias ? spec.bias_bytes() : 0;
}

// On to the section that has bytes to come.
void CudaPacker::SkipEmpty() {
  while (section_ != Section::kEnd && section_at_ == SectionBytes()) {
    section_ = static_cast<Section>(static_cast<int>(section_) + 1);
    section_at_ = 0;
  }
}

Fault CudaPacker::FaultOf(const Error& error) {
  return weight_->gpu_->FaultOf(error, "WEIGHT_MEMORY", "the staging of a weight's upload");
}

Fault CudaPacker::Append(std::span<const std::byte> bytes) {
  if (Fault fault = CheckUpload(weight_->spec(), position_, bytes); !fault.ok()) return fault;
  position_ += static_cast<int64_t>(bytes.size());
  while (!bytes.empty()) {
    const int64_t left = SectionBytes() - section_at_, wanted = std::min(left, kStageBytes);
    const auto take = std::min(bytes.size(), static_cast<size_t>(wanted) - stage_.size());
    stage_.insert(stage_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(take));
    bytes = bytes.subspan(take);
    if (static_cast<int64_t>(stage_.size()) < wanted) break;
    if (Fault fault = Flush(); !fault.ok()) return fault;
  }
  return {};
}

Fault CudaPacker::Flush() {
  Fault fault = section_ == Section::kData     ? FlushData()
                : section_ == Section::kScales ? FlushScales()
                                               : FlushBias();
  if (!fault.ok()) return fault;
  section_at_ += static_cast<int64_t>(stage_.size());
  stage_.clear();
  SkipEmpty();
  return {};
}

Fault CudaPacker::FlushData() {
  const WeightSpec& spec = weight_->spec();
  const WeightArgs& w = weight_->args_;
  const auto bytes = static_cast<int64_t>(stage_.size());
  Gpu& gpu = *weight_->gpu_;
  const Gpu::Hold lane(&gpu);
  if (!lane) return gpu.CheckLost();
  if (Error e = lane->host.Reserve(bytes); !e.ok()) return FaultOf(e);
  if (Error e = lane->device.Reserve(bytes); !e.ok()) return FaultOf(e);
  std::memcpy(lane->host.data(), stage_.data(), stage_.size());
  PackArgs args;
  args.raw = reinterpret_cast<const unsigned char*>(lane->device.data());
  args.first_byte = section_at_;
  args.bytes = bytes;
  args.data = const_cast<unsigned char*>(w.data);
  args.row_bytes = w.row_bytes;
  args.line_bytes = spec.line_bytes();
  args.n = w.n;
  args.k = w.k;
  args.group_k = w.group_k;
  args.group_pad = w.group_pad;
  args.dtype = spec.dtype;
  args.layout = spec.layout;
  KernelLaunch launch = KernelLaunch::Of(KernelId::kPack, args);
  launch.grid_x = Blocks(bytes);
  Runtime& runtime = gpu.runtime();
  Error e = runtime.Upload(lane->stream, lane->device.data(), lane->host.data(), bytes);
  if (e.ok()) e = runtime.Launch(lane->stream, launch);
  if (e.ok()) e = runtime.Synchronize(lane->stream);
  return FaultOf(e);
}

Fault CudaPacker::PutFloats(const std::vector<float>& values, const float* to) {
  const auto bytes = static_cast<int64_t>(values.size() * 4);
  Gpu& gpu = *weight_->gpu_;
  const Gpu::Hold lane(&gpu);
  if (!lane) return gpu.CheckLost();
  if (Error e = lane->host.Reserve(bytes); !e.ok()) return FaultOf(e);
  std::memcpy(lane->host.data(), values.data(), static_cast<size_t>(bytes));
  auto* device = reinterpret_cast<std::byte*>(const_cast<float*>(to));
  Error e = gpu.runtime().Upload(lane->stream, device, lane->host.data(), bytes);
  if (e.ok()) e = gpu.runtime().Synchronize(lane->stream);
  return FaultOf(e);
}

Fault CudaPacker::FlushScales() {
  const WeightSpec& spec = weight_->spec();
  const int64_t element = BitsOf(spec.scale_dtype) / 8, first = section_at_ / element;
  const int64_t count = static_cast<int64_t>(stage_.size()) / element;
  std::vector<float> values(static_cast<size_t>(count));
  if (Fault fault = ReadScales(spec, first, count, stage_.data(), values.data()); !fault.ok())
    return fault;
  if (first == 0) first_scale_ = values[0];
  return PutFloats(values, weight_->args_.scales + first);
}

Fault CudaPacker::FlushBias() {
  const int64_t first = section_at_ / 4, count = static_cast<int64_t>(stage_.size()) / 4;
  std::vector<float> values(static_cast<size_t>(count));
  if (Fault fault = ReadBias(first, count, stage_.data(), values.data()); !fault.ok()) return fault;
  return PutFloats(values, weight_->args_.bias + first);
}

Fault CudaPacker::Finish(std::shared_ptr<const PackedWeight>* weight) {
  if (Fault fault = CheckUploadEnd(weight_->spec(), position_); !fault.ok()) return fault;
  assert(stage_.empty() && section_ == Section::kEnd);
  if (Fault fault = FillScales(); !fault.ok()) return fault;
  if (Fault fault = SumColumns(); !fault.ok()) return fault;
  *weight = std::move(weight_);
  return {};
}

// One scale a column, so that the epilogue has one form.
Fault CudaPacker::FillScales() {
  const WeightSpec& spec = weight_->spec();
  if (spec.scale_count > 1 || (spec.scale_count == 1 && spec.n == 1)) return {};
  const std::vector<float> values(static_cast<size_t>(std::min<int64_t>(spec.n, kStageBytes / 4)),
                                  spec.scale_count == 1 ? first_scale_ : 1.0f);
  for (int64_t at = 0; at < spec.n; at += static_cast<int64_t>(values.size())) {
    const auto count = static_cast<size_t>(std::min<int64_t>(spec.n - at, int64_t(values.size())));
    const std::vector<float> part(values.begin(),
                                  values.begin() + static_cast<std::ptrdiff_t>(count));
    if (Fault fault = PutFloats(part, weight_->args_.scales + at); !fault.ok()) return fault;
  }
  return {};
}

Fault CudaPacker::SumColumns() {
  const WeightArgs& w = weight_->args_;
  SumsArgs args;
  args.data = w.data;
  args.sums = const_cast<int32_t*>(w.sums);
  args.totals = weight_->device_totals_;
  args.row_bytes = w.row_bytes;
  args.n = w.n;
  args.groups = w.groups;
  args.group_pad = w.group_pad;
  args.dtype = weight_->spec().dtype;
  KernelLaunch launch = KernelLaunch::Of(KernelId::kSums, args);
  launch.grid_x = Blocks(int64_t{w.groups} * w.n * 32);
  Gpu& gpu = *weight_->gpu_;
  Runtime& runtime = gpu.runtime();
  const Gpu::Hold lane(&gpu);
  if (!lane) return gpu.CheckLost();
  const int64_t stage_bytes = std::min<int64_t>(int64_t{w.n} * 4, kStageBytes);
  if (Error e = lane->host.Reserve(stage_bytes); !e.ok()) return FaultOf(e);
  if (Error e = runtime.Launch(lane->stream, launch); !e.ok()) return FaultOf(e);
  const auto* from =
      reinterpret_cast<const std::byte*>(args.totals != nullptr ? args.totals : args.sums);
  weight_->totals_.resize(static_cast<size_t>(w.n));
  auto* to = reinterpret_cast<std::byte*>(weight_->totals_.data());
  for (int64_t at = 0; at < int64_t{w.n} * 4; at += stage_bytes) {
    const int64_t bytes = std::min(stage_bytes, int64_t{w.n} * 4 - at);
    Error e = runtime.Download(lane->stream, lane->host.data(), from + at, bytes);
    if (e.ok()) e = runtime.Synchronize(lane->stream);
    if (!e.ok()) return FaultOf(e);
    std::memcpy(to + at, lane->host.data(), static_cast<size_t>(bytes));
  }
  return {};
}

Fault UnpackWeight(const CudaPackedWeight& weight, Gpu* gpu, int64_t k_begin, int64_t k_end,
                   std::span<int8_t> out) {
  const WeightArgs& w = weight.args();
  const int64_t lines = std::max<int64_t>(CudaPacker::kStageBytes / w.n, 1);
  const auto fault = [gpu](const Error& e) {
    return gpu->FaultOf(e, "SCRATCH_MEMORY", "the rows of an unpacked weight");
  };
  const Gpu::Hold lane(gpu);
  if (!lane) return gpu->CheckLost();
  for (int64_t k = k_begin; k < k_end; k += lines) {
    const int64_t end = std::min(k + lines, k_end), bytes = (end - k) * w.n;
    if (Error e = lane->host.Reserve(bytes); !e.ok()) return fault(e);
    if (Error e = lane->device.Reserve(bytes); !e.ok()) return fault(e);
    UnpackArgs args;
    args.data = w.data;
    args.out = reinterpret_cast<int8_t*>(lane->device.data());
    args.row_bytes = w.row_bytes;
    args.n = w.n;
    args.k_begin = static_cast<int32_t>(k);
    args.k_end = static_cast<int32_t>(end);
    args.group_k = w.group_k;
    args.group_pad = w.group_pad;
    args.dtype = weight.spec().dtype;
    KernelLaunch launch = KernelLaunch::Of(KernelId::kUnpack, args);
    launch.grid_x = Blocks(bytes);
    Runtime& runtime = gpu->runtime();
    Error e = runtime.Launch(lane->stream, launch);
    if (e.ok()) e = runtime.Download(lane->stream, lane->host.data(), lane->device.data(), bytes);
    if (e.ok()) e = runtime.Synchronize(lane->stream);
    if (!e.ok()) return fault(e);
    std::memcpy(out.data() + (k - k_begin) * w.n, lane->host.data(), static_cast<size_t>(bytes));
  }
  return {};
}

}  // namespace qmatmul::cuda
