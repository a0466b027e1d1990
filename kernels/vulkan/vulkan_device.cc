#include "kernels/vulkan/vulkan_device.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <typeinfo>
#include <utility>

#include "kernels/self_test.h"
#include "kernels/stages.h"
#include "kernels/vulkan/kernel_table.h"
#include "kernels/vulkan/product.h"
#include "kernels/vulkan/vulkan_costs.h"
#include "kernels/vulkan/vulkan_packer.h"

namespace qmatmul::vulkan {
namespace {

// One lane computes while the host finishes another's rows; each also overlaps the two for itself.
constexpr int kLanes = 2;
constexpr uint32_t kVendorNvidia = 0x10de;

int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

// What is opened anew after a loss.
struct Machine {
  std::shared_ptr<Gpu> gpu;
  std::shared_ptr<Pipelines> pipelines;
  std::mutex mutex;  // guards free_lanes
  std::condition_variable lane_freed;
  std::vector<std::unique_ptr<Lane>> free_lanes;

  std::unique_ptr<Lane> TakeLane() {
    std::unique_lock lock(mutex);
    lane_freed.wait(lock, [this] { return !free_lanes.empty(); });
    std::unique_ptr<Lane> lane = std::move(free_lanes.back());
    free_lanes.pop_back();
    return lane;
  }
  void GiveBack(std::unique_ptr<Lane> lane) {
    {
      const std::lock_guard lock(mutex);
      free_lanes.push_back(std::move(lane));
    }
    lane_freed.notify_one();
  }
};

class VulkanDevice final : public Device {
 public:
  // Null where it cannot be opened, or where even its plainest kernels are not exact.
  static std::unique_ptr<VulkanDevice> Open(std::shared_ptr<const Instance> instance,
                                            VkPhysicalDevice physical, const GpuTraits& traits,
                                            int index, const DeviceOptions& options,
                                            const VulkanSettings& settings);

  const DeviceInfo& info() const override { return info_; }
  std::vector<KernelInfo> Kernels() const override { return table_.list().kernels(); }
  Fault StartPack(const WeightSpec& spec, std::unique_ptr<Packer>* packer) override;
  Fault Unpack(const PackedWeight& weight, int64_t k_begin, int64_t k_end,
               std::span<int8_t> out) const override;
  Fault Run(const Work& work, RunReport* report) override;
  std::vector<KernelChoice> Explain(int64_t rows,
                                    std::span<const std::shared_ptr<const PackedWeight>> weights,
                                    Arithmetic arithmetic, std::string_view forced) const override;
  int64_t PredictNs(int64_t rows, const PackedWeight& weight, Arithmetic,
                    int /*threads*/) const override {
    return costs_.PredictNs(rows, weight.spec().k, weight.spec().n);
  }
  // A lost device: all of its kernels, too.
  std::vector<QuarantineInfo> Quarantined() const override;
  void Quarantine(std::string_view kernel, int64_t rows, std::string_view reason) override {
    table_.list().Quarantine(kernel, rows, reason);
  }
  bool Rearm(std::string_view key) override;

 private:
  using Chosen = std::vector<ChosenWeight>;

  VulkanDevice(std::shared_ptr<const Instance> instance, VkPhysicalDevice physical,
               const GpuTraits& traits, std::string_view disabled, const VulkanSettings& settings)
      : instance_(std::move(instance)),
        physical_(physical),
        settings_(settings),
        table_(traits, settings.without_float, disabled) {}
  // Null when the driver does not give one.
  std::shared_ptr<Machine> OpenMachine() const;
  std::shared_ptr<Machine> machine() const {
    const std::lock_guard lock(machine_mutex_);
    return machine_;
  }
  void Describe(int index);
  bool ProveKernels();
  Fault CheckHeld(const Machine& machine, const PackedWeight& weight) const;
  Fault ChooseStep(const Machine& machine, const Work& work, size_t step, int64_t rows,
                   Chosen* chosen, RunReport* report) const;
  Fault RunStep(const WorkStep& step, Chosen chosen, std::span<RowSegment> segments, Lane* lane,
                RunReport* report);
  Fault RunOn(const Machine& machine, Lane* lane, const Work& work, RunReport* report);

