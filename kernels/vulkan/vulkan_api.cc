#include "kernels/vulkan/vulkan_api.h"

#include <dlfcn.h>

#include <cstring>
#include <string>

namespace qmatmul::vulkan {
namespace {

constexpr const char* kValidationLayer = "VK_LAYER_KHRONOS_validation";

PFN_vkGetInstanceProcAddr Loader() {
  static void* const library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(library, "vkGetInstanceProcAddr"));
}

bool HasLayer(PFN_vkGetInstanceProcAddr get, const char* name) {
  const auto enumerate = reinterpret_cast<PFN_vkEnumerateInstanceLayerProperties>(
      get(nullptr, "vkEnumerateInstanceLayerProperties"));
  uint32_t count = 0;
  enumerate(&count, nullptr);
  std::vector<VkLayerProperties> layers(count);
  enumerate(&count, layers.data());
  for (const VkLayerProperties& layer : layers)
    if (std::strcmp(layer.layerName, name) == 0) return true;
  return false;
}

VKAPI_ATTR VkBool32 VKAPI_CALL Tell(VkDebugUtilsMessageSeverityFlagBitsEXT,
                                    VkDebugUtilsMessageTypeFlagsEXT,
                                    const VkDebugUtilsMessengerCallbackDataEXT* data, void* sink) {
  (*static_cast<const MessageSink*>(sink))(data->pMessage);
  return VK_FALSE;
}

}  // namespace

std::shared_ptr<const Instance> Instance::Open(const MessageSink& on_message,
                                               std::string* why_not) {
  const auto no = [why_not](std::string reason) {
    if (why_not != nullptr) *why_not = std::move(reason);
    return nullptr;
  };
  const PFN_vkGetInstanceProcAddr get = Loader();
  if (get == nullptr) return no("the loader, libvulkan.so.1, is not installed");
  const auto version =
      reinterpret_cast<PFN_vkEnumerateInstanceVersion>(get(nullptr, "vkEnumerateInstanceVersion"));
  const auto create = reinterpret_cast<PFN_vkCreateInstance>(get(nullptr, "vkCreateInstance"));
  uint32_t found = 0;
  if (version == nullptr || create == nullptr || version(&found) != VK_SUCCESS ||
      found < VK_API_VERSION_1_1)
    return no("the loader, libvulkan.so.1, is older than Vulkan 1.1");
  const bool validate = on_message && HasLayer(get, kValidationLayer);
  if (on_message && !validate)
    on_message(std::string(kValidationLayer) + " is not installed: nothing is validated");
  VkApplicationInfo application{};
  application.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO;
  application.pApplicationName = "qmatmul";
  application.apiVersion = VK_API_VERSION_1_1;
  VkInstanceCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO;
  info.pApplicationInfo = &application;
  const char* const extension = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
  info.enabledLayerCount = info.enabledExtensionCount = validate ? 1 : 0;
  info.ppEnabledLayerNames = &kValidationLayer;
  info.ppEnabledExtensionNames = &extension;
  const std::shared_ptr<Instance> instance(new Instance);
  if (const VkResult r = create(&info, nullptr, &instance->instance_); r != VK_SUCCESS) {
    instance->instance_ = VK_NULL_HANDLE;
    return no("no driver: vkCreateInstance gave VkResult " + std::to_string(static_cast<int>(r)));
  }
  bool complete = true;
#define QMATMUL_VULKAN_FIND(name)                                                           \
  instance->vk.name = reinterpret_cast<PFN_vk##name>(get(instance->instance_, "vk" #name)); \
  complete = complete && instance->vk.name != nullptr;
  QMATMUL_VULKAN_INSTANCE_FUNCTIONS(QMATMUL_VULKAN_FIND)
#undef QMATMUL_VULKAN_FIND
  if (!complete) return no("the driver lacks functions of Vulkan 1.1");
  instance->on_message_ = on_message;
  if (validate) instance->Listen(get);
  return instance;
}

void Instance::Listen(PFN_vkGetInstanceProcAddr get) {
  const auto create = reinterpret_cast<PFN_vkCreateDebugUtilsMessengerEXT>(
      get(instance_, "vkCreateDebugUtilsMessengerEXT"));
  destroy_messenger_ = reinterpret_cast<PFN_vkDestroyDebugUtilsMessengerEXT>(
      get(instance_, "vkDestroyDebugUtilsMessengerEXT"));
  VkDebugUtilsMessengerCreateInfoEXT info{};
  info.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT;
  info.messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT |
                         VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT;
  info.messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_GENERAL_BIT_EXT |
                     VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT |
                     VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT;
  info.pfnUserCallback = Tell;
  info.pUserData = &on_message_;
  if (create == nullptr || create(instance_, &info, nullptr, &messenger_) != VK_SUCCESS)
    on_message_("the validation layer cannot be listened to");
}

Instance::~Instance() {
  if (messenger_ != VK_NULL_HANDLE) destroy_messenger_(instance_, messenger_, nullptr);
  if (instance_ != VK_NULL_HANDLE && vk.DestroyInstance != nullptr)
    vk.DestroyInstance(instance_, nullptr);
}

std::vector<VkPhysicalDevice> Instance::PhysicalDevices() const {
  uint32_t count = 0;
  if (vk.EnumeratePhysicalDevices(instance_, &count, nullptr) != VK_SUCCESS) return {};
  std::vector<VkPhysicalDevice> devices(count);
  if (vk.EnumeratePhysicalDevices(instance_, &count, devices.data()) < VK_SUCCESS) return {};
  devices.resize(count);
  return devices;
}

std::unique_ptr<const DeviceFunctions> Instance::FunctionsOf(VkDevice device) const {
  auto functions = std::make_unique<DeviceFunctions>();
  bool complete = true;
#define QMATMUL_VULKAN_FIND(name)                                                             \
  functions->name = reinterpret_cast<PFN_vk##name>(vk.GetDeviceProcAddr(device, "vk" #name)); \
  complete = complete && functions->name != nullptr;
  QMATMUL_VULKAN_DEVICE_FUNCTIONS(QMATMUL_VULKAN_FIND)
#undef QMATMUL_VULKAN_FIND
  return complete ? std::move(functions) : nullptr;
}

}  // namespace qmatmul::vulkan
