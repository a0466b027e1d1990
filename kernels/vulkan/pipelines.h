// Compute pipelines, made when first asked for, and the driver's cache of them on disk.
//
// Every shader sees the same things: three storage buffers and kArgumentBytes of push constants.
//
// The cache file saves compiling at the next start and nothing else: one that is missing, of another driver,
// cut short or spoilt is ignored and written anew.
//
// Thread-safety: all methods may be called from any thread. Ownership: the Gpu outlives it.
#pragma once

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "kernels/vulkan/gpu.h"

namespace qmatmul::vulkan {

class Pipelines {
 public:
  static constexpr uint32_t kBuffers = 3;
  static constexpr uint32_t kArgumentBytes = 64;  // half of what every device has

  // `cache_file` may be empty.
  Pipelines(Gpu& gpu, std::string cache_file);
  ~Pipelines();
  Pipelines(const Pipelines&) = delete;
  Pipelines& operator=(const Pipelines&) = delete;

  // Not ok when the layouts could not be made: nothing works then.
  const Fault& fault() const { return fault_; }
  VkDescriptorSetLayout set_layout() const { return set_layout_; }
  VkPipelineLayout layout() const { return layout_; }
  // The pipeline of a shader (shaders.h).
  Fault Find(std::string_view shader, VkPipeline* pipeline);
  // Writes the cache file, if it would differ from what was read.
  void Save();
  // Whether the cache file was there and fit.
  bool loaded() const { return !loaded_.empty(); }

 private:
  Fault MakeLayouts();
  Fault Make(std::string_view shader, VkPipeline* pipeline);
  std::string Header(std::string_view data) const;
  std::string Load() const;

  Gpu& gpu_;
  const std::string cache_file_;
  std::string loaded_;  // what the driver was given
  Fault fault_;
  VkDescriptorSetLayout set_layout_ = VK_NULL_HANDLE;
  VkPipelineLayout layout_ = VK_NULL_HANDLE;
  VkPipelineCache cache_ = VK_NULL_HANDLE;
  std::mutex mutex_;  // guards what follows
  std::map<std::string, VkPipeline, std::less<>> made_;
};

}  // namespace qmatmul::vulkan
