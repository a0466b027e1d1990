#include "kernels/vulkan/kernel_table.h"

#include <utility>

#include "kernels/vulkan/vulkan_weight.h"

namespace qmatmul::vulkan {
namespace {

// Above this many rows a tile of 8 reads the weight so much less often that its idle rows do not matter.
constexpr int64_t kRowFormRowsMax = 2;
// The row form, a part of a tile, more than one.
constexpr RowClasses kRowClasses = {kRowFormRowsMax, 8};

// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): the order is how a row of the table reads
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

std::vector<Kernel> KernelsFor(const GpuTraits& traits, bool without_float) {
  std::vector<Kernel> kernels;
  for (const Row& row : kRows) {
    const std::string_view way = row.way;
    const char* variant = way == "float" && traits.keeps_denormals ? "_preserve_s" : "_s";
    for (const DataType weight : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
      const int bits = BitsOf(weight);
      kernels.push_back({NameOf(row, bits), row.shader + (variant + std::to_string(bits)), weight,
                         row.arithmetic, row.rows, row.columns, way == "shift" || way == "soft",
                         MissingFor(row, traits, without_float)});
    }
  }
  return kernels;
}

std::vector<KernelInfo> InfosOf(const std::vector<Kernel>& kernels) {
  std::vector<KernelInfo> infos;
  infos.reserve(kernels.size());
  for (const Kernel& k : kernels)
    infos.push_back({k.name, k.missing.empty(), false, k.missing, std::string(LayoutOf(k.weight)),
                     k.weight, k.arithmetic});
  return infos;
}

}  // namespace

KernelTable::KernelTable(const GpuTraits& traits, bool without_float, std::string_view disabled)
    : kernels_(KernelsFor(traits, without_float)),
      list_(InfosOf(kernels_), disabled, kRowClasses) {}

KernelTable::Choice KernelTable::Select(int64_t rows, DataType weight,
                                        Arithmetic arithmetic) const {
  Choice choice;
  std::pair<bool, bool> best;  // not quarantined, made for these rows
  for (size_t i = 0; i < kernels_.size(); ++i) {
    const Kernel& kernel = kernels_[i];
    if (!kernel.fits(weight, arithmetic) || !list_.IsUsable(i)) continue;
    const bool is_row_form = kernel.rows == 1 && arithmetic == Arithmetic::kW8A8;
    const std::pair merit(!list_.IsQuarantined(i, rows), !is_row_form || rows <= kRowFormRowsMax);
    choice.fell_back |= !merit.first;
    if (choice.kernel != nullptr && merit <= best) continue;
    choice.kernel = &kernel;
    best = merit;
  }
  return choice;
}

Fault KernelTable::Choose(std::string_view forced, int64_t rows, DataType weight,
                          std::string_view layout, Arithmetic arithmetic, Choice* choice) const {
  if (forced.empty()) {
    *choice = Select(rows, weight, arithmetic);
    return {};
  }
  size_t index = 0;
  if (Fault f = list_.Find(forced, rows, &index); !f.ok()) return f;
  *choice = {&kernels_[index], false};
  return list_.CheckFits(index, weight, layout, arithmetic);
}

}  // namespace qmatmul::vulkan
