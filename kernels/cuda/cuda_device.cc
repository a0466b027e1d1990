#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <new>

#include "kernels/cuda/agreement.h"
#include "kernels/cuda/cost_fit.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/self_test.h"

namespace qmatmul::cuda {
namespace {

// What one tile's uploads, operands and results may take, which its lane keeps: all lanes a part of the device,
// and no more pinned memory than a host can spare.
constexpr int64_t kTileBytesMax = int64_t{256} << 20;
constexpr int64_t kTileMemoryShare = 32;
constexpr std::string_view kMmaInt8 = "cuda.mma.s8s8s32.128x128x32";

int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

std::vector<std::string> WhyNot(const Runtime& runtime, std::span<const std::string> broken) {
  // A kernel is run by several programs; what the first of each form needs, all need.
  std::vector<std::string> reasons;
  for (const CudaKernel& kernel : CudaKernels()) {
    const KernelId first = kernel.form == Form::kGemv    ? KernelId::kGemv8R1
                           : kernel.form == Form::kMma   ? KernelId::kMma8R16
                           : kernel.form == Form::kWgmma ? KernelId::kWgmma8
                                                         : KernelId::kFloat8R1;
    reasons.push_back(runtime.WhyNot(first));
    if (std::find(broken.begin(), broken.end(), kernel.name) != broken.end())
      reasons.back() = "it lost the device in its self-test";
  }
  return reasons;
}

// The segments' rows [begin, end), counted through all of them.
std::vector<TilePart> CutTile(std::span<const RowSegment> segments, int64_t begin, int64_t end) {
  std::vector<TilePart> parts;
  int64_t first = 0;  // of the segment
  for (size_t s = 0; s < segments.size() && first < end; ++s) {
    const RowSegment& segment = segments[s];
    const int64_t from = std::max(begin, first), to = std::min(end, first + segment.rows);
    if (from < to)
      parts.push_back({s, segment.row_begin + (from - first), to - from, from - begin});
    first += segment.rows;
  }
  return parts;
}

}  // namespace

CudaDevice::CudaDevice(std::shared_ptr<Gpu> gpu, const DeviceOptions& options,
                       std::span<const std::string> broken)
    : gpu_(std::move(gpu)), choices_(WhyNot(gpu_->runtime(), broken), options.disabled_kernels) {
  const RuntimeInfo& info = gpu_->info();
  info_.id = info.id;
  info_.kind = "cuda";
  info_.description = info.description;
  info_.threads = 1;
  info_.lanes = Gpu::kLanes;
  info_.memory_bytes = info.memory_bytes;
  info_.features = info.features;
}

std::unique_ptr<CudaDevice> CudaDevice::Open(std::unique_ptr<Runtime> runtime,
                                             const DeviceOptions& options, std::string* why_not) {
  const std::shared_ptr<Runtime> shared = std::move(runtime);
  std::vector<std::string> broken;
  for (;;) {
    auto gpu = std::make_shared<Gpu>(shared);
    if (Error error = gpu->Open(); !error.ok()) {
      *why_not = error.message;
      return nullptr;
    }
    std::unique_ptr<CudaDevice> device(new CudaDevice(gpu, options, broken));
    if (device->choices_.all_disabled()) {
      *why_not = "every kernel is disabled by configuration (QMATMUL_DISABLE_KERNELS)";
      return nullptr;
    }
    const std::string guilty = device->ProveKernels();
    if (guilty.empty()) {
      FitCosts(device.get(), &device->choices_);
      if (Fault fault = gpu->CheckLost(); fault.ok()) return device;
    }
    *why_not = gpu->CheckLost().message;
    device = nullptr;
    gpu->Close();
    if (guilty.empty() || !shared->Reset().ok()) return nullptr;
    broken.push_back(guilty);
  }
}

std::string CudaDevice::ProveKernels() {
  const std::shared_ptr<Gpu> gpu = this->gpu();
  for (const KernelChoices::State& state : choices_.states()) {
    if (!state.usable()) continue;
    const KernelInfo kernel{
        state.name, true, false, "", "", state.kernel->weight, state.kernel->arithmetic};
    for (const int64_t rows : {1, 13, 77}) {  // one of each class, none a multiple of a tile
      // What was put aside before the device was lost stays so.
      const KernelChoices::State* found = nullptr;
      if (!choices_.Find(kernel.name, rows, &found).ok()) continue;
      const std::string difference = ProveKernel(this, kernel, rows);
      if (gpu->lost()) return state.name;
      if (!difference.empty()) Quarantine(kernel.name, rows, difference);
    }
  }
  // After mma has been proved.
  for (const KernelChoices::State& state : choices_.states()) {
    if (!state.usable() || state.kernel->form != Form::kWgmma) continue;
    const std::string difference = CompareKernels(this, state.name, kMmaInt8);
    if (gpu->lost()) return state.name;
    for (const int64_t rows : {1, 13, 77})
      if (!difference.empty()) Quarantine(state.name, rows, difference);
  }
  return "";
}

std::vector<QuarantineInfo> CudaDevice::Quarantined() const {
  std::vector<QuarantineInfo> aside = choices_.Quarantined();
  const int64_t lost_time_ns = gpu()->lost_time_ns();
  if (lost_time_ns == 0) return aside;
  for (const KernelChoices::State& state : choices_.states())
    aside.push_back({info_.id, state.name, "the device was lost", lost_time_ns});
  return aside;
}

bool CudaDevice::Reopen() {
  const std::lock_guard one(reopen_mutex_);
  const std::shared_ptr<Gpu> old = gpu();
  if (!old->lost()) return false;
  old->Close();
  if (!old->runtime().Reset().ok()) return false;
  const auto fresh = std::make_shared<Gpu>(old->shared_runtime());
  if (!fresh->Open().ok()) return false;
  {
    const std::lock_guard swap(gpu_mutex_);
    gpu_ = fresh;
  }
  return ProveKernels().empty();
}

std::vector<KernelInfo> CudaDevice::Kernels() const {
  std::vector<KernelInfo> kernels;
  for (const KernelChoices::State& s : choices_.states())
    kernels.push_back({s.name, s.supported, s.disabled, s.reason,
                       std::string(LayoutOf(s.kernel->weight)), s.kernel->weight,
                       s.kernel->arithmetic});
  return kernels;
}

Fault CudaDevice::StartPack(const WeightSpec& spec, std::unique_ptr<Packer>* packer) {
  std::shared_ptr<CudaPackedWeight> weight;
  if (Fault fault = CudaPackedWeight::Allocate(spec, gpu(), &weight); !fault.ok()) return fault;
  *packer = std::make_unique<CudaPacker>(std::move(weight));
  return {};
}

Fault CudaDevice::CheckHeld(const PackedWeight& weight, const Gpu& gpu) const {
  const auto* packed = dynamic_cast<const CudaPackedWeight*>(&weight);
  if (packed != nullptr && packed->gpu() == &gpu) return {};
  if (packed != nullptr && weight.device() == info_.id && weight.is_lost())
    return {
        FaultKind::kDeviceLost, "DEVICE_LOST",
        info_.id + " was lost, and this weight with it; register it again, or use another device"};
  return {FaultKind::kInternal, "LAYOUT_MISMATCH",
          "weight is packed as " + weight.device() + "/" + weight.layout() + ", the kernel reads " +
              info_.id + "/" + LayoutOf(weight.spec())};
}

Fault CudaDevice::Unpack(const PackedWeight& weight, int64_t k_begin, int64_t k_end,
                         std::span<int8_t> out) const {
  const std::shared_ptr<Gpu> gpu = this->gpu();
  if (Fault fault = CheckHeld(weight, *gpu); !fault.ok()) return fault;
  assert(0 <= k_begin && k_begin <= k_end && k_end <= weight.spec().k &&
         int64_t(out.size()) >= (k_end - k_begin) * weight.spec().n);
  if (Fault fault = gpu->CheckLost(); !fault.ok()) return fault;
  return UnpackWeight(static_cast<const CudaPackedWeight&>(weight), gpu.get(), k_begin, k_end, out);
}

Fault CudaDevice::Choose(const Work& work, const Gpu& gpu, int64_t rows,
                         std::vector<StepKernels>* kernels, RunReport* report) const {
  kernels->resize(work.steps.size());
  for (size_t s = 0; s < work.steps.size(); ++s) {
    const WorkStep& step = work.steps[s];
    assert(0 < step.weights.size() && step.weights.size() <= kWeightsPerCallMax);
    for (size_t w = 0; w < step.weights.size(); ++w) {
      const PackedWeight& packed = *step.weights[w];
      if (Fault fault = CheckHeld(packed, gpu); !fault.ok()) return fault;
      const WeightSpec& spec = packed.spec();
      const KernelChoices::State* state = nullptr;
      if (work.kernel.empty()) {
        bool fell_back = false;
        state = choices_.Select({rows, spec.k, spec.n, spec.dtype, step.arithmetic}, &fell_back);
        if (fell_back) report->fallback = "quarantine";
        if (state == nullptr)
          return {FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED",
                  "device " + info_.id + " has no kernel for " + std::string(NameOf(spec.dtype)) +
                      " weights; ListKernels shows those that can run"};
      } else if (Fault fault = choices_.Find(work.kernel, rows, &state); !fault.ok()) {
        return fault;
      } else if (!state->kernel->fits(spec.dtype, step.arithmetic)) {
        return {FaultKind::kInternal, "LAYOUT_MISMATCH",
                "kernel " + state->name + " reads " + std::string(LayoutOf(state->kernel->weight)) +
                    " weights for " + std::string(NameOf(state->kernel->arithmetic)) + ", not " +
                    packed.layout() + " for " + std::string(NameOf(step.arithmetic))};
      }
      (*kernels)[s][w] = state;
      report->kernels[s + w] = state->name;
    }
  }
  report->kernel = report->kernels[0];
  return {};
}

Fault CudaDevice::Run(const Work& work, RunReport* report) {
  const int64_t start = NowNs();
  assert(!work.steps.empty());
  *report = {};
  for (const RowSegment& segment : work.segments) report->rows += segment.rows;
  const std::shared_ptr<Gpu> gpu = this->gpu();
  if (Fault fault = gpu->CheckLost(); !fault.ok()) return fault;
  try {
    std::vector<StepKernels> kernels;
    if (Fault f = Choose(work, *gpu, report->rows, &kernels, report); !f.ok()) return f;
    if (report->rows > 0)
      if (Fault f = RunTiles(work, kernels, gpu.get(), report->rows, report); !f.ok()) return f;
  } catch (const std::bad_alloc&) {
    return {FaultKind::kResourceExhausted, "SCRATCH_MEMORY",
            "no host memory for a product of " + std::to_string(report->rows) +
                " rows; send fewer rows at a time, or free memory"};
  }
  report->compute_ns = NowNs() - start;
  return {};
}

Fault CudaDevice::RunTiles(const Work& work, std::span<const StepKernels> kernels, Gpu* gpu,
                           int64_t rows, RunReport* report) {
  const Gpu::Hold lane(gpu);
  if (!lane) return gpu->CheckLost();
  Batch batch(work, kernels, gpu, lane.get());
  const int64_t bytes_max = std::min(kTileBytesMax, info_.memory_bytes / kTileMemoryShare);
  const int64_t rows_max = std::clamp<int64_t>(bytes_max / batch.row_bytes(), 1, kTileRowsMax);
  const int64_t tiles = (rows + rows_max - 1) / rows_max;
  std::vector<int64_t> refused_rows(work.segments.size(), kNoRow);
  for (int64_t t = 0; t < tiles; ++t) {
    const auto parts = CutTile(work.segments, rows * t / tiles, rows * (t + 1) / tiles);
    if (Fault fault = batch.Run(parts, &refused_rows, report); !fault.ok()) return fault;
  }
  return {};
}

std::vector<KernelChoice> CudaDevice::Explain(
    int64_t rows, std::span<const std::shared_ptr<const PackedWeight>> weights,
    Arithmetic arithmetic, std::string_view forced) const {
  std::vector<KernelChoice> choices;
  std::vector<DataType> types;
  for (const auto& weight : weights) {
    const DataType type = weight->spec().dtype;
    if (std::find(types.begin(), types.end(), type) != types.end()) continue;
    types.push_back(type);
    ProductSize size{rows, weight->spec().k, 0, type, arithmetic};
    for (const auto& other : weights)
      if (other->spec().dtype == type) size.n += other->spec().n;
    bool fell_back = false;
    const KernelChoices::State* made = choices_.Select(size, &fell_back);
    if (!forced.empty() && !choices_.Find(forced, rows, &made).ok()) made = nullptr;
    for (const KernelChoices::Ranked& r : choices_.Rank(size)) {
      KernelChoice choice{
          r.state->name, r.state->usable() && !r.quarantined, r.state == made, {}, r.state->reason};
      if (r.kernel_ns > 0) choice.predicted_ns = static_cast<int64_t>(r.kernel_ns);
      if (r.quarantined)
        choice.reason = "quarantined for " + std::string(NameOf(RowClassOf(rows))) + " rows";
      else if (choice.chosen)
        choice.reason = forced.empty() ? "least predicted time" : "forced by the request";
      else if (choice.eligible) choice.reason = "predicted behind the choice";
      choices.push_back(std::move(choice));
    }
  }
  std::stable_partition(choices.begin(), choices.end(),
                        [](const KernelChoice& c) { return c.chosen; });
  return choices;
}

int64_t CudaDevice::PredictNs(int64_t rows, const PackedWeight& weight, Arithmetic arithmetic,
                              int /*threads*/) const {
  const WeightSpec& spec = weight.spec();
  return static_cast<int64_t>(choices_.CallNs({rows, spec.k, spec.n, spec.dtype, arithmetic}));
}

std::vector<std::unique_ptr<Device>> OpenCudaDevices(const DeviceOptions& options,
                                                     std::string* why_none) {
  std::vector<std::unique_ptr<Device>> devices;
  why_none->clear();
  const std::vector<std::string> all_supported(CudaKernels().size());
  if (KernelChoices(all_supported, options.disabled_kernels).all_disabled()) return devices;
  for (std::unique_ptr<Runtime>& runtime : OpenRuntimes(why_none))
    if (auto device = CudaDevice::Open(std::move(runtime), options, why_none); device != nullptr)
      devices.push_back(std::move(device));
  if (!devices.empty()) why_none->clear();
  return devices;
}

}  // namespace qmatmul::cuda
