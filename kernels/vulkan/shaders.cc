#include "kernels/vulkan/shaders.h"

namespace qmatmul::vulkan {
namespace {

#include "kernels/vulkan/shader_table.inc"

}  // namespace

std::span<const Shader> Shaders() { return kShaders; }

}  // namespace qmatmul::vulkan
