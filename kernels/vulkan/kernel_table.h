// The shaders that multiply, as kernels: names, what they take, which of them a device can run, and which one
// computes a product.
//
// Thread-safety: as KernelList says.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernel_list.h"
#include "kernels/vulkan/gpu.h"

namespace qmatmul::vulkan {

struct Kernel {
  // "vulkan.dot.s8s8s32.8x128x4": a workgroup's rows x columns x values of K a step
  std::string name;
  std::string shader;  // "dot_tile_s8"
  DataType weight = DataType::kInt8;
  Arithmetic arithmetic = Arithmetic::kW8A8;
  int64_t rows = 0;       // of a workgroup
  int64_t columns = 0;    // of a workgroup
  bool is_plain = false;  // needs nothing that a device could lack
  std::string missing;    // what this device lacks for it; empty: nothing

  bool fits(DataType type, Arithmetic a) const { return weight == type && arithmetic == a; }
};

class KernelTable {
 public:
  struct Choice {
    const Kernel* kernel = nullptr;
    bool fell_back = false;  // a usable one is quarantined
  };

  // `disabled`: as in DeviceOptions.
  KernelTable(const GpuTraits& traits, bool without_float, std::string_view disabled);
  // Best first.
  const std::vector<Kernel>& kernels() const { return kernels_; }
  KernelList& list() { return list_; }
  const KernelList& list() const { return list_; }

  // The best; never null, since a plain one of each kind runs everywhere.
  Choice Select(int64_t rows, DataType weight, Arithmetic arithmetic) const;
  // The kernel of that name, or the best where it is empty; `layout` is the weight's. KERNEL_UNKNOWN,
  // KERNEL_UNSUPPORTED, LAYOUT_MISMATCH.
  Fault Choose(std::string_view forced, int64_t rows, DataType weight, std::string_view layout,
               Arithmetic arithmetic, Choice* choice) const;

 private:
  const std::vector<Kernel> kernels_;
  KernelList list_;  // at the same places
};

}  // namespace qmatmul::vulkan
