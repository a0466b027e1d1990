// The compiled shaders, by name: built in as SPIR-V words by CMakeLists.txt.
//
// Thread-safety: constants.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace qmatmul::vulkan {

struct Shader {
  std::string_view name;  // "dot_tile_s8"
  std::span<const uint32_t> words;
};

std::span<const Shader> Shaders();

}  // namespace qmatmul::vulkan
