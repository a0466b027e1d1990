#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <array>
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
// Rows that kernels are proved with: one number of each class, none a multiple of a tile.
constexpr std::array<int64_t, 3> kProvedRows = {1, 13, 77};

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

// Configuration disables every kernel.
bool IsUnwanted(const DeviceOptions& options) {
  return std::all_of(CudaKernels().begin(), CudaKernels().end(), [&](const CudaKernel& kernel) {
    return IsListed(options.disabled_kernels, kernel.name);
  });
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
  if (IsUnwanted(options)) {
    *why_not = "every kernel is disabled by configuration (QMATMUL_DISABLE_KERNELS)";
    return nullptr;
  }
  const std::shared_ptr<Runtime> shared = std::move(runtime);
  std::vector<std::string> broken;
  for (;;) {
    auto gpu = std::make_shared<Gpu>(shared);
    if (Error error = gpu->Open(); !error.ok()) {
      *why_not = error.message;
      return nullptr;
    }
    std::unique_ptr<CudaDevice> device(new CudaDevice(gpu, options, broken));
    std::string unproved;
    Fault fault = device->ProveKernels(&unproved);
    if (fault.ok()) {
      const auto timed = [&device](const Work& work, double* launches_ns) {
        RunReport report;
        return device->RunTimed(work, &report, launches_ns);
      };
      FitCosts(device.get(), timed, &device->choices_);
      fault = gpu->CheckLost();
    }
    if (fault.ok()) return device;
    *why_not = fault.message;
    device = nullptr;
    gpu->Close();
    // A kernel that lost the device is left out; what else went wrong would go wrong again.
    if (unproved.empty() || !gpu->lost()) return nullptr;
    if (Error error = shared->Reset(); !error.ok()) {
      *why_not += "; it was " + unproved +
                  " that proved itself then, and the device does not come back (" + error.message +
                  "): start again with QMATMUL_DISABLE_KERNELS=" + unproved;
      return nullptr;
    }
    broken.push_back(unproved);
  }
}

Fault CudaDevice::Judge(const Fault& proof, std::string_view kernel, int64_t rows) {
  if (Fault lost = gpu()->CheckLost(); !lost.ok()) return lost;
  if (!proof.ok() && proof.reason != kSelfTestFailed) return proof;
  if (!proof.ok()) Quarantine(kernel, rows, proof.message);
  return {};
}

Fault CudaDevice::ProveKernels(std::string* unproved) {
  const std::vector<KernelInfo>& kernels = choices_.list().kernels();
  for (size_t i = 0; i < kernels.size(); ++i) {
    *unproved = kernels[i].name;
    for (const int64_t rows : kProvedRows)
      // What was put aside before the device was lost stays so.
      if (choices_.list().IsEligible(i, rows))
        if (Fault f = Judge(ProveKernel(this, kernels[i], rows), *unproved, rows); !f.ok())
          return f;
  }
  // wgmma with the first kernel of the table that now is proved, if there is one.
  const int64_t many = kProvedRows.back();
  for (size_t i = 0; i < kernels.size(); ++i) {
    if (CudaKernels()[i].form != Form::kWgmma || !choices_.list().IsEligible(i, many)) continue;
    size_t other = 0;
    while (other < kernels.size() &&
           (CudaKernels()[other].form == Form::kWgmma || !choices_.list().IsEligible(other, many) ||
            !CudaKernels()[other].fits(DataType::kInt8, Arithmetic::kW8A8)))
      ++other;
    if (other == kernels.size()) continue;
    *unproved = kernels[i].name;
    const Fault proof =
        CompareKernels(this, gpu()->info().multiprocessors, *unproved, kernels[other].name);
    for (const int64_t rows : kProvedRows)
      if (Fault f = Judge(proof, *unproved, rows); !f.ok()) return f;
  }
  unproved->clear();
  return {};
}

