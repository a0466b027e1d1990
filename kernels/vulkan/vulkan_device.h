// GPUs through Vulkan 1.1, behind the same door and with the same bytes as every other device. No loader,
// no driver or no suitable GPU: no device, and nothing else changes.
//
// Why Vulkan: it is the one interface that AMD, Intel, NVIDIA and ARM GPUs share, and lavapipe, its
// rasteriser on the CPU, shows in every test run that the shaders are exact.
//
// This header needs no header of Vulkan's: the device table and tests include it.
//
// Thread-safety: as Device says. Ownership: weights keep what they need of a device alive.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"
#include "kernels/devices.h"

namespace qmatmul::vulkan {

// What tests set; a machine without the hardware shows with these what it would do on such.
struct VulkanSettings {
  // When set, the validation layer is on, and what it says comes here. Its absence is such a message.
  std::function<void(std::string_view)> on_message = {};
  // Called before each "allocate", "submit" and "wait" with that word: a VkResult other than 0 is returned
  // in its place.
  std::function<int(std::string_view)> inject = {};
  int64_t memory_bytes_max = 0;  // 0: what the driver's heap holds
  int64_t range_bytes_max = 0;   // bytes of one part of a weight; 0: what the driver says
  bool without_dot = false;      // as if VK_KHR_shader_integer_dot_product were missing
  bool without_float = false;    // as if fp32 had failed its self-test
  bool staged = false;           // as if device memory were out of the host's reach
};

// Every Vulkan device that `options` admits: "vulkan:0" first. `opened`: devices that the table's earlier
// rows opened; a GPU that one of them holds already is not opened again. `why_none`, if given, says why
// there is none; it stays empty where the options ask for none.
std::vector<std::unique_ptr<Device>> OpenVulkanDevices(
    const DeviceOptions& options, std::span<const std::unique_ptr<Device>> opened = {},
    const VulkanSettings& settings = {}, std::string* why_none = nullptr);

}  // namespace qmatmul::vulkan
