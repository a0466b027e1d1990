// Turns upload bytes into a packed weight in device memory as they arrive: chunks are staged, and a shader
// puts each value in its place. The host keeps what it needs of the columns on the way.
//
// Thread-safety: one thread at a time, as Packer says. Ownership: it holds what it needs.
//
// Invariant: beyond the packed weight it holds kStageBytes of memory both sides see, and the scales and
// bias as sent.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/device.h"
#include "kernels/vulkan/commands.h"
#include "kernels/vulkan/vulkan_weight.h"

namespace qmatmul::vulkan {

class VulkanPacker final : public Packer {
 public:
  static constexpr int64_t kStageBytes = int64_t{2} << 20;

  static Fault Start(Gpu& gpu, const std::shared_ptr<Pipelines>& pipelines,
                     std::shared_ptr<VulkanWeight> weight, std::unique_ptr<Packer>* packer);
  Fault Append(std::span<const std::byte> bytes) override;
  Fault Finish(std::shared_ptr<const PackedWeight>* weight) override;

 private:
  explicit VulkanPacker(std::shared_ptr<VulkanWeight> weight) : weight_(std::move(weight)) {}
  Fault Prepare(Gpu& gpu, const std::shared_ptr<Pipelines>& pipelines);
  Fault Stage(std::span<const std::byte> data);
  // Has what is staged put in its places.
  Fault Flush();
  Fault Place(const WeightPart& part);
  // Adds values to the sums of their columns.
  void Sum(std::span<const std::byte> data);
  void SumLine(const uint8_t* bytes, int64_t line, int64_t element, int64_t count);

  std::shared_ptr<VulkanWeight> weight_;
  std::unique_ptr<Buffer> stage_;
  std::unique_ptr<Commands> commands_;
  int64_t position_ = 0;         // upload bytes taken so far
  int64_t staged_ = 0;           // of them, those in stage_
  std::vector<std::byte> tail_;  // scales, then bias
};

// Rows [k_begin, k_end) of a weight as plain int8 values.
Fault UnpackRows(Gpu& gpu, const std::shared_ptr<Pipelines>& pipelines, const VulkanWeight& weight,
                 int64_t k_begin, int64_t k_end, std::span<int8_t> out);

}  // namespace qmatmul::vulkan