std::vector<QuarantineInfo> CudaDevice::Quarantined() const {
  std::vector<QuarantineInfo> aside = choices_.list().Quarantined();
  const int64_t lost_time_ns = gpu()->lost_time_ns();
  if (lost_time_ns == 0) return aside;
  for (const KernelInfo& kernel : Kernels())
    aside.push_back({info_.id, kernel.name, "the device was lost", lost_time_ns});
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
  std::string unproved;
  const Fault fault = ProveKernels(&unproved);
  if (!fault.ok()) fresh->GiveUp(fault.message);  // so that it is tried again
  return fault.ok();
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

Fault CudaDevice::ChooseOne(const ProductSize& size, std::string_view layout,
                            std::string_view forced, KernelChoices::Choice* choice) const {
  if (!forced.empty()) {
    size_t index = 0;
    if (Fault f = choices_.list().Find(forced, size.rows, &index); !f.ok()) return f;
    *choice = {&CudaKernels()[index], false};
    return choices_.list().CheckFits(index, size.weight, layout, size.arithmetic);
  }
  *choice = choices_.Select(size);
  if (choice->kernel != nullptr) return {};
  return {FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED",
          "device " + info_.id + " has no kernel for " + std::string(NameOf(size.weight)) +
              " weights; ListKernels shows those that can run"};
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
      KernelChoices::Choice choice;
      if (Fault f = ChooseOne({rows, spec.k, spec.n, spec.dtype, step.arithmetic}, packed.layout(),
                              work.kernel, &choice);
          !f.ok())
        return f;
      if (choice.fell_back) report->fallback = "quarantine";
      (*kernels)[s][w] = choice.kernel;
      report->kernels[s + w] = choice.kernel->name;
    }
  }
  report->kernel = report->kernels[0];
  return {};
}

Fault CudaDevice::Run(const Work& work, RunReport* report) {
  return RunTimed(work, report, nullptr);
}

Fault CudaDevice::RunTimed(const Work& work, RunReport* report, double* launches_ns) {
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
      if (Fault f = RunTiles(work, kernels, gpu.get(), report->rows, report, launches_ns); !f.ok())
        return f;
  } catch (const std::bad_alloc&) {
    return {FaultKind::kResourceExhausted, "SCRATCH_MEMORY",
            "no host memory for a product of " + std::to_string(report->rows) +
                " rows; send fewer rows at a time, or free memory"};
  }
  report->compute_ns = NowNs() - start;
  return {};
}

Fault CudaDevice::RunTiles(const Work& work, std::span<const StepKernels> kernels, Gpu* gpu,
                           int64_t rows, RunReport* report, double* launches_ns) {
  const Gpu::Hold lane(gpu);
  if (!lane) return gpu->CheckLost();
  Batch batch(work, kernels, gpu, lane.get(), launches_ns);
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
  return ExplainEachType(weights, [&](DataType type, std::vector<KernelChoice>* choices) {
    ProductSize size{rows, 0, 0, type, arithmetic};
    for (const auto& weight : weights) {
      if (weight->spec().dtype != type) continue;
      size.k = weight->spec().k;
      size.n += weight->spec().n;
    }
    KernelChoices::Choice made;
    if (!ChooseOne(size, LayoutOf(type), forced, &made).ok()) made = {};
    for (const KernelChoices::Ranked& r : choices_.Rank(size)) {
      const bool chosen = r.kernel == made.kernel;
      std::string_view why = "predicted behind the choice";
      if (chosen) why = forced.empty() ? "least predicted time" : "forced by the request";
      choices->push_back(choices_.list().Explain(r.index, rows, chosen, why));
      if (r.kernel_ns > 0) choices->back().predicted_ns = static_cast<int64_t>(r.kernel_ns);
    }
  });
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
  if (IsUnwanted(options)) return devices;
  for (std::unique_ptr<Runtime>& runtime : OpenRuntimes(why_none))
    if (auto device = CudaDevice::Open(std::move(runtime), options, why_none); device != nullptr)
      devices.push_back(std::move(device));
  if (!devices.empty()) why_none->clear();
  return devices;
}

}  // namespace qmatmul::cuda
