#include "kernels/vulkan/vulkan_costs.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

namespace qmatmul::vulkan {
namespace {

// Small enough for a device that computes on the CPU, large enough to tell the terms apart on a GPU, where
// Learn soon knows better.
constexpr int64_t kInner = 1024, kColumns = 1024;
constexpr int kTimes = 3;  // the first one warms up; the best counts
// How far one Run moves the correction, and how far it may go.
constexpr double kLearningRate = 0.1, kCorrectionMin = 0.1, kCorrectionMax = 10.0;

struct Sample {
  int64_t rows, k, n;
};

Fault Time(Device* device, const Sample& sample, double* best_ns) {
  WeightView weight;
  weight.spec = {DataType::kInt8, Layout::kNK, sample.k, sample.n, 0, DataType::kUnspecified, 0, 0};
  const std::vector<int8_t> values(size_t(sample.k * sample.n), 3);
  weight.data = values.data();
  std::shared_ptr<const PackedWeight> packed;
  if (Fault f = device->Pack(weight, &packed); !f.ok()) return f;
  const std::vector<int8_t> rows(size_t(sample.rows * sample.k), 5);
  const ByteSpan span{reinterpret_cast<const std::byte*>(rows.data()), rows.size()};
  const ActivationView view{DataType::kInt8,     sample.rows, sample.k, {&span, 1},
                            Quantization::kNone, {},          {}};
  std::vector<std::byte> out(size_t(sample.rows * sample.n) * 4);
  SegmentOutput output;
  output.view = {out.data(), sample.n * 4};
  RowSegment segment;
  segment.activations = &view;
  segment.rows = sample.rows;
  segment.outputs = {&output, 1};
  const WorkStep step{{&packed, 1}, Arithmetic::kW8A8, {}};
  *best_ns = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kTimes; ++i) {
    RunReport report;
    if (Fault f = device->Run({{&segment, 1}, {&step, 1}, {}, 0}, &report); !f.ok()) return f;
    *best_ns = std::min(*best_ns, double(report.compute_ns));
  }
  return {};
}

}  // namespace

Fault Costs::Measure(Device* device) {
  double fixed = 0, weight = 0, ops = 0, out = 0;
  constexpr int64_t kRows = 16, kOutRows = 64, kOutK = 64;
  if (Fault f = Time(device, {1, 64, 64}, &fixed); !f.ok()) return f;
  if (Fault f = Time(device, {1, kInner, kColumns}, &weight); !f.ok()) return f;
  if (Fault f = Time(device, {kRows, kInner, kColumns}, &ops); !f.ok()) return f;
  if (Fault f = Time(device, {kOutRows, kOutK, kColumns}, &out); !f.ok()) return f;
  const auto above = [&](double ns) { return std::max(ns - fixed, 0.02 * ns); };
  weight_ns_ = above(weight) / double(kInner * kColumns);
  op_ns_ = above(ops) / double(2 * kRows * kInner * kColumns);
  const double out_ops = op_ns_ * double(2 * kOutRows * kOutK * kColumns);
  out_ns_ = std::max(above(out) - out_ops, 0.02 * out) / double(kOutRows * kColumns);
  fixed_ns_ = fixed;
  correction_.store(1.0, std::memory_order_relaxed);
  return {};
}

double Costs::Fit(int64_t rows, int64_t k, int64_t n) const {
  const double weights = double(k) * double(n), outputs = double(rows) * double(n);
  return fixed_ns_ + std::max(weights * weight_ns_, 2 * double(rows) * weights * op_ns_) +
         (outputs + double(rows) * double(k)) * out_ns_;
}

int64_t Costs::PredictNs(int64_t rows, int64_t k, int64_t n) const {
  return int64_t(Fit(rows, k, n) * correction_.load(std::memory_order_relaxed));
}

void Costs::Learn(const Work& work, int64_t rows, int64_t ns) {
  // A forced kernel or W8A32 says nothing of what the choice for W8A8 would have taken.
  const bool is_typical = work.steps.size() == 1 && work.kernel.empty() &&
                          work.steps[0].arithmetic == Arithmetic::kW8A8;
  if (!is_typical || rows == 0 || fixed_ns_ == 0) return;
  double fit = 0;
  for (const auto& weight : work.steps[0].weights)
    fit += Fit(rows, weight->spec().k, weight->spec().n);
  // Two Runs that learn at once lose one lesson; that is all.
  const double now = correction_.load(std::memory_order_relaxed);
  const double seen = std::clamp(double(ns) / fit, kCorrectionMin, kCorrectionMax);
  correction_.store(now + kLearningRate * (seen - now), std::memory_order_relaxed);
}

}  // namespace qmatmul::vulkan
