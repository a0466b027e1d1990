#include "kernels/vulkan/vulkan_weight.h"

#include <algorithm>
#include <new>

namespace qmatmul::vulkan {
namespace {

int32_t OffsetOf(DataType weight) {
  return weight == DataType::kInt4 ? 8 : weight == DataType::kInt2 ? 1 : 0;
}

}  // namespace

std::string_view LayoutOf(DataType weight) {
  if (weight == DataType::kInt4) return "k8.s4";
  return weight == DataType::kInt2 ? "k16.s2" : "k4.s8";
}

std::string LayoutOf(const WeightSpec& spec) {
  std::string layout(LayoutOf(spec.dtype));
  if (spec.group_wise()) layout += ".g" + std::to_string(spec.group_size);
  return layout;
}

Fault VulkanWeight::Allocate(Gpu& gpu, const WeightSpec& spec, const std::string& device,
                             std::shared_ptr<VulkanWeight>* weight) {
  try {
    std::shared_ptr<VulkanWeight> made(new VulkanWeight(spec, LayoutOf(spec), device));
    made->gpu_ = &gpu;
    made->AllocateColumns();
    if (Fault fault = made->AllocateParts(gpu); !fault.ok()) return fault;
    *weight = std::move(made);
  } catch (const std::bad_alloc&) {
    return {FaultKind::kResourceExhausted, "WEIGHT_MEMORY",
            "no host memory for the column sums and scales of a weight of k = " +
                std::to_string(spec.k) + ", n = " + std::to_string(spec.n)};
  }
  return {};
}

void VulkanWeight::AllocateColumns() {
  const auto n = static_cast<size_t>(spec().n), all = static_cast<size_t>(groups()) * n;
  group_sums_.resize(all);
  if (groups() > 1) total_sums_.resize(n);
  scales_.resize(all);
  bias_.resize(static_cast<size_t>(spec().bias_count));
  columns_ = {spec().n,
              spec().n,
              group_sums_.data(),
              scales_.data(),
              bias_.empty() ? nullptr : bias_.data(),
              OffsetOf(spec().dtype)};
}

Fault VulkanWeight::AllocateParts(Gpu& gpu) {
  const int64_t column_bytes = groups() * steps() * 4;
  const int64_t quads = (spec().n + 3) / 4;
  const int64_t quads_max = gpu.traits().range_bytes / (4 * column_bytes);
  if (quads_max == 0)
    return {FaultKind::kResourceExhausted, "DEVICE_MEMORY",
            gpu.traits().name + ": four columns of " + std::to_string(column_bytes) +
                " bytes are over the " + std::to_string(gpu.traits().range_bytes) +
                " that one of its buffers holds"};
  const int64_t count = (quads + quads_max - 1) / quads_max;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = quads * i / count, end = quads * (i + 1) / count;
    WeightPart part;
    part.column_begin = 4 * begin;
    part.stride = 4 * (end - begin);
    part.columns = std::min(4 * end, spec().n) - part.column_begin;
    if (Fault f = gpu.Allocate(part.stride * column_bytes, Place::kDevice, &part.buffer); !f.ok())
      return f;
    bytes_ += part.buffer->bytes();
    parts_.push_back(std::move(part));
  }
  return {};
}

}  // namespace qmatmul::vulkan
