// The packed form of weights on Vulkan devices: one dword holds values of K of one column, and a step of
// all columns lies together, so that neighbouring invocations read neighbouring dwords.
//
//     part (a run of columns)                     dword (group g, step s, column n)
//   ┌─────────────────────────────┐ group 0       INT8  4 values:  byte j is k = 4s + j, signed
//   │ step 0: column 0, 1, 2, …   │               INT4  8 values:  byte j holds k = 8s + j in its low and
//   │ step 1: column 0, 1, 2, …   │                                k = 8s + 4 + j in its high nibble, + 8
//   │ …                           │               INT2  16 values: byte j holds k = 16s + j, + 4, + 8, + 12
//   ├─────────────────────────────┤ group 1                        from its low bits up, + 1
//   │ step 0: …                   │               (k counted within its group)
//   └─────────────────────────────┘
//
// Each scale group of K is padded with zeros to whole dwords, columns to a multiple of 4. A weight is cut
// into parts, a buffer each, where it is larger than a shader may see at once (128 MiB on many drivers).
// Column sums, scales and bias stay in host memory, where the epilogue is.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/vulkan/gpu.h"
#include "kernels/weight_columns.h"

namespace qmatmul::vulkan {

// "k4.s8", "k8.s4.g128" (K in several groups), "k16.s2".
std::string LayoutOf(const WeightSpec& spec);
std::string_view LayoutOf(DataType weight);

struct WeightPart {
  int64_t column_begin = 0;  // of the weight, a multiple of 4
  int64_t columns = 0;       // that exist
  int64_t stride = 0;        // `columns` up to a multiple of 4
  std::unique_ptr<Buffer> buffer;
};

// Immutable once its packer has finished. Thread-safe.
class VulkanWeight final : public PackedWeight {
 public:
  // RESOURCE_EXHAUSTED when device or host memory is short.
  static Fault Allocate(Gpu& gpu, const WeightSpec& spec, const std::string& device,
                        std::shared_ptr<VulkanWeight>* weight);

  std::span<const int32_t> column_sums() const override {
    return groups() > 1 ? total_sums_ : group_sums_;
  }
  bool is_lost() const override { return gpu_->is_lost(); }
  const WeightColumns& columns() const { return columns_; }
  int64_t groups() const { return spec().groups(); }
  int64_t group_k() const { return spec().k / spec().groups(); }
  // Values of K in a dword.
  int64_t values() const { return 32 / BitsOf(spec().dtype); }
  // Dwords of one group and column.
  int64_t steps() const { return (group_k() + values() - 1) / values(); }
  std::span<const WeightPart> parts() const { return parts_; }
  // The device that holds it, as it was when it was packed.
  const Gpu* gpu() const { return gpu_; }

 private:
  friend class VulkanPacker;
  using PackedWeight::PackedWeight;
  Fault AllocateParts(Gpu& gpu);
  void AllocateColumns();

  std::vector<WeightPart> parts_;
  const Gpu* gpu_ = nullptr;
  std::vector<int32_t> group_sums_;  // [groups][n]
  std::vector<int32_t> total_sums_;  // of several groups
  std::vector<float> scales_;        // [groups][n]
  std::vector<float> bias_;
  WeightColumns columns_;
};

}  // namespace qmatmul::vulkan
