// Products on one lane of a device: rows packed on the host, summed by shaders, finished on the host. While
// the host finishes one piece of the sums the device computes the next.
//
// Blocking, outermost first
//   rows     a block of packed activations
//   weights  all that share the packed rows
//   parts    of the weight, and runs of their columns whose sums fit kSumsBytes
//   groups   runs of scale groups, where the weight has several; their sums are added up on the host, in
//            the order that numerics §2 and §5 name
//
// Thread-safety: one thread at a time. Ownership: what it borrows lives until Multiply returns.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/device.h"
#include "kernels/host_rows.h"
#include "kernels/vulkan/commands.h"
#include "kernels/vulkan/kernel_table.h"
#include "kernels/vulkan/vulkan_weight.h"

namespace qmatmul::vulkan {

struct ChosenWeight {
  const VulkanWeight* weight = nullptr;
  const Kernel* kernel = nullptr;
  size_t index = 0;  // within the step
};

struct LaneReport {
  int64_t packed_rows = 0;
  int64_t padded_rows = 0;
  int64_t pack_ns = 0;
};

class Lane {
 public:
  static constexpr int64_t kActivationBytes = int64_t{8} << 20;
  static constexpr int64_t kSumsBytes = int64_t{8} << 20;

  Lane(std::shared_ptr<Gpu> gpu, std::shared_ptr<Pipelines> pipelines)
      : gpu_(std::move(gpu)), pipelines_(std::move(pipelines)) {}

  // Dense outputs of one step for weights of one k and group count.
  Fault Multiply(std::span<const ChosenWeight> weights, std::span<RowSegment> segments,
                 const WorkStep& step, LaneReport* report);

 private:
  // Memory that the host and shaders use in turn: one buffer, or two with copies between them where device
  // memory is out of the host's reach.
  struct Shared {
    std::unique_ptr<Buffer> device, host;
    int64_t bytes = 0;
    const Buffer& shader_side() const { return device != nullptr ? *device : *host; }
  };
  // One piece of the sums of a weight.
  struct Piece {
    const WeightPart* part = nullptr;
    int64_t quad_begin = 0, quads = 0;  // of the part
    int64_t group_begin = 0, groups = 0;
  };
  // What is under way on the device.
  struct Slot {
    std::unique_ptr<Commands> commands;
    Shared sums;
    Piece piece;
  };

  Fault Prepare();
  Fault Reserve(int64_t bytes, Place place, Shared* shared);
  Fault MultiplyBlock(const ChosenWeight& w, int64_t rows, HostRows* packed);
  std::vector<Piece> CutPieces(const VulkanWeight& weight, int64_t rows) const;
  Fault Start(const ChosenWeight& w, int64_t rows, const HostRows& packed, const Piece& piece,
              Slot* slot);
  // Waits for the slot's sums and finishes them.
  Fault Finish(const ChosenWeight& w, int64_t rows, HostRows* packed, Slot* slot);
  void Abandon();

  const std::shared_ptr<Gpu> gpu_;
  const std::shared_ptr<Pipelines> pipelines_;
  std::array<Slot, 2> slots_;
  Shared activations_;
  bool is_uploaded_ = false;  // the packed rows, where they are staged
  std::vector<float> y_;
};

}  // namespace qmatmul::vulkan
