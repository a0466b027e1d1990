// One open Vulkan device: what it can do, its queue, and its memory, counted to the byte.
//
// Thread-safety: all methods may be called from any thread. Ownership: buffers hold the Gpu, which holds
// the Instance; the last one out ends the VkDevice.
//
// Invariants
//   1. Device memory that is held never exceeds memory_bytes(): what would is refused before the driver is
//      asked, since a driver that overcommits fails later and worse.
//   2. Once the device is lost every call says so.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "kernels/matmul.h"
#include "kernels/vulkan/vulkan_api.h"
#include "kernels/vulkan/vulkan_device.h"

namespace qmatmul::vulkan {

class Buffer;

// Where a buffer's bytes should lie.
enum class Place : uint8_t {
  kDevice,    // weights, and what shaders read and write many times
  kUpload,    // the host writes, a shader or a copy reads once
  kDownload,  // a shader or a copy writes, the host reads
};

// What a driver says of itself, as far as it matters here.
struct GpuTraits {
  std::string name;
  uint32_t api_version = 0;
  uint32_t vendor = 0;
  uint8_t cache_uuid[VK_UUID_SIZE] = {};
  bool is_software = false;      // computes on the CPU
  bool has_dot = false;          // VK_KHR_shader_integer_dot_product
  bool rounds_to_even = false;   // RoundingModeRTE for fp32
  bool keeps_denormals = false;  // DenormPreserve for fp32
  bool is_unified = false;       // the host reaches device memory: nothing is staged
  int64_t memory_bytes = 0;
  int64_t range_bytes = 0;       // of one buffer that a shader sees
  uint32_t invocations_max = 0;  // of a workgroup
};

class Gpu : public std::enable_shared_from_this<Gpu> {
 public:
  // Traits alone, without opening.
  static GpuTraits TraitsOf(const Instance& instance, VkPhysicalDevice device,
                            const VulkanSettings& settings);
  // Null where the device cannot be opened.
  static std::shared_ptr<Gpu> Open(std::shared_ptr<const Instance> instance,
                                   VkPhysicalDevice physical, const VulkanSettings& settings);
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  const GpuTraits& traits() const { return traits_; }
  const DeviceFunctions& vk() const { return *vk_; }
  VkDevice device() const { return device_; }
  uint32_t queue_family() const { return queue_family_; }
  bool is_lost() const { return lost_time_ns() != 0; }
  // Unix time at which the loss was noticed, 0 before.
  int64_t lost_time_ns() const { return lost_time_ns_.load(std::memory_order_relaxed); }
  int64_t used_bytes() const { return used_bytes_.load(std::memory_order_relaxed); }

  // RESOURCE_EXHAUSTED DEVICE_MEMORY when it does not fit.
  Fault Allocate(int64_t bytes, Place place, std::unique_ptr<Buffer>* buffer);
  Fault Submit(VkCommandBuffer commands, VkFence fence);
  Fault Wait(VkFence fence);
  // Every call from now on says that the device is lost.
  void GiveUp();
  // `call` for the message. Notes the loss of the device.
  Fault FaultOf(VkResult result, const char* call);

 private:
  friend class Buffer;
  Gpu(std::shared_ptr<const Instance> instance, const VulkanSettings& settings)
      : instance_(std::move(instance)), settings_(settings) {}
  bool OpenDevice(VkPhysicalDevice physical);
  // The best type of memory among `allowed`, or -1.
  int MemoryTypeFor(Place place, uint32_t allowed) const;
  VkResult Inject(const char* call) const;
  Fault Bind(VkMemoryAllocateInfo info, Place place, Buffer* buffer);

  std::shared_ptr<const Instance> instance_;
  const VulkanSettings settings_;
  GpuTraits traits_;
  VkDevice device_ = VK_NULL_HANDLE;
  std::unique_ptr<const DeviceFunctions> vk_;
  uint32_t queue_family_ = 0;
  std::mutex queue_mutex_;
  VkQueue queue_ = VK_NULL_HANDLE;
  VkPhysicalDeviceMemoryProperties memory_{};
  std::atomic<int64_t> used_bytes_{0};
  std::atomic<int64_t> lost_time_ns_{0};
};

// Memory and the buffer that covers it. Freed at once with the object, whose user has waited for the
// commands that use it.
class Buffer {
 public:
  explicit Buffer(std::shared_ptr<Gpu> gpu) : gpu_(std::move(gpu)) {}
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  VkBuffer handle() const { return buffer_; }
  // Of the memory held.
  int64_t bytes() const { return bytes_; }
  // Null for kDevice.
  std::byte* data() const { return data_; }

 private:
  friend class Gpu;
  std::shared_ptr<Gpu> gpu_;
  VkBuffer buffer_ = VK_NULL_HANDLE;
  VkDeviceMemory memory_ = VK_NULL_HANDLE;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  int64_t counted_bytes_ = 0;
};

}  // namespace qmatmul::vulkan
