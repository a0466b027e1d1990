#include "kernels/vulkan/commands.h"

#include <cassert>

namespace qmatmul::vulkan {

Fault Commands::Make(std::shared_ptr<Gpu> gpu, std::shared_ptr<Pipelines> pipelines,
                     std::unique_ptr<Commands>* commands) {
  std::unique_ptr<Commands> made(new Commands(std::move(gpu), std::move(pipelines)));
  if (Fault fault = made->MakeObjects(); !fault.ok()) return fault;
  *commands = std::move(made);
  return {};
}

Fault Commands::MakeObjects() {
  const DeviceFunctions& vk = gpu_->vk();
  const VkDevice device = gpu_->device();
  VkCommandPoolCreateInfo pool{};
  pool.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO;
  pool.queueFamilyIndex = gpu_->queue_family();
  VkResult r = vk.CreateCommandPool(device, &pool, nullptr, &pool_);
  if (r != VK_SUCCESS) return gpu_->FaultOf(r, "vkCreateCommandPool");
  VkCommandBufferAllocateInfo buffer{};
  buffer.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO;
  buffer.commandPool = pool_;
  buffer.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
  buffer.commandBufferCount = 1;
  r = vk.AllocateCommandBuffers(device, &buffer, &commands_);
  if (r != VK_SUCCESS) return gpu_->FaultOf(r, "vkAllocateCommandBuffers");
  const VkDescriptorPoolSize size{VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                  kDispatchesMax * Pipelines::kBuffers};
  VkDescriptorPoolCreateInfo sets{};
  sets.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO;
  sets.maxSets = kDispatchesMax;
  sets.poolSizeCount = 1;
  sets.pPoolSizes = &size;
  r = vk.CreateDescriptorPool(device, &sets, nullptr, &sets_);
  if (r != VK_SUCCESS) return gpu_->FaultOf(r, "vkCreateDescriptorPool");
  VkFenceCreateInfo fence{};
  fence.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO;
  r = vk.CreateFence(device, &fence, nullptr, &fence_);
  return r == VK_SUCCESS ? Fault{} : gpu_->FaultOf(r, "vkCreateFence");
}

Commands::~Commands() {
  (void)Wait();
  const DeviceFunctions& vk = gpu_->vk();
  vk.DestroyFence(gpu_->device(), fence_, nullptr);
  vk.DestroyDescriptorPool(gpu_->device(), sets_, nullptr);
  vk.DestroyCommandPool(gpu_->device(), pool_, nullptr);
}

Fault Commands::Begin() {
  const DeviceFunctions& vk = gpu_->vk();
  if (Fault fault = Wait(); !fault.ok()) return fault;
  VkResult r = vk.ResetCommandPool(gpu_->device(), pool_, 0);
  if (r == VK_SUCCESS) r = vk.ResetDescriptorPool(gpu_->device(), sets_, 0);
  VkCommandBufferBeginInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO;
  info.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
  if (r == VK_SUCCESS) r = vk.BeginCommandBuffer(commands_, &info);
  if (r != VK_SUCCESS) return gpu_->FaultOf(r, "vkBeginCommandBuffer");
  Barrier();
  return {};
}

void Commands::Barrier() {
  VkMemoryBarrier memory{};
  memory.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER;
  memory.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  memory.dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT |
                         VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT |
                         VK_ACCESS_HOST_READ_BIT;
  constexpr VkPipelineStageFlags kDevice =
      VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
  gpu_->vk().CmdPipelineBarrier(commands_, kDevice, kDevice | VK_PIPELINE_STAGE_HOST_BIT, 0, 1,
                                &memory, 0, nullptr, 0, nullptr);
}

void Commands::Fill(const Buffer& buffer) {
  gpu_->vk().CmdFillBuffer(commands_, buffer.handle(), 0, VK_WHOLE_SIZE, 0);
}

void Commands::Copy(const Buffer& from, const Buffer& to, std::span<const VkBufferCopy> regions) {
  gpu_->vk().CmdCopyBuffer(commands_, from.handle(), to.handle(),
                           static_cast<uint32_t>(regions.size()), regions.data());
}

Fault Commands::Dispatch(std::string_view shader, std::initializer_list<const Buffer*> buffers,
                         std::span<const std::byte> arguments, uint32_t x, uint32_t y, uint32_t z) {
  assert(buffers.size() <= Pipelines::kBuffers && arguments.size() <= Pipelines::kArgumentBytes);
  const DeviceFunctions& vk = gpu_->vk();
  VkPipeline pipeline = VK_NULL_HANDLE;
  if (Fault fault = pipelines_->Find(shader, &pipeline); !fault.ok()) return fault;
  VkDescriptorSetAllocateInfo allocation{};
  allocation.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO;
  allocation.descriptorPool = sets_;
  allocation.descriptorSetCount = 1;
  const VkDescriptorSetLayout set_layout = pipelines_->set_layout();
  allocation.pSetLayouts = &set_layout;
  VkDescriptorSet set = VK_NULL_HANDLE;
  const VkResult r = vk.AllocateDescriptorSets(gpu_->device(), &allocation, &set);
  if (r != VK_SUCCESS) return gpu_->FaultOf(r, "vkAllocateDescriptorSets");
  std::array<VkDescriptorBufferInfo, Pipelines::kBuffers> views{};
  std::array<VkWriteDescriptorSet, Pipelines::kBuffers> writes{};
  uint32_t count = 0;
  for (const Buffer* buffer : buffers) {
    views[count] = {buffer->handle(), 0, VK_WHOLE_SIZE};
    writes[count].sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET;
    writes[count].dstSet = set;
    writes[count].dstBinding = count;
    writes[count].descriptorCount = 1;
    writes[count].descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER;
    writes[count].pBufferInfo = &views[count];
    ++count;
  }
  vk.UpdateDescriptorSets(gpu_->device(), count, writes.data(), 0, nullptr);
  vk.CmdBindPipeline(commands_, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
  vk.CmdBindDescriptorSets(commands_, VK_PIPELINE_BIND_POINT_COMPUTE, pipelines_->layout(), 0, 1,
                           &set, 0, nullptr);
  vk.CmdPushConstants(commands_, pipelines_->layout(), VK_SHADER_STAGE_COMPUTE_BIT, 0,
                      static_cast<uint32_t>(arguments.size()), arguments.data());
  vk.CmdDispatch(commands_, x, y, z);
  return {};
}

Fault Commands::Submit() {
  const DeviceFunctions& vk = gpu_->vk();
  Barrier();
  VkResult r = vk.EndCommandBuffer(commands_);
  if (r == VK_SUCCESS) r = vk.ResetFences(gpu_->device(), 1, &fence_);
  if (r != VK_SUCCESS) return gpu_->FaultOf(r, "vkEndCommandBuffer");
  Fault fault = gpu_->Submit(commands_, fence_);
  is_pending_ = fault.ok();
  return fault;
}

Fault Commands::Wait() {
  if (!is_pending_) return {};
  is_pending_ = false;
  return gpu_->Wait(fence_);
}

}  // namespace qmatmul::vulkan
