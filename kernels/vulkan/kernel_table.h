// The shaders that multiply, as kernels: names, what they take, and which of them a device can run.
//
// Thread-safety: a list is immutable once the device has opened.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/matmul.h"
#include "kernels/vulkan/gpu.h"

namespace qmatmul::vulkan {

struct Kernel {
  std::string
      name;  // "vulkan.dot.s8s8s32.8x128x4": a workgroup's rows x columns x values of K a step
  std::string shader;  // "dot_tile_s8"
  DataType weight = DataType::kInt8;
  Arithmetic arithmetic = Arithmetic::kW8A8;
  int64_t rows = 0;     // of a workgroup
  int64_t columns = 0;  // of a workgroup
  // Empty: it can run here. Set by what the driver lacks, by configuration, or by a failed self-test.
  std::string reason;
  bool disabled = false;  // by configuration

  bool usable() const { return reason.empty(); }
  bool fits(DataType type, Arithmetic a) const { return weight == type && arithmetic == a; }
};

// All of them, best first. `disabled`: comma-separated names or prefixes that end before a dot; of each
// weight type and arithmetic the last one always stays.
std::vector<Kernel> KernelsFor(const GpuTraits& traits, bool without_float,
                               std::string_view disabled);

// The best usable one for `rows` rows; never null, since the last of a kind runs everywhere.
const Kernel* ChooseKernel(const std::vector<Kernel>& kernels, int64_t rows, DataType weight,
                           Arithmetic arithmetic);

}  // namespace qmatmul::vulkan