  const std::shared_ptr<const Instance> instance_;
  const VkPhysicalDevice physical_;
  const VulkanSettings settings_;
  std::string cache_file_;
  DeviceInfo info_;
  KernelTable table_;
  bool float_failed_ = false;
  Costs costs_;
  std::mutex rearm_mutex_;            // one attempt at a time
  mutable std::mutex machine_mutex_;  // guards machine_
  std::shared_ptr<Machine> machine_;
};

std::unique_ptr<VulkanDevice> VulkanDevice::Open(std::shared_ptr<const Instance> instance,
                                                 VkPhysicalDevice physical, const GpuTraits& traits,
                                                 int index, const DeviceOptions& options,
                                                 const VulkanSettings& settings) {
  std::unique_ptr<VulkanDevice> device(
      new VulkanDevice(std::move(instance), physical, traits, options.disabled_kernels, settings));
  device->cache_file_ = options.pipeline_cache_file;
  if (!device->cache_file_.empty() && index > 0) device->cache_file_ += "." + std::to_string(index);
  device->machine_ = device->OpenMachine();
  if (device->machine_ == nullptr) return nullptr;
  device->Describe(index);
  if (!device->ProveKernels()) return nullptr;
  if (!device->costs_.Measure(device.get()).ok()) return nullptr;
  device->machine_->pipelines->Save();
  return device;
}

std::shared_ptr<Machine> VulkanDevice::OpenMachine() const {
  auto machine = std::make_shared<Machine>();
  machine->gpu = Gpu::Open(instance_, physical_, settings_);
  if (machine->gpu == nullptr) return nullptr;
  machine->pipelines = std::make_shared<Pipelines>(*machine->gpu, cache_file_);
  if (!machine->pipelines->fault().ok()) return nullptr;
  for (int i = 0; i < kLanes; ++i)
    machine->free_lanes.push_back(std::make_unique<Lane>(machine->gpu, machine->pipelines));
  return machine;
}

void VulkanDevice::Describe(int index) {
  const GpuTraits& traits = machine_->gpu->traits();
  info_.id = "vulkan:" + std::to_string(index);
  info_.kind = "vulkan";
  info_.description = traits.name;
  info_.lanes = kLanes;
  info_.memory_bytes = traits.memory_bytes;
  if (traits.has_dot) info_.features.push_back("integer_dot_product");
  if (traits.rounds_to_even) info_.features.push_back("rounding_rte_f32");
  if (traits.keeps_denormals) info_.features.push_back("denorm_preserve_f32");
  if (traits.is_unified) info_.features.push_back("unified_memory");
  if (machine_->pipelines->loaded()) info_.features.push_back("pipelines_from_cache");
}

std::vector<QuarantineInfo> VulkanDevice::Quarantined() const {
  const int64_t lost_time_ns = machine()->gpu->lost_time_ns();
  std::vector<QuarantineInfo> aside = table_.list().Quarantined();
  if (lost_time_ns == 0) return aside;
  for (const Kernel& kernel : table_.kernels())
    aside.push_back({info_.id, kernel.name, "the device was lost", lost_time_ns});
  return aside;
}

bool VulkanDevice::Rearm(std::string_view key) {
  if (table_.list().Rearm(key)) return true;
  const std::lock_guard lock(rearm_mutex_);
  if (key != info_.id || !machine()->gpu->is_lost()) return false;
  std::shared_ptr<Machine> fresh = OpenMachine();
  if (fresh == nullptr) return false;
  {
    const std::lock_guard swap(machine_mutex_);
    machine_.swap(fresh);
  }
  const std::vector<KernelInfo> kernels = Kernels();
  for (size_t i = 0; i < kernels.size(); ++i) {
    // What was put aside before the device was lost stays so.
    if (!table_.list().IsEligible(i, 13) || ProveKernel(this, kernels[i], 13).ok()) continue;
    machine()->gpu->GiveUp();
    return false;
  }
  return true;
}

bool VulkanDevice::ProveKernels() {
  const std::vector<KernelInfo>& infos = table_.list().kernels();
  for (size_t i = 0; i < infos.size(); ++i) {
    for (const int64_t rows : {1, 13}) {  // a part of a tile, and more than one
      if (!infos[i].usable()) break;
      Fault fault = ProveKernel(this, infos[i], rows);
      if (fault.ok()) continue;
      if (table_.kernels()[i].is_plain) return false;
      table_.list().Refuse(i, std::move(fault.message));
    }
  }
  float_failed_ = std::any_of(infos.begin(), infos.end(), [](const KernelInfo& kernel) {
    return kernel.arithmetic == Arithmetic::kW8A32 && !kernel.supported;
  });
  return true;
}

Fault VulkanDevice::StartPack(const WeightSpec& spec, std::unique_ptr<Packer>* packer) {
  std::shared_ptr<VulkanWeight> weight;
  const std::shared_ptr<Machine> m = machine();
  if (Fault f = VulkanWeight::Allocate(*m->gpu, spec, info_.id, &weight); !f.ok()) return f;
  return VulkanPacker::Start(*m->gpu, m->pipelines, std::move(weight), packer);
}

Fault VulkanDevice::Unpack(const PackedWeight& weight, int64_t k_begin, int64_t k_end,
                           std::span<int8_t> out) const {
  const std::shared_ptr<Machine> m = machine();
  if (Fault f = CheckHeld(*m, weight); !f.ok()) return f;
  return UnpackRows(*m->gpu, m->pipelines, static_cast<const VulkanWeight&>(weight), k_begin, k_end,
                    out);
}

Fault VulkanDevice::CheckHeld(const Machine& machine, const PackedWeight& weight) const {
  const bool is_ours = typeid(weight) == typeid(VulkanWeight);
  if (is_ours && weight.device() == info_.id && weight.is_lost())
    return {FaultKind::kDeviceLost, "DEVICE_LOST",
            info_.id +
                " was lost, and this weight with it; register it again, or use another "
                "device"};
  if (is_ours && static_cast<const VulkanWeight&>(weight).gpu() == machine.gpu.get()) return {};
  return {FaultKind::kInternal, "LAYOUT_MISMATCH",
          "weight is packed as " + weight.device() + "/" + weight.layout() + ", not by this " +
              info_.id};
}

Fault VulkanDevice::ChooseStep(const Machine& machine, const Work& work, size_t step, int64_t rows,
                               Chosen* chosen, RunReport* report) const {
  const WorkStep& s = work.steps[step];
  for (size_t i = 0; i < s.weights.size(); ++i) {
    if (Fault f = CheckHeld(machine, *s.weights[i]); !f.ok()) return f;
    const auto& weight = static_cast<const VulkanWeight&>(*s.weights[i]);
    KernelTable::Choice choice;
    if (Fault f = table_.Choose(work.kernel, rows, weight.spec().dtype, weight.layout(),
                                s.arithmetic, &choice);
        !f.ok())
      return f;
    if (float_failed_ && s.arithmetic == Arithmetic::kW8A32) report->fallback = "float_controls";
    if (choice.fell_back) report->fallback = "quarantine";
    report->kernels[step + i] = choice.kernel->name;
    chosen->push_back({&weight, choice.kernel, i});
  }
  report->kernel = report->kernels[0];
  return {};
}

Fault VulkanDevice::Run(const Work& work, RunReport* report) {
  const int64_t start = NowNs();
  assert(!work.steps.empty() && !work.steps[0].weights.empty());
  *report = {};
  for (const RowSegment& segment : work.segments) report->rows += segment.rows;
  const std::shared_ptr<Machine> m = machine();
  std::unique_ptr<Lane> lane = m->TakeLane();
  Fault fault = RunOn(*m, lane.get(), work, report);
  m->GiveBack(std::move(lane));
  report->compute_ns = NowNs() - start;
  if (fault.ok()) costs_.Learn(work, report->rows, report->compute_ns);
  return fault;
}

Fault VulkanDevice::RunOn(const Machine& machine, Lane* lane, const Work& work, RunReport* report) {
  if (!Stages::Needed(work)) {
    Chosen chosen;
    if (Fault f = ChooseStep(machine, work, 0, report->rows, &chosen, report); !f.ok()) return f;
    return RunStep(work.steps[0], std::move(chosen), work.segments, lane, report);
  }
  Stages stages(work);
  std::vector<Chosen> chosen(work.steps.size());
  for (size_t step = 0; step < chosen.size(); ++step)
    if (Fault f = ChooseStep(machine, work, step, stages.tile_rows(), &chosen[step], report);
        !f.ok())
      return f;
  return stages.Run([&](size_t step, std::span<RowSegment> segments) {
    return RunStep(work.steps[step], chosen[step], segments, lane, report);
  });
}

Fault VulkanDevice::RunStep(const WorkStep& step, Chosen chosen, std::span<RowSegment> segments,
                            Lane* lane, RunReport* report) {
  for (RowSegment& segment : segments)
    for (SegmentOutput& output : segment.outputs)
      if (!output.row_checks.empty())
        std::fill_n(output.row_checks.begin() + segment.row_begin, segment.rows, uint64_t{0});
  // Weights of one group count share their packed rows.
  std::stable_sort(chosen.begin(), chosen.end(), [](const ChosenWeight& a, const ChosenWeight& b) {
    return a.weight->groups() < b.weight->groups();
  });
  for (auto begin = chosen.begin(); begin != chosen.end();) {
    const auto end = std::find_if(begin, chosen.end(), [&](const ChosenWeight& w) {
      return w.weight->groups() != begin->weight->groups();
    });
    LaneReport done;
    if (Fault f = lane->Multiply({begin, end}, segments, step, &done); !f.ok()) return f;
    report->packed_rows += done.packed_rows;
    report->pack_ns += done.pack_ns;
    begin = end;
  }
  return {};
}

std::vector<KernelChoice> VulkanDevice::Explain(
    int64_t rows, std::span<const std::shared_ptr<const PackedWeight>> weights,
    Arithmetic arithmetic, std::string_view forced) const {
  return ExplainEachType(weights, [&](DataType type, std::vector<KernelChoice>* choices) {
    int64_t predicted_ns = 0;
    for (const auto& weight : weights)
      if (weight->spec().dtype == type)
        predicted_ns += costs_.PredictNs(rows, weight->spec().k, weight->spec().n);
    KernelTable::Choice made;
    if (!table_.Choose(forced, rows, type, LayoutOf(type), arithmetic, &made).ok()) made = {};
    for (size_t i = 0; i < table_.kernels().size(); ++i) {
      const Kernel& kernel = table_.kernels()[i];
      if (!kernel.fits(type, arithmetic)) continue;
      const bool chosen = &kernel == made.kernel;
      std::string_view why = "stands behind the choice, or is made for other rows";
      if (chosen) why = forced.empty() ? "the first that fits these rows" : "forced by the request";
      choices->push_back(table_.list().Explain(i, rows, chosen, why));
      if (chosen) choices->back().predicted_ns = predicted_ns;
    }
  });
}

// Whether one of the devices opened before holds this GPU already.
bool IsHeld(const GpuTraits& traits, std::span<const std::unique_ptr<Device>> opened) {
  return traits.vendor == kVendorNvidia &&
         std::any_of(opened.begin(), opened.end(),
                     [](const auto& device) { return device->info().kind == "cuda"; });
}

// Empty when the device is to be opened.
std::string WhyNotWanted(const GpuTraits& traits, const DeviceOptions& options,
                         std::span<const std::unique_ptr<Device>> opened) {
  if (traits.api_version < VK_API_VERSION_1_1) return " is older than Vulkan 1.1";
  if (options.vulkan_devices == "all") return "";
  if (traits.is_software) return " computes on the CPU and is opened only by vulkan_devices = all";
  return IsHeld(traits, opened) ? " is served by CUDA" : "";
}

}  // namespace

std::vector<std::unique_ptr<Device>> OpenVulkanDevices(
    const DeviceOptions& options, std::span<const std::unique_ptr<Device>> opened,
    const VulkanSettings& settings, std::string* why_none) {
  std::vector<std::unique_ptr<Device>> devices;
  if (options.vulkan_devices == "off") return devices;
  std::string why_not;
  const std::shared_ptr<const Instance> instance = Instance::Open(settings.on_message, &why_not);
  const auto physicals =
      instance == nullptr ? std::vector<VkPhysicalDevice>() : instance->PhysicalDevices();
  if (instance != nullptr && physicals.empty()) why_not = "the driver shows no device";
  for (const VkPhysicalDevice physical : physicals) {
    const GpuTraits traits = Gpu::TraitsOf(*instance, physical, settings);
    const std::string refusal = WhyNotWanted(traits, options, opened);
    if (!refusal.empty()) {
      why_not += (why_not.empty() ? "" : ", ") + traits.name + refusal;
      continue;
    }
    auto device = VulkanDevice::Open(instance, physical, traits, static_cast<int>(devices.size()),
                                     options, settings);
    if (device != nullptr) devices.push_back(std::move(device));
    else
      why_not += (why_not.empty() ? "" : ", ") + traits.name + " fails when it is opened or tested";
  }
  if (why_none != nullptr && devices.empty()) *why_none = why_not;
  return devices;
}

}  // namespace qmatmul::vulkan
