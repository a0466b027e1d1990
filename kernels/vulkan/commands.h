// One command buffer and what it needs to be run and waited for, used again and again.
//
// Thread-safety: one thread at a time. Ownership: buffers outlive the Wait that follows.
//
// Invariant: what a submission reads was written: each begins behind everything submitted before it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "kernels/vulkan/gpu.h"
#include "kernels/vulkan/pipelines.h"

namespace qmatmul::vulkan {

class Commands {
 public:
  // Dispatches of one submission.
  static constexpr uint32_t kDispatchesMax = 64;

  static Fault Make(std::shared_ptr<Gpu> gpu, std::shared_ptr<Pipelines> pipelines,
                    std::unique_ptr<Commands>* commands);
  // Waits for what is still under way.
  ~Commands();
  Commands(const Commands&) = delete;
  Commands& operator=(const Commands&) = delete;

  Fault Begin();
  // Everything recorded before is done, and seen, by everything after, the host's reading included.
  void Barrier();
  void Fill(const Buffer& buffer);
  void Copy(const Buffer& from, const Buffer& to, std::span<const VkBufferCopy> regions);
  // `arguments` is at most Pipelines::kArgumentBytes.
  Fault Dispatch(std::string_view shader, std::initializer_list<const Buffer*> buffers,
                 std::span<const std::byte> arguments, uint32_t x, uint32_t y, uint32_t z);
  // Ends the recording and hands it to the device.
  Fault Submit();
  // For the last submission; at once when there is none.
  Fault Wait();

 private:
  Commands(std::shared_ptr<Gpu> gpu, std::shared_ptr<Pipelines> pipelines)
      : gpu_(std::move(gpu)), pipelines_(std::move(pipelines)) {}
  Fault MakeObjects();

  const std::shared_ptr<Gpu> gpu_;
  const std::shared_ptr<Pipelines> pipelines_;
  VkCommandPool pool_ = VK_NULL_HANDLE;
  VkCommandBuffer commands_ = VK_NULL_HANDLE;
  VkDescriptorPool sets_ = VK_NULL_HANDLE;
  VkFence fence_ = VK_NULL_HANDLE;
  bool is_pending_ = false;
};

}  // namespace qmatmul::vulkan
