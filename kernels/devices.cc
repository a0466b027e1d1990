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

std::vector<std::unique_ptr<Device>> OpenDevices(const DeviceOptions& options) {
  std::vector<std::unique_ptr<Device>> devices;
  devices.push_back(std::make_unique<cpu::CpuDevice>(options, cpu::DetectCpuFeatures()));
#ifdef QMATMUL_CUDA
  for (auto& device : cuda::OpenCudaDevices(options)) devices.push_back(std::move(device));
#endif
#ifdef QMATMUL_VULKAN
  auto found = vulkan::OpenVulkanDevices(options, devices);
  std::move(found.begin(), found.end(), std::back_inserter(devices));
#endif
  return devices;
}

std::vector<std::string> KnownDeviceKinds() { return {"cpu", "cuda", "vulkan"}; }

}  // namespace qmatmul
