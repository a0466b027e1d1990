#include "kernels/vulkan/gpu.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <vector>

namespace qmatmul::vulkan {
namespace {

// One part of a weight is one allocation, and no larger than this however much a driver allows.
constexpr int64_t kRangeBytesMax = int64_t{1} << 30;

bool HasExtension(const Instance& instance, VkPhysicalDevice device, const char* name) {
  uint32_t count = 0;
  instance.vk.EnumerateDeviceExtensionProperties(device, nullptr, &count, nullptr);
  std::vector<VkExtensionProperties> extensions(count);
  instance.vk.EnumerateDeviceExtensionProperties(device, nullptr, &count, extensions.data());
  return std::any_of(extensions.begin(), extensions.end(), [&](const VkExtensionProperties& e) {
    return std::strcmp(e.extensionName, name) == 0;
  });
}

bool HasDot(const Instance& instance, VkPhysicalDevice device) {
  if (!HasExtension(instance, device, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME))
    return false;
  VkPhysicalDeviceShaderIntegerDotProductFeaturesKHR dot{};
  dot.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES_KHR;
  VkPhysicalDeviceFeatures2 features{};
  features.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
  features.pNext = &dot;
  instance.vk.GetPhysicalDeviceFeatures2(device, &features);
  return dot.shaderIntegerDotProduct == VK_TRUE;
}

// The largest heap of the device's own.
int64_t MemoryBytes(const VkPhysicalDeviceMemoryProperties& memory) {
  VkDeviceSize bytes = 0;
  for (uint32_t i = 0; i < memory.memoryHeapCount; ++i)
    if (memory.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT)
      bytes = std::max(bytes, memory.memoryHeaps[i].size);
  return static_cast<int64_t>(bytes);
}

bool ReachesDeviceMemory(const VkPhysicalDeviceMemoryProperties& memory) {
  constexpr VkMemoryPropertyFlags kWanted = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT |
                                            VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                                            VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  for (uint32_t i = 0; i < memory.memoryTypeCount; ++i)
    if ((memory.memoryTypes[i].propertyFlags & kWanted) == kWanted) return true;
  return false;
}

}  // namespace

GpuTraits Gpu::TraitsOf(const Instance& instance, VkPhysicalDevice device,
                        const VulkanSettings& settings) {
  VkPhysicalDeviceFloatControlsProperties floats{};
  floats.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FLOAT_CONTROLS_PROPERTIES;
  VkPhysicalDeviceMaintenance3Properties sizes{};
  sizes.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES;
  if (HasExtension(instance, device, VK_KHR_SHADER_FLOAT_CONTROLS_EXTENSION_NAME))
    sizes.pNext = &floats;
  VkPhysicalDeviceProperties2 properties{};
  properties.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
  properties.pNext = &sizes;
  instance.vk.GetPhysicalDeviceProperties2(device, &properties);
  VkPhysicalDeviceMemoryProperties memory{};
  instance.vk.GetPhysicalDeviceMemoryProperties(device, &memory);
  const VkPhysicalDeviceProperties& core = properties.properties;
  GpuTraits traits;
  traits.name = core.deviceName;
  traits.api_version = core.apiVersion;
  traits.vendor = core.vendorID;
  std::memcpy(traits.cache_uuid, core.pipelineCacheUUID, VK_UUID_SIZE);
  traits.is_software = core.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
  traits.has_dot = !settings.without_dot && HasDot(instance, device);
  traits.rounds_to_even = floats.shaderRoundingModeRTEFloat32 == VK_TRUE;
  traits.keeps_denormals = floats.shaderDenormPreserveFloat32 == VK_TRUE;
  traits.is_unified = !settings.staged && ReachesDeviceMemory(memory) &&
                      core.deviceType != VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
  traits.memory_bytes = MemoryBytes(memory);
  if (settings.memory_bytes_max > 0)
    traits.memory_bytes = std::min(traits.memory_bytes, settings.memory_bytes_max);
  traits.range_bytes = std::min<int64_t>(
      {int64_t{core.limits.maxStorageBufferRange}, kRangeBytesMax,
       int64_t(std::min<VkDeviceSize>(sizes.maxMemoryAllocationSize, kRangeBytesMax))});
  traits.invocations_max = core.limits.maxComputeWorkGroupInvocations;
  if (settings.range_bytes_max > 0)
    traits.range_bytes = std::min(traits.range_bytes, settings.range_bytes_max);
  return traits;
}

std::shared_ptr<Gpu> Gpu::Open(std::shared_ptr<const Instance> instance, VkPhysicalDevice physical,
                               const VulkanSettings& settings) {
  std::shared_ptr<Gpu> gpu(new Gpu(std::move(instance), settings));
  gpu->traits_ = TraitsOf(*gpu->instance_, physical, settings);
  gpu->instance_->vk.GetPhysicalDeviceMemoryProperties(physical, &gpu->memory_);
  return gpu->OpenDevice(physical) ? gpu : nullptr;
}

bool Gpu::OpenDevice(VkPhysicalDevice physical) {
  const InstanceFunctions& instance = instance_->vk;
  uint32_t count = 0;
  instance.GetPhysicalDeviceQueueFamilyProperties(physical, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  instance.GetPhysicalDeviceQueueFamilyProperties(physical, &count, families.data());
  const auto family = std::find_if(families.begin(), families.end(), [](const auto& f) {
    return (f.queueFlags & VK_QUEUE_COMPUTE_BIT) != 0;
  });
  if (family == families.end()) return false;
  queue_family_ = static_cast<uint32_t>(family - families.begin());
  const float priority = 1.0f;
  VkDeviceQueueCreateInfo queue{};
  queue.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO;
  queue.queueFamilyIndex = queue_family_;
  queue.queueCount = 1;
  queue.pQueuePriorities = &priority;
  VkPhysicalDeviceShaderIntegerDotProductFeaturesKHR dot{};
  dot.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES_KHR;
  dot.shaderIntegerDotProduct = VK_TRUE;
  std::vector<const char*> extensions;
  if (traits_.has_dot) extensions.push_back(VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME);
  if (traits_.rounds_to_even) extensions.push_back(VK_KHR_SHADER_FLOAT_CONTROLS_EXTENSION_NAME);
  VkDeviceCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO;
  info.pNext = traits_.has_dot ? &dot : nullptr;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue;
  info.enabledExtensionCount = static_cast<uint32_t>(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();
  if (instance.CreateDevice(physical, &info, nullptr, &device_) != VK_SUCCESS) {
    device_ = VK_NULL_HANDLE;
    return false;
  }
  vk_ = instance_->FunctionsOf(device_);
  if (vk_ == nullptr) return false;
  vk_->GetDeviceQueue(device_, queue_family_, 0, &queue_);
  return true;
}

Gpu::~Gpu() {
  if (vk_ != nullptr) vk_->DestroyDevice(device_, nullptr);
}

int Gpu::MemoryTypeFor(Place place, uint32_t allowed) const {
  constexpr VkMemoryPropertyFlags kReached =
      VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  const VkMemoryPropertyFlags needed = place == Place::kDevice ? 0 : kReached;
  VkMemoryPropertyFlags wanted = 0;
  if (place == Place::kDevice || traits_.is_unified) wanted |= VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
  if (place == Place::kDownload) wanted |= VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
  int best = -1, best_merit = -1;
  for (uint32_t i = 0; i < memory_.memoryTypeCount; ++i) {
    const VkMemoryPropertyFlags flags = memory_.memoryTypes[i].propertyFlags;
    if ((allowed >> i & 1) == 0 || (flags & needed) != needed) continue;
    const int merit = std::popcount(flags & wanted);
    if (merit <= best_merit) continue;
    best = static_cast<int>(i);
    best_merit = merit;
  }
  return best;
}

VkResult Gpu::Inject(const char* call) const {
  return settings_.inject ? static_cast<VkResult>(settings_.inject(call)) : VK_SUCCESS;
}

Fault Gpu::Allocate(int64_t bytes, Place place, std::unique_ptr<Buffer>* buffer) {
  auto made = std::make_unique<Buffer>(shared_from_this());
  VkBufferCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO;
  info.size = static_cast<VkDeviceSize>(bytes);
  info.usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
               VK_BUFFER_USAGE_TRANSFER_DST_BIT;
  if (VkResult r = vk_->CreateBuffer(device_, &info, nullptr, &made->buffer_); r != VK_SUCCESS) {
    made->buffer_ = VK_NULL_HANDLE;
    return FaultOf(r, "vkCreateBuffer");
  }
  VkMemoryRequirements needs{};
  vk_->GetBufferMemoryRequirements(device_, made->buffer_, &needs);
  const int type = MemoryTypeFor(place, needs.memoryTypeBits);
  if (type < 0) return FaultOf(VK_ERROR_FEATURE_NOT_PRESENT, "choosing a type of memory");
  VkMemoryAllocateInfo memory{};
  memory.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO;
  memory.allocationSize = needs.size;
  memory.memoryTypeIndex = static_cast<uint32_t>(type);
  if (Fault fault = Bind(memory, place, made.get()); !fault.ok()) return fault;
  *buffer = std::move(made);
  return {};
}

Fault Gpu::Bind(VkMemoryAllocateInfo info, Place place, Buffer* buffer) {
  const auto bytes = static_cast<int64_t>(info.allocationSize);
  const uint32_t heap = memory_.memoryTypes[info.memoryTypeIndex].heapIndex;
  if (memory_.memoryHeaps[heap].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) {
    const int64_t others = used_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    buffer->counted_bytes_ = bytes;  // given back by the buffer, whatever happens next
    if (others + bytes > traits_.memory_bytes)
      return {FaultKind::kResourceExhausted, "DEVICE_MEMORY",
              traits_.name + ": " + std::to_string(bytes) + " bytes more than the " +
                  std::to_string(others) + " held are over its " +
                  std::to_string(traits_.memory_bytes) + "; delete weights"};
  }
  VkResult r = Inject("allocate");
  if (r == VK_SUCCESS) r = vk_->AllocateMemory(device_, &info, nullptr, &buffer->memory_);
  if (r != VK_SUCCESS) {
    buffer->memory_ = VK_NULL_HANDLE;
    return FaultOf(r, "vkAllocateMemory");
  }
  buffer->bytes_ = bytes;
  r = vk_->BindBufferMemory(device_, buffer->buffer_, buffer->memory_, 0);
  void* data = nullptr;
  if (r == VK_SUCCESS && place != Place::kDevice)
    r = vk_->MapMemory(device_, buffer->memory_, 0, VK_WHOLE_SIZE, 0, &data);
  buffer->data_ = static_cast<std::byte*>(data);
  return r == VK_SUCCESS ? Fault{} : FaultOf(r, "binding memory");
}

Fault Gpu::Submit(VkCommandBuffer commands, VkFence fence) {
  VkResult r = is_lost() ? VK_ERROR_DEVICE_LOST : Inject("submit");
  if (r == VK_SUCCESS) {
    VkSubmitInfo info{};
    info.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO;
    info.commandBufferCount = 1;
    info.pCommandBuffers = &commands;
    const std::lock_guard lock(queue_mutex_);
    r = vk_->QueueSubmit(queue_, 1, &info, fence);
  }
  return r == VK_SUCCESS ? Fault{} : FaultOf(r, "vkQueueSubmit");
}

Fault Gpu::Wait(VkFence fence) {
  // What is under way is waited for even when a loss is made up.
  VkResult r = vk_->WaitForFences(device_, 1, &fence, VK_TRUE, UINT64_MAX);
  if (r == VK_SUCCESS) r = Inject("wait");
  return r == VK_SUCCESS ? Fault{} : FaultOf(r, "vkWaitForFences");
}

void Gpu::GiveUp() {
  int64_t never = 0;
  lost_time_ns_.compare_exchange_strong(
      never, std::chrono::system_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

Fault Gpu::FaultOf(VkResult result, const char* call) {
  const std::string what =
      traits_.name + ": " + call + " gave VkResult " + std::to_string(static_cast<int>(result));
  switch (result) {
    case VK_ERROR_DEVICE_LOST:
      GiveUp();
      return {FaultKind::kDeviceLost, "DEVICE_LOST",
              what + ": the device is lost, and what it held with it; use another device"};
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
    case VK_ERROR_OUT_OF_POOL_MEMORY:
    case VK_ERROR_TOO_MANY_OBJECTS:
    case VK_ERROR_MEMORY_MAP_FAILED:
      return {FaultKind::kResourceExhausted, "DEVICE_MEMORY", what + "; delete weights"};
    default: return {FaultKind::kInternal, "VULKAN_ERROR", what};
  }
}

Buffer::~Buffer() {
  const DeviceFunctions& vk = gpu_->vk();
  vk.DestroyBuffer(gpu_->device(), buffer_, nullptr);
  vk.FreeMemory(gpu_->device(), memory_, nullptr);  // ends its mapping too
  gpu_->used_bytes_.fetch_sub(counted_bytes_, std::memory_order_relaxed);
}

}  // namespace qmatmul::vulkan
