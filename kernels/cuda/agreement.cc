#include "kernels/cuda/agreement.h"

#include <array>
#include <memory>
#include <random>
#include <vector>

#include "kernels/self_test.h"

namespace qmatmul::cuda {
namespace {

struct Size {
  int64_t rows, k, n;
};

// More tiles than one each way; one tile of rows with few columns, whose K is cut into slices; and more tiles than
// the device has multiprocessors, so that K is not cut and its stages, the last of them a part of one, go round the
// ring of those in flight several times.
std::array<Size, 3> SizesFor(int multiprocessors) {
  constexpr int64_t kTile = 128, kTilesOfRows = 3;
  const int64_t columns = (multiprocessors + kTilesOfRows) / kTilesOfRows * kTile;
  return {{{300, 1500, 391}, {77, 8300, 40}, {kTilesOfRows * kTile - 84, 1500, columns - 5}}};
}

std::vector<int32_t> Product(Device* device, const std::shared_ptr<const PackedWeight>& weight,
                             const std::vector<int8_t>& rows, int64_t count,
                             std::string_view kernel, Fault* fault) {
  const int64_t k = weight->spec().k, n = weight->spec().n;
  const ByteSpan span{reinterpret_cast<const std::byte*>(rows.data()), rows.size()};
  const ActivationView view{DataType::kInt8, count, k, {&span, 1}, Quantization::kNone, {}, {}};
  std::vector<int32_t> sums(static_cast<size_t>(count * n));
  SegmentOutput output;
  output.view = {reinterpret_cast<std::byte*>(sums.data()), n * 4};
  RowSegment segment;
  segment.activations = &view;
  segment.rows = count;
  segment.outputs = {&output, 1};
  const WorkStep step{{&weight, 1}, Arithmetic::kW8A8, {}};
  RunReport report;
  *fault = device->Run({{&segment, 1}, {&step, 1}, kernel, 0}, &report);
  return sums;
}

}  // namespace

Fault CompareKernels(Device* device, int multiprocessors, std::string_view one,
                     std::string_view other) {
  std::mt19937 generator(90);
  for (const Size& size : SizesFor(multiprocessors)) {
    std::vector<int8_t> data(static_cast<size_t>(size.k * size.n)),
        rows(static_cast<size_t>(size.rows * size.k));
    for (int8_t& value : data) value = static_cast<int8_t>(generator());
    for (int8_t& value : rows) value = static_cast<int8_t>(generator());
    WeightView view;
    view.spec = {DataType::kInt8, Layout::kNK, size.k, size.n, 0, DataType::kUnspecified, 0, 0};
    view.data = data.data();
    std::shared_ptr<const PackedWeight> weight;
    Fault fault = device->Pack(view, &weight);
    if (!fault.ok()) return fault;
    const std::vector<int32_t> got = Product(device, weight, rows, size.rows, one, &fault);
    if (!fault.ok()) return fault;
    const std::vector<int32_t> wanted = Product(device, weight, rows, size.rows, other, &fault);
    if (!fault.ok()) return fault;
    for (size_t i = 0; i < got.size(); ++i)
      if (got[i] != wanted[i])
        return {FaultKind::kInternal, std::string(kSelfTestFailed),
                "differs from " + std::string(other) + " first at row " +
                    std::to_string(int64_t(i) / size.n) + ", column " +
                    std::to_string(int64_t(i) % size.n) + " of " + std::to_string(size.rows) +
                    " x " + std::to_string(size.k) + " x " + std::to_string(size.n)};
  }
  return {};
}

}  // namespace qmatmul::cuda
