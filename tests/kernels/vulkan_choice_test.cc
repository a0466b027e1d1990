// Which Vulkan kernel is chosen, for devices of the test's own making: what they lack, what is disabled, what is
// put aside.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "kernels/vulkan/kernel_table.h"

namespace qmatmul::vulkan {
namespace {

GpuTraits EverythingThere() {
  GpuTraits traits;
  traits.name = "a device";
  traits.has_dot = traits.rounds_to_even = true;
  traits.invocations_max = 1024;
  return traits;
}

std::string Chosen(const KernelTable& table, int64_t rows,
                   Arithmetic arithmetic = Arithmetic::kW8A8) {
  return table.Select(rows, DataType::kInt8, arithmetic).kernel->name;
}

constexpr char kRow[] = "vulkan.dot.s8s8s32.1x64x4", kTile[] = "vulkan.dot.s8s8s32.8x128x4",
               kShift[] = "vulkan.shift.s8s8s32.8x128x4",
               kFloat[] = "vulkan.float.f32s8f32.4x128x4", kSoft[] = "vulkan.soft.f32s8f32.1x128x4";

TEST(VulkanChoice, TheRowFormForFewRowsAndNoOthers) {
  const KernelTable table(EverythingThere(), false, "");
  for (const int64_t rows : {0, 1, 2}) EXPECT_EQ(Chosen(table, rows), kRow) << rows;
  for (const int64_t rows : {3, 8, 9, 5000}) EXPECT_EQ(Chosen(table, rows), kTile) << rows;
  for (const int64_t rows : {1, 9})
    EXPECT_EQ(Chosen(table, rows, Arithmetic::kW8A32), kFloat) << rows;
  // fp32 that was found inexact on the device, whatever it promises.
  EXPECT_EQ(Chosen(KernelTable(EverythingThere(), true, ""), 1, Arithmetic::kW8A32), kSoft);
  // A device of small workgroups has no row form.
  GpuTraits small = EverythingThere();
  small.invocations_max = 128;
  EXPECT_EQ(Chosen(KernelTable(small, false, ""), 1), kTile);
}

TEST(VulkanChoice, WhatDisabledKernelsLeave) {
  const struct {
    const char* disabled;
    const char *few, *many, *floats;
  } rows[] = {
      {" vulkan.shift , vulkan.soft", kRow, kTile, kFloat},
      {kRow, kTile, kTile, kFloat},
      {kTile, kRow, kShift, kFloat},
      {"vulkan.dot, vulkan.float", kShift, kShift, kSoft},
      {"vulkan.shift,vulkan.dot.s8s8s32.8x128x4", kRow, kRow, kFloat},  // for many rows, too
      {"vulkan", kShift, kShift, kSoft},
  };
  for (const auto& row : rows) {
    const KernelTable table(EverythingThere(), false, row.disabled);
    EXPECT_EQ(Chosen(table, 1), row.few) << row.disabled;
    EXPECT_EQ(Chosen(table, 100), row.many) << row.disabled;
    EXPECT_EQ(Chosen(table, 100, Arithmetic::kW8A32), row.floats) << row.disabled;
  }
}

TEST(VulkanChoice, DenormalsAreKeptByAShaderThatSaysSo) {
  const auto shader_of = [](const GpuTraits& traits) {
    const KernelTable table(traits, false, "");
    return table.Select(9, DataType::kInt8, Arithmetic::kW8A32).kernel->shader;
  };
  GpuTraits traits = EverythingThere();
  EXPECT_EQ(shader_of(traits), "float_s8");
  traits.keeps_denormals = true;
  EXPECT_EQ(shader_of(traits), "float_preserve_s8");
}

// Without the dot product no list can take the shifts away.
TEST(VulkanChoice, EveryDeviceHasAKernelOfEachKind) {
  GpuTraits bare;
  bare.invocations_max = 128;  // every device takes so many
  for (const char* disabled : {"", "vulkan.shift", "vulkan"}) {
    const KernelTable table(bare, true, disabled);
    for (const DataType weight : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
      EXPECT_TRUE(
          table.Select(9, weight, Arithmetic::kW8A8).kernel->name.starts_with("vulkan.shift"));
      EXPECT_TRUE(
          table.Select(9, weight, Arithmetic::kW8A32).kernel->name.starts_with("vulkan.soft"));
    }
  }
}

TEST(VulkanChoice, QuarantineIsByFormsAndTiles) {
  const struct {
    int64_t rows;
    const char *victim, *key, *instead;
    int64_t other_rows;
  } cases[] = {
      {1, kRow, "/m1-2", kTile, 3},
      {5, kTile, "/m3-8", kShift, 9},
      {100, kTile, "/m9+", kShift, 8},
  };
  for (const auto& c : cases) {
    KernelTable table(EverythingThere(), false, "");
    ASSERT_EQ(Chosen(table, c.rows), c.victim);
    const std::string other = Chosen(table, c.other_rows);
    table.list().Quarantine(c.victim, c.rows, "wrong sum");
    EXPECT_EQ(Chosen(table, c.rows), c.instead);
    EXPECT_TRUE(table.Select(c.rows, DataType::kInt8, Arithmetic::kW8A8).fell_back);
    EXPECT_EQ(Chosen(table, c.other_rows), other);
    EXPECT_FALSE(table.Select(c.other_rows, DataType::kInt8, Arithmetic::kW8A8).fell_back);
    EXPECT_TRUE(table.list().Rearm(std::string(c.victim) + c.key));
    EXPECT_EQ(Chosen(table, c.rows), c.victim);
  }
}

TEST(VulkanChoice, TheForcedKernelOrWhyNot) {
  GpuTraits traits = EverythingThere();
  traits.has_dot = false;
  const KernelTable table(traits, false, "");
  KernelTable::Choice choice;
  const auto choose = [&](const char* name) {
    return table.Choose(name, 9, DataType::kInt8, "k4.s8", Arithmetic::kW8A8, &choice);
  };
  EXPECT_TRUE(choose("").ok());
  EXPECT_EQ(choice.kernel->name, kShift);
  EXPECT_TRUE(choose(kShift).ok());
  EXPECT_EQ(choice.kernel->name, kShift);
  EXPECT_EQ(choose("vulkan.none").reason, "KERNEL_UNKNOWN");
  const Fault lacks = choose(kTile);
  EXPECT_EQ(lacks.reason, "KERNEL_UNSUPPORTED");
  EXPECT_NE(lacks.message.find("a device lacks VK_KHR_shader_integer_dot_product"),
            std::string::npos);
  const Fault other = choose(kSoft);
  EXPECT_EQ(other.reason, "LAYOUT_MISMATCH");
  EXPECT_NE(other.message.find("k4.s8 weights for W8A32, not k4.s8 for W8A8"), std::string::npos)
      << other.message;
}

}  // namespace
}  // namespace qmatmul::vulkan
