// Which devices a test of every device runs on. Built with QMATMUL_TESTS_VULKAN: the CPU and every Vulkan
// device, those that compute on the CPU too, under the validation layer, each message of which fails the
// test at hand. Otherwise what a server would open.
//
// Thread-safety: as OpenDevices. Messages may come from any thread.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/devices.h"
#ifdef QMATMUL_TESTS_VULKAN
#include "kernels/vulkan/vulkan_device.h"
#endif

namespace qmatmul::test {

#ifdef QMATMUL_TESTS_VULKAN
inline void FailOnMessage(std::string_view message) {
  ADD_FAILURE() << "the validation layer: " << message;
}

inline std::vector<std::unique_ptr<Device>> OpenTestDevices(DeviceOptions options) {
  options.vulkan_devices = "off";
  auto devices = OpenDevices(options);
  options.vulkan_devices = "all";
  auto found = vulkan::OpenVulkanDevices(options, {}, {.on_message = FailOnMessage});
  // Tests are listed by the devices there are: without one, none would run and none would fail.
  if (found.empty()) {
    std::fputs("no Vulkan device, or one whose kernels failed their self-test\n", stderr);
    std::abort();
  }
  std::move(found.begin(), found.end(), std::back_inserter(devices));
  return devices;
}
#else
inline std::vector<std::unique_ptr<Device>> OpenTestDevices(const DeviceOptions& options) {
  return OpenDevices(options);
}
#endif

}  // namespace qmatmul::test
