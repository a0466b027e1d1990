// What the compiled shaders may not hold, looked for in their SPIR-V: arithmetic on floats that a driver
// could fuse or reorder (numerics §2), and instructions of a later Vulkan.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <string_view>

#include "kernels/vulkan/shaders.h"

namespace qmatmul::vulkan {
namespace {

// Of the SPIR-V specification; its C++ header is not among what a build needs.
constexpr uint32_t kOpExtInst = 12, kOpExecutionMode = 16, kOpFAdd = 129, kOpFSub = 131,
                   kOpFMul = 133, kOpFDiv = 136, kOpFRem = 140, kOpFMod = 141,
                   kOpVectorTimesScalar = 142, kOpDot = 148, kOpDecorate = 71, kOpSDot = 4450;
constexpr uint32_t kNoContraction = 42, kRoundingModeRte = 4462, kLocalSizeId = 38;
constexpr uint32_t kFma = 50;  // of GLSL.std.450

struct Seen {
  int contractible = 0;  // float operations without NoContraction
  int exact = 0;         // with it
  int forbidden = 0;     // divisions, fma, dot products of floats
  int integer_dots = 0;
  bool rounds_to_even = false;
  bool needs_later_vulkan = false;
};

Seen Read(std::span<const uint32_t> words) {
  Seen seen;
  std::set<uint32_t> no_contraction, operations;
  for (size_t at = 5; at < words.size(); at += words[at] >> 16) {
    const uint32_t op = words[at] & 0xffff;
    if (op == kOpDecorate && words[at + 2] == kNoContraction) no_contraction.insert(words[at + 1]);
    if (op == kOpExecutionMode) {
      seen.rounds_to_even |= words[at + 2] == kRoundingModeRte;
      seen.needs_later_vulkan |= words[at + 2] == kLocalSizeId;
    }
    if (op == kOpFAdd || op == kOpFSub || op == kOpFMul || op == kOpVectorTimesScalar)
      operations.insert(words[at + 2]);
    const bool is_fma = op == kOpExtInst && words[at + 4] == kFma;
    seen.forbidden += is_fma || op == kOpDot || op == kOpFDiv || op == kOpFRem || op == kOpFMod;
    seen.integer_dots += op == kOpSDot;
  }
  for (const uint32_t id : operations)
    ++(no_contraction.contains(id) ? seen.exact : seen.contractible);
  return seen;
}

TEST(VulkanShaders, FloatStepsAreNeverFused) {
  int floats = 0;
  for (const Shader& shader : Shaders()) {
    SCOPED_TRACE(shader.name);
    const Seen seen = Read(shader.words);
    EXPECT_EQ(seen.contractible, 0);
    EXPECT_EQ(seen.forbidden, 0);
    EXPECT_FALSE(seen.needs_later_vulkan);
    const bool is_float = shader.name.starts_with("float");
    EXPECT_EQ(seen.rounds_to_even, is_float);
    // A product, a sum within the block, a sum of blocks.
    if (is_float) EXPECT_GE(seen.exact, 3);
    else EXPECT_EQ(seen.exact, 0) << "integers only";
    floats += is_float;
  }
  EXPECT_EQ(floats, 6);
}

TEST(VulkanShaders, DotShadersHoldTheInstruction) {
  int dots = 0;
  for (const Shader& shader : Shaders()) {
    const bool is_dot = shader.name.starts_with("dot");
    EXPECT_EQ(Read(shader.words).integer_dots > 0, is_dot) << shader.name;
    dots += is_dot;
  }
  EXPECT_EQ(dots, 6);
}

// The reader itself: an addition without the decoration is seen.
TEST(VulkanShaders, AMissingDecorationIsFound) {
  const auto shaders = Shaders();
  const auto shader = std::find_if(shaders.begin(), shaders.end(),
                                   [](const Shader& s) { return s.name == "float_s8"; });
  ASSERT_NE(shader, shaders.end());
  std::vector<uint32_t> words(shader->words.begin(), shader->words.end());
  for (size_t at = 5; at < words.size(); at += words[at] >> 16)
    if ((words[at] & 0xffff) == kOpDecorate && words[at + 2] == kNoContraction) {
      words[at + 2] = 0;  // RelaxedPrecision
      break;
    }
  EXPECT_EQ(Read(words).contractible, 1);
}

}  // namespace
}  // namespace qmatmul::vulkan
