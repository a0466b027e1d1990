// The device table: one row per folder beside this file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace qmatmul {

struct DeviceOptions {
  int threads = 0;           // CPU team size; 0: what the cgroup quota and affinity allow
  int team_spin_us_max = 0;  // how long an idle team member spins before it parks
  std::string disabled_kernels =
      {};  // comma-separated names or prefixes: "cpu.avx512_vnni,cpu.avx2"
  // Where the CPU's measured costs are kept between starts; empty: measured at every start.
  std::string calibration_file = {};
  // "auto": Vulkan devices but those that compute on the CPU, and those that CUDA opened; "all"; "off".
  std::string vulkan_devices = "auto";
  // Where compiled Vulkan pipelines are kept between starts; empty: compiled at every start.
  std::string pipeline_cache_file = {};
};

// A kind of device that this build has and the options ask for, and why none was opened: "cuda", "no
// CUDA-capable device is detected".
struct AbsentKind {
  std::string kind;
  std::string reason;
};

// Opens every device this machine has; the CPU is always the first. `absent`, where it is wanted, gets the
// kinds that are not there.
std::vector<std::unique_ptr<Device>> OpenDevices(const DeviceOptions& options,
                                                 std::vector<AbsentKind>* absent = nullptr);

// Every kind that requests may name, whether this build or machine has it or not.
std::vector<std::string> KnownDeviceKinds();

}  // namespace qmatmul
