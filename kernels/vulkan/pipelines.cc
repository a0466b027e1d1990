#include "kernels/vulkan/pipelines.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "kernels/vulkan/shaders.h"

namespace qmatmul::vulkan {
namespace {

// FNV-1a. Drivers trust the bytes they are given back: a spoilt file must not reach one.
uint64_t ChecksumOf(std::string_view bytes) {
  uint64_t hash = 14695981039346656037u;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

}  // namespace

Pipelines::Pipelines(Gpu& gpu, std::string cache_file)
    : gpu_(gpu), cache_file_(std::move(cache_file)), loaded_(Load()) {
  fault_ = MakeLayouts();
  if (!fault_.ok()) return;
  VkPipelineCacheCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO;
  info.initialDataSize = loaded_.size();
  info.pInitialData = loaded_.data();
  const VkResult r = gpu_.vk().CreatePipelineCache(gpu_.device(), &info, nullptr, &cache_);
  if (r != VK_SUCCESS) cache_ = VK_NULL_HANDLE;  // slower to start, nothing else
}

Pipelines::~Pipelines() {
  const DeviceFunctions& vk = gpu_.vk();
  for (const auto& [name, pipeline] : made_) vk.DestroyPipeline(gpu_.device(), pipeline, nullptr);
  vk.DestroyPipelineCache(gpu_.device(), cache_, nullptr);
  vk.DestroyPipelineLayout(gpu_.device(), layout_, nullptr);
  vk.DestroyDescriptorSetLayout(gpu_.device(), set_layout_, nullptr);
}

Fault Pipelines::MakeLayouts() {
  std::array<VkDescriptorSetLayoutBinding, kBuffers> bindings{};
  for (uint32_t i = 0; i < kBuffers; ++i)
    bindings[i] = {i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, nullptr};
  VkDescriptorSetLayoutCreateInfo set{};
  set.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO;
  set.bindingCount = kBuffers;
  set.pBindings = bindings.data();
  const DeviceFunctions& vk = gpu_.vk();
  VkResult r = vk.CreateDescriptorSetLayout(gpu_.device(), &set, nullptr, &set_layout_);
  if (r != VK_SUCCESS) return gpu_.FaultOf(r, "vkCreateDescriptorSetLayout");
  const VkPushConstantRange arguments{VK_SHADER_STAGE_COMPUTE_BIT, 0, kArgumentBytes};
  VkPipelineLayoutCreateInfo layout{};
  layout.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO;
  layout.setLayoutCount = 1;
  layout.pSetLayouts = &set_layout_;
  layout.pushConstantRangeCount = 1;
  layout.pPushConstantRanges = &arguments;
  r = vk.CreatePipelineLayout(gpu_.device(), &layout, nullptr, &layout_);
  return r == VK_SUCCESS ? Fault{} : gpu_.FaultOf(r, "vkCreatePipelineLayout");
}

Fault Pipelines::Find(std::string_view shader, VkPipeline* pipeline) {
  const std::lock_guard lock(mutex_);
  const auto found = made_.find(shader);
  if (found != made_.end()) {
    *pipeline = found->second;
    return {};
  }
  if (Fault fault = Make(shader, pipeline); !fault.ok()) return fault;
  made_.emplace(shader, *pipeline);
  return {};
}

Fault Pipelines::Make(std::string_view name, VkPipeline* pipeline) {
  const std::span<const Shader> shaders = Shaders();
  const auto shader =
      std::find_if(shaders.begin(), shaders.end(), [&](const Shader& s) { return s.name == name; });
  if (shader == shaders.end())
    return {FaultKind::kInternal, "SHADER_UNKNOWN", "no shader " + std::string(name)};
  const DeviceFunctions& vk = gpu_.vk();
  VkShaderModuleCreateInfo module{};
  module.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO;
  module.codeSize = shader->words.size_bytes();
  module.pCode = shader->words.data();
  VkShaderModule made = VK_NULL_HANDLE;
  VkResult r = vk.CreateShaderModule(gpu_.device(), &module, nullptr, &made);
  if (r != VK_SUCCESS) return gpu_.FaultOf(r, "vkCreateShaderModule");
  VkComputePipelineCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO;
  info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
  info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  info.stage.module = made;
  info.stage.pName = "main";
  info.layout = layout_;
  r = vk.CreateComputePipelines(gpu_.device(), cache_, 1, &info, nullptr, pipeline);
  vk.DestroyShaderModule(gpu_.device(), made, nullptr);
  return r == VK_SUCCESS ? Fault{} : gpu_.FaultOf(r, "vkCreateComputePipelines");
}

// One line: what the data are for, and how to tell that they are whole.
std::string Pipelines::Header(std::string_view data) const {
  std::string line = "qmatmul.vulkan.pipelines.v1 ";
  char hex[32];
  for (const uint8_t byte : gpu_.traits().cache_uuid) {
    std::snprintf(hex, sizeof hex, "%02x", byte);
    line += hex;
  }
  std::snprintf(hex, sizeof hex, " %016llx", static_cast<unsigned long long>(ChecksumOf(data)));
  return line + hex + " " + std::to_string(data.size()) + "\n";
}

std::string Pipelines::Load() const {
  if (cache_file_.empty()) return {};
  std::ifstream file(cache_file_, std::ios::binary);
  std::string line;
  if (!std::getline(file, line)) return {};
  std::string data((std::istreambuf_iterator<char>(file)), {});
  return line + "\n" == Header(data) ? data : std::string();
}

void Pipelines::Save() {
  if (cache_file_.empty() || cache_ == VK_NULL_HANDLE) return;
  const DeviceFunctions& vk = gpu_.vk();
  size_t bytes = 0;
  if (vk.GetPipelineCacheData(gpu_.device(), cache_, &bytes, nullptr) != VK_SUCCESS) return;
  std::string data(bytes, '\0');
  if (vk.GetPipelineCacheData(gpu_.device(), cache_, &bytes, data.data()) != VK_SUCCESS) return;
  data.resize(bytes);
  if (data == loaded_) return;
  // Under another name first: a reader sees a whole file or the one before.
  const std::string draft = cache_file_ + "." + std::to_string(getpid());
  {
    std::ofstream file(draft, std::ios::binary | std::ios::trunc);
    file << Header(data) << data;
    if (!file.flush()) {
      std::remove(draft.c_str());
      return;
    }
  }
  if (std::rename(draft.c_str(), cache_file_.c_str()) != 0) std::remove(draft.c_str());
}

}  // namespace qmatmul::vulkan
