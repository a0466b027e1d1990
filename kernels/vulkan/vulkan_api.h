// Vulkan's functions, found at run time: the loader by dlopen, an instance's and a device's functions
// through it. Nothing here is linked.
//
// Thread-safety: immutable once made. Ownership: an Instance ends its VkInstance with it; the loader stays
// loaded until the program ends, since drivers leave thread-local destructors behind.
#pragma once

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace qmatmul::vulkan {

// Lists, so that a function is declared and looked up under one name.
// clang-format off
#define QMATMUL_VULKAN_INSTANCE_FUNCTIONS(X)                                                      \
  X(DestroyInstance) X(EnumeratePhysicalDevices) X(EnumerateDeviceExtensionProperties)            \
  X(GetPhysicalDeviceProperties2) X(GetPhysicalDeviceFeatures2)                                   \
  X(GetPhysicalDeviceMemoryProperties) X(GetPhysicalDeviceQueueFamilyProperties) X(CreateDevice)  \
  X(GetDeviceProcAddr)
#define QMATMUL_VULKAN_DEVICE_FUNCTIONS(X)                                                        \
  X(DestroyDevice) X(GetDeviceQueue) X(CreateBuffer) X(DestroyBuffer)                             \
  X(GetBufferMemoryRequirements) X(AllocateMemory) X(FreeMemory) X(BindBufferMemory)              \
  X(MapMemory) X(CreateShaderModule) X(DestroyShaderModule) X(CreateDescriptorSetLayout)          \
  X(DestroyDescriptorSetLayout) X(CreatePipelineLayout) X(DestroyPipelineLayout)                  \
  X(CreatePipelineCache) X(DestroyPipelineCache) X(GetPipelineCacheData)                          \
  X(CreateComputePipelines) X(DestroyPipeline) X(CreateDescriptorPool) X(DestroyDescriptorPool)   \
  X(ResetDescriptorPool) X(AllocateDescriptorSets) X(UpdateDescriptorSets) X(CreateCommandPool)   \
  X(DestroyCommandPool) X(ResetCommandPool) X(AllocateCommandBuffers) X(BeginCommandBuffer)       \
  X(EndCommandBuffer) X(CmdBindPipeline) X(CmdBindDescriptorSets) X(CmdPushConstants)             \
  X(CmdDispatch) X(CmdFillBuffer) X(CmdCopyBuffer) X(CmdPipelineBarrier) X(QueueSubmit)           \
  X(CreateFence) X(DestroyFence) X(WaitForFences) X(ResetFences)
// clang-format on

#define QMATMUL_VULKAN_MEMBER(name) PFN_vk##name name = nullptr;
struct InstanceFunctions {
  QMATMUL_VULKAN_INSTANCE_FUNCTIONS(QMATMUL_VULKAN_MEMBER)
};
struct DeviceFunctions {
  QMATMUL_VULKAN_DEVICE_FUNCTIONS(QMATMUL_VULKAN_MEMBER)
};
#undef QMATMUL_VULKAN_MEMBER

using MessageSink = std::function<void(std::string_view)>;

class Instance {
 public:
  // Null without a loader, or without a driver that speaks Vulkan 1.1; `why_not`, if given, says which. With
  // `on_message` set the validation layer is on.
  static std::shared_ptr<const Instance> Open(const MessageSink& on_message,
                                              std::string* why_not = nullptr);
  ~Instance();
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  std::vector<VkPhysicalDevice> PhysicalDevices() const;
  // Null where the device lacks one of the functions.
  std::unique_ptr<const DeviceFunctions> FunctionsOf(VkDevice device) const;

  InstanceFunctions vk;

 private:
  Instance() = default;
  void Listen(PFN_vkGetInstanceProcAddr get);

  VkInstance instance_ = VK_NULL_HANDLE;
  VkDebugUtilsMessengerEXT messenger_ = VK_NULL_HANDLE;
  PFN_vkDestroyDebugUtilsMessengerEXT destroy_messenger_ = nullptr;
  MessageSink on_message_;
};

}  // namespace qmatmul::vulkan
