#include "kernels/cuda/cost_fit.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

namespace qmatmul::cuda {
namespace {

constexpr int64_t kLongEnoughNs = 400'000;
constexpr int64_t kSideMin = 128, kSideMax = 8192;  // 64 MiB of INT8: more than an L2 cache
constexpr int64_t kManyRows = 512;

int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

// Products of a square weight of zeros' neighbours: which values they are costs nothing.
class Trial {
 public:
  Trial(Device* device, const CudaKernel& kernel) : device_(device), kernel_(kernel) {}

  bool Pack(int64_t side) {
    WeightView view;
    view.spec = {kernel_.weight, Layout::kNK, side, side, 0, DataType::kUnspecified, 0, 0};
    std::vector<float> scales;
    if (kernel_.weight == DataType::kInt4) {
      view.spec.group_size = side;
      view.spec.scale_dtype = DataType::kF32;
      view.spec.scale_count = side;
      scales.assign(static_cast<size_t>(side), 1.0f);
    }
    const std::vector<std::byte> data(static_cast<size_t>(view.spec.data_bytes()), std::byte{0x11});
    view.data = data.data();
    view.scales = scales.data();
    weight_ = nullptr;
    return device_->Pack(view, &weight_).ok();
  }

  // Of the best of a few; negative when the device refuses.
  int64_t RunNs(int64_t rows) const {
    const int64_t k = weight_->spec().k, n = weight_->spec().n;
    const bool floats = kernel_.arithmetic == Arithmetic::kW8A32;
    const std::vector<std::byte> data(static_cast<size_t>(rows * k * (floats ? 4 : 1)));
    const ByteSpan span{data.data(), data.size()};
    const ActivationView view{floats ? DataType::kF32 : DataType::kInt8,
                              rows,
                              k,
                              {&span, 1},
                              Quantization::kNone,
                              {},
                              {}};
    std::vector<std::byte> results(static_cast<size_t>(rows * n * 4));
    int64_t best = -1;
    for (int i = 0; i < 4; ++i) {
      SegmentOutput output;
      output.epilogue.dtype = DataType::kF32;
      output.view = {results.data(), n * 4};
      RowSegment segment;
      segment.activations = &view;
      segment.rows = rows;
      segment.outputs = {&output, 1};
      const WorkStep step{{&weight_, 1}, kernel_.arithmetic, {}};
      RunReport report;
      const int64_t start = NowNs();
      if (!device_->Run({{&segment, 1}, {&step, 1}, kernel_.name, 0}, &report).ok()) return -1;
      const int64_t ns = NowNs() - start;
      best = best < 0 ? ns : std::min(best, ns);
      if (ns > 4 * kLongEnoughNs) break;
    }
    return best;
  }

 private:
  Device* const device_;
  const CudaKernel& kernel_;
  std::shared_ptr<const PackedWeight> weight_;
};

// Bytes up and down by the difference that more of them make; a copy of no cost would be infinitely fast.
CallCosts FitCall(Device* device, const CudaKernel& kernel) {
  CallCosts costs;
  Trial trial(device, kernel);
  if (!trial.Pack(kSideMin)) return costs;
  costs.call_ns = static_cast<double>(std::max<int64_t>(trial.RunNs(1), 1));
  const double many = static_cast<double>(std::max<int64_t>(trial.RunNs(kManyRows), 1));
  const double bytes = double(kManyRows) * kSideMin * 5;  // a byte up and four down a result
  costs.up_bytes_per_ns = costs.down_bytes_per_ns = bytes / std::max(many - costs.call_ns, 1.0);
  return costs;
}

KernelRates FitKernel(Device* device, const CudaKernel& kernel, double call_ns) {
  KernelRates rates;
  Trial trial(device, kernel);
  for (int64_t side = kSideMin; side <= kSideMax; side *= 4) {
    if (!trial.Pack(side)) break;
    // Tiles are measured where they are full.
    const bool tiles = kernel.form == Form::kMma || kernel.form == Form::kWgmma;
    const int64_t many_rows = tiles ? kManyRows : kManyRows / 8;
    const int64_t one = trial.RunNs(1), many = trial.RunNs(many_rows);
    if (one < 0 || many < 0) break;
    const double values = double(side) * double(side), bytes = values * BitsOf(kernel.weight) / 8;
    rates.bytes_per_ns = bytes / std::max(double(one) - call_ns, 100.0);
    rates.products_per_ns = values * double(many_rows) / std::max(double(many) - call_ns, 100.0);
    if (double(many) - call_ns > kLongEnoughNs) break;
  }
  return rates;
}

}  // namespace

void FitCosts(Device* device, KernelChoices* choices) {
  double call_ns = 0;
  for (size_t i = 0; i < CudaKernels().size(); ++i) {
    if (!choices->list().IsUsable(i)) continue;
    const CudaKernel& kernel = CudaKernels()[i];
    if (call_ns == 0) {
      const CallCosts costs = FitCall(device, kernel);
      choices->SetCosts(costs);
      call_ns = costs.call_ns;
    }
    choices->SetRates(i, FitKernel(device, kernel, call_ns));
  }
}

}  // namespace qmatmul::cuda
