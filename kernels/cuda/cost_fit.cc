#include "kernels/cuda/cost_fit.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
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
  // Of one product: all of it as the host sees it, and its launches on the device.
  struct Times {
    double call_ns = 0, launches_ns = 0;
  };

  Trial(Device* device, const LaunchTimer& run, const CudaKernel& kernel)
      : device_(device), run_(run), kernel_(kernel) {}

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

  // Of the best of a few; none when the device refuses.
  std::optional<Times> Run(int64_t rows) const {
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
    Times best{1e18, 1e18};
    for (int i = 0; i < 4; ++i) {
      SegmentOutput output;
      output.epilogue.dtype = DataType::kF32;
      output.view = {results.data(), n * 4};
      RowSegment segment;
      segment.activations = &view;
      segment.rows = rows;
      segment.outputs = {&output, 1};
      const WorkStep step{{&weight_, 1}, kernel_.arithmetic, {}};
      const int64_t start = NowNs();
      double launches_ns = 0;
      if (!run_({{&segment, 1}, {&step, 1}, kernel_.name, 0}, &launches_ns).ok()) return {};
      const auto call_ns = static_cast<double>(NowNs() - start);
      best = {std::min(best.call_ns, call_ns), std::min(best.launches_ns, launches_ns)};
      if (call_ns > 4 * kLongEnoughNs) break;
    }
    return best;
  }

 private:
  Device* const device_;
  const LaunchTimer& run_;
  const CudaKernel& kernel_;
  std::shared_ptr<const PackedWeight> weight_;
};

// Bytes up and down by the difference that more of them make; a copy of no cost would be infinitely fast.
std::optional<CallCosts> FitCall(Device* device, const LaunchTimer& run, const CudaKernel& kernel) {
  Trial trial(device, run, kernel);
  if (!trial.Pack(kSideMin)) return {};
  const auto one = trial.Run(1), many = trial.Run(kManyRows);
  if (!one || !many) return {};
  CallCosts costs;
  costs.call_ns = one->call_ns;
  const double copies_ns = many->call_ns - many->launches_ns - (one->call_ns - one->launches_ns);
  const double bytes = double(kManyRows) * kSideMin * 5;  // a byte up and four down a result
  costs.up_bytes_per_ns = costs.down_bytes_per_ns = bytes / std::max(copies_ns, 1.0);
  return costs;
}

KernelRates FitKernel(Device* device, const LaunchTimer& run, const CudaKernel& kernel) {
  KernelRates rates;
  Trial trial(device, run, kernel);
  for (int64_t side = kSideMin; side <= kSideMax; side *= 4) {
    if (!trial.Pack(side)) break;
    // Tiles are measured where they are full.
    const bool tiles = kernel.form == Form::kMma || kernel.form == Form::kWgmma;
    const int64_t many_rows = tiles ? kManyRows : kManyRows / 8;
    const auto one = trial.Run(1), many = trial.Run(many_rows);
    if (!one || !many) break;
    const double values = double(side) * double(side), bytes = values * BitsOf(kernel.weight) / 8;
    rates.bytes_per_ns = bytes / std::max(one->launches_ns, 100.0);
    rates.products_per_ns = values * double(many_rows) / std::max(many->launches_ns, 100.0);
    if (many->launches_ns > kLongEnoughNs) break;
  }
  return rates;
}

}  // namespace

void FitCosts(Device* device, const LaunchTimer& run, KernelChoices* choices) {
  bool call_is_known = false;
  for (size_t i = 0; i < CudaKernels().size(); ++i) {
    if (!choices->list().IsEligible(i, 1) || !choices->list().IsEligible(i, kManyRows)) continue;
    const CudaKernel& kernel = CudaKernels()[i];
    if (!call_is_known) {
      const auto costs = FitCall(device, run, kernel);
      call_is_known = costs.has_value();
      if (call_is_known) choices->SetCosts(*costs);
    }
    choices->SetRates(i, FitKernel(device, run, kernel));
  }
}

}  // namespace qmatmul::cuda
