// The kernels linked into this program, as a bench target.
#include <algorithm>
#include <chrono>

#include "client/cli/bench_target.h"
#include "client/cli/failure.h"
#include "client/cli/random_bytes.h"
#include "kernels/device.h"
#include "kernels/devices.h"

namespace qmatmul::cli {
namespace {

void Check(const Fault& fault) {
  if (!fault.ok()) throw Failure(kExitNo, fault.reason + ": " + fault.message);
}

class LocalTarget final : public BenchTarget {
 public:
  LocalTarget(const BenchShape& shape, int64_t threads_max)
      : shape_(shape),
        activations_(RandomInt8(static_cast<size_t>(shape.rows_max * shape.k), 1)),
        sums_(static_cast<size_t>(shape.rows_max * shape.n)) {
    DeviceOptions options;
    options.threads = static_cast<int>(threads_max);
    devices_ = OpenDevices(options);
    const auto data = RandomInt8(static_cast<size_t>(shape.k * shape.n), 2);
    WeightView view;
    view.spec.dtype = DataType::kInt8;
    view.spec.layout = Layout::kKN;
    view.spec.k = shape.k;
    view.spec.n = shape.n;
    view.data = data.data();
    Check(CheckSpec(view.spec));
    Check(device().Pack(view, &weight_));
  }

  std::string where() const override { return "this process, " + device().info().description; }

  std::vector<int64_t> thread_counts() const override {
    const int64_t team = device().info().threads;
    return team > 1 ? std::vector<int64_t>{1, team} : std::vector<int64_t>{1};
  }

  std::vector<std::string> KernelsFor(int64_t rows) override {
    std::vector<std::string> names;
    for (const KernelChoice& choice :
         device().Explain(rows, std::span(&weight_, 1), Arithmetic::kW8A8, {}))
      if (choice.eligible) names.push_back(choice.name);
    return names;
  }

  BenchSample Run(int64_t rows, int64_t threads, std::string_view kernel) override {
    const ByteSpan bytes{reinterpret_cast<const std::byte*>(activations_.data()),
                         static_cast<size_t>(rows * shape_.k)};
    ActivationView activations;
    activations.dtype = DataType::kInt8;
    activations.rows = rows;
    activations.k = shape_.k;
    activations.bytes = std::span(&bytes, 1);
    SegmentOutput output;
    output.view = {reinterpret_cast<std::byte*>(sums_.data()), shape_.n * 4};
    RowSegment segment;
    segment.activations = &activations;
    segment.rows = rows;
    segment.outputs = std::span(&output, 1);
    WorkStep step;
    step.weights = std::span(&weight_, 1);
    Work work;
    work.segments = std::span(&segment, 1);
    work.steps = std::span(&step, 1);
    work.kernel = kernel;
    work.threads_max = static_cast<int>(threads);
    RunReport report;
    const auto start = std::chrono::steady_clock::now();
    Check(device().Run(work, &report));
    const auto elapsed = std::chrono::steady_clock::now() - start;
    Check(segment.fault);
    return {std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count(),
            report.compute_ns, std::string(report.kernel), report.padded_rows};
  }

 private:
  Device& device() const { return *devices_.front(); }

  BenchShape shape_;
  std::vector<int8_t> activations_;
  std::vector<int32_t> sums_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::shared_ptr<const PackedWeight> weight_;
};

}  // namespace

std::unique_ptr<BenchTarget> OpenLocalTarget(const BenchShape& shape, int64_t threads_max) {
  return std::make_unique<LocalTarget>(shape, threads_max);
}

}  // namespace qmatmul::cli
