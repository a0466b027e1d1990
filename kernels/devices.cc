#include "kernels/devices.h"

#include <iterator>

#include "kernels/cpu/cpu_device.h"
#ifdef QMATMUL_CUDA
#include "kernels/cuda/cuda_device.h"
#endif
#ifdef QMATMUL_VULKAN
#include "kernels/vulkan/vulkan_device.h"
#endif

namespace qmatmul {

Fault Device::Pack(const WeightView& weight, std::shared_ptr<const PackedWeight>* packed) {
  std::unique_ptr<Packer> packer;
  if (Fault f = CheckSpec(weight.spec); !f.ok()) return f;
  if (Fault f = StartPack(weight.spec, &packer); !f.ok()) return f;
  const auto append = [&packer](const void* data, int64_t bytes) {
    return packer->Append({static_cast<const std::byte*>(data), size_t(bytes)});
  };
  if (Fault f = append(weight.data, weight.spec.data_bytes()); !f.ok()) return f;
  if (Fault f = append(weight.scales, weight.spec.scale_bytes()); !f.ok()) return f;
  if (Fault f = append(weight.bias, weight.spec.bias_bytes()); !f.ok()) return f;
  return packer->Finish(packed);
}

Fault Device::ReadUpload(const PackedWeight& weight, int64_t, std::span<std::byte>) const {
  return {FaultKind::kUnimplemented, "READ_UPLOAD",
          "a weight is not read back from device " + weight.device() +
              "; to have it elsewhere, delete it and register it anew"};
}

std::vector<std::unique_ptr<Device>> OpenDevices(const DeviceOptions& options,
                                                 std::vector<AbsentKind>* absent) {
  std::vector<std::unique_ptr<Device>> devices;
  [[maybe_unused]] const auto note = [absent](const char* kind, std::string why_none) {
    if (absent != nullptr && !why_none.empty()) absent->push_back({kind, std::move(why_none)});
  };
  devices.push_back(std::make_unique<cpu::CpuDevice>(options, cpu::DetectCpuFeatures()));
#ifdef QMATMUL_CUDA
  std::string why_no_cuda;
  for (auto& device : cuda::OpenCudaDevices(options, &why_no_cuda))
    devices.push_back(std::move(device));
  note("cuda", std::move(why_no_cuda));
#endif
#ifdef QMATMUL_VULKAN
  std::string why_no_vulkan;
  auto found = vulkan::OpenVulkanDevices(options, devices, {}, &why_no_vulkan);
  std::move(found.begin(), found.end(), std::back_inserter(devices));
  note("vulkan", std::move(why_no_vulkan));
#endif
  return devices;
}

std::vector<std::string> KnownDeviceKinds() { return {"cpu", "cuda", "vulkan"}; }

}  // namespace qmatmul
