#include "kernels/vulkan/kernel_table.h"

#include <cassert>

namespace qmatmul::vulkan {
namespace {

// Above this many rows a tile of 8 reads the weight so much less often that its idle rows do not matter.
constexpr int64_t kRowFormRowsMax = 2;

struct Row {
  const char* way;     // "dot"
  const char* shader;  // before "_s8"
  Arithmetic arithmetic;
  int64_t rows, columns;
  uint32_t invocations;  // of a workgroup; every Vulkan device takes 128
};

// Best first. As the workgroups of sums.comp and float_sums.comp.
constexpr Row kRows[] = {
    {"dot", "dot_row", Arithmetic::kW8A8, 1, 64, 256},
    {"dot", "dot_tile", Arithmetic::kW8A8, 8, 128, 32},
    {"shift", "shift_tile", Arithmetic::kW8A8, 8, 128, 32},
    {"float", "float", Arithmetic::kW8A32, 4, 128, 32},
    {"soft", "soft", Arithmetic::kW8A32, 1, 128, 32},
};

std::string NameOf(const Row& row, int bits) {
  const std::string type = "s" + std::to_string(bits);
  const std::string types =
      row.arithmetic == Arithmetic::kW8A8 ? "s8" + type + "s32" : "f32" + type + "f32";
  return "vulkan." + std::string(row.way) + "." + types + "." + std::to_string(row.rows) + "x" +
         std::to_string(row.columns) + "x" + std::to_string(32 / bits);
}

bool IsDisabled(std::string_view name, std::string_view disabled) {
  while (!disabled.empty()) {
    const size_t comma = disabled.find(',');
    const std::string_view item = disabled.substr(0, comma);
    disabled = comma == std::string_view::npos ? "" : disabled.substr(comma + 1);
    if (item.empty() || !name.starts_with(item)) continue;
    if (name.size() == item.size() || name[item.size()] == '.') return true;
  }
  return false;
}

std::string MissingFor(const Row& row, const GpuTraits& traits, bool without_float) {
  const std::string_view way = row.way;
  if (way == "dot" && !traits.has_dot)
    return traits.name + " lacks VK_KHR_shader_integer_dot_product";
  if (row.invocations > traits.invocations_max)
    return traits.name + " takes workgroups of " + std::to_string(traits.invocations_max) +
           " invocations, not " + std::to_string(row.invocations);
  if (way == "float" && !traits.rounds_to_even)
    return traits.name + " does not promise to round fp32 to nearest even";
  if (way == "float" && without_float) return "fp32 is taken for inexact";
  return "";
}

}  // namespace

std::vector<Kernel> KernelsFor(const GpuTraits& traits, bool without_float,
                               std::string_view disabled) {
  std::vector<Kernel> kernels;
  for (const Row& row : kRows) {
    for (const DataType weight : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
      const int bits = BitsOf(weight);
      Kernel kernel;
      kernel.name = NameOf(row, bits);
      kernel.shader = row.shader;
      if (kernel.shader == "float" && traits.keeps_denormals) kernel.shader += "_preserve";
      kernel.shader += "_s" + std::to_string(bits);
      kernel.weight = weight;
      kernel.arithmetic = row.arithmetic;
      kernel.rows = row.rows;
      kernel.columns = row.columns;
      kernel.reason = MissingFor(row, traits, without_float);
      const bool is_last =
          std::string_view(row.way) == "shift" || kernel.shader.starts_with("soft");
      if (kernel.usable() && !is_last && IsDisabled(kernel.name, disabled)) {
        kernel.disabled = true;
        kernel.reason = "disabled by configuration";
      }
      kernels.push_back(std::move(kernel));
    }
  }
  return kernels;
}

const Kernel* ChooseKernel(const std::vector<Kernel>& kernels, int64_t rows, DataType weight,
                           Arithmetic arithmetic) {
  const Kernel* any = nullptr;
  for (const Kernel& kernel : kernels) {
    if (!kernel.usable() || !kernel.fits(weight, arithmetic)) continue;
    any = &kernel;
    const bool is_row_form = kernel.rows == 1 && arithmetic == Arithmetic::kW8A8;
    if (!is_row_form || rows <= kRowFormRowsMax) return any;
  }
  assert(any != nullptr);
  return any;
}

}  // namespace qmatmul::vulkan
