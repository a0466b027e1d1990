#include "kernels/bench/contest.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>

#include "kernels/bench/roof.h"
#include "kernels/cpu/micro_kernels.h"
#include "kernels/half.h"

namespace qmatmul::bench {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Demand(const Fault& fault) {
  if (fault.ok()) return;
  std::fprintf(stderr, "kernels_bench: %s: %s\n", fault.reason.c_str(), fault.message.c_str());
  std::exit(1);
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The int8 values as they are, or as floats that quantize back to about themselves.
std::vector<std::byte> Encode(std::span<const int8_t> values, DataType dtype) {
  const size_t size = size_t(BitsOf(dtype) / 8);
  std::vector<std::byte> bytes(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) {
    const float x = values[i] * 0.01f;
    const uint16_t half = dtype == DataType::kF16 ? FloatToF16(x) : FloatToBF16(x);
    const void* source =
        dtype == DataType::kF32 ? static_cast<const void*>(&x) : static_cast<const void*>(&half);
    std::memcpy(bytes.data() + i * size, IsFloat(dtype) ? source : &values[i], size);
  }
  return bytes;
}

}  // namespace

struct OwnProduct::Parts {
  std::vector<std::byte> activations;
  std::vector<float> scales;
  ByteSpan span;
  ActivationView view;
  std::shared_ptr<const PackedWeight> weight;
  SegmentOutput output;
  RowSegment segment;
  WorkStep step;
  Work work;
};

OwnProduct::OwnProduct(Device* device, const Problem& p, DataType weight_type, int64_t group_size,
                       DataType activations, const Epilogue& epilogue, std::string kernel)
    : device_(device), forced_(std::move(kernel)), parts_(std::make_unique<Parts>()) {
  Parts& x = *parts_;
  WeightView weight;
  weight.spec = {weight_type,
                 Layout::kKN,
                 p.k,
                 p.n,
                 group_size,
                 DataType::kF32,
                 (group_size > 0 ? p.k / group_size : 1) * p.n,
                 0};
  x.scales.assign(size_t(weight.spec.scale_count), 0.01f);
  weight.data = p.weight.data();  // as INT4, the first half of the bytes
  weight.scales = x.scales.data();
  Demand(device->Pack(weight, &x.weight));  // once to have the memory at hand
  x.weight.reset();
  const double start = Seconds();
  Demand(device->Pack(weight, &x.weight));
  pack_gbps_ = 1e-9 * double(weight.spec.data_bytes()) / (Seconds() - start);
  x.activations = Encode(p.activations, activations);
  x.span = {x.activations.data(), x.activations.size()};
  x.view = {activations,
            p.m,
            p.k,
            {&x.span, 1},
            IsFloat(activations) ? Quantization::kDynamic : Quantization::kNone,
            {},
            {}};
  const int64_t row_bytes = p.n * BitsOf(epilogue.dtype) / 8;
  output_.resize(size_t(p.m * row_bytes));
  x.output.epilogue = epilogue;
  x.output.view = {output_.data(), row_bytes};
  x.segment.activations = &x.view;
  x.segment.rows = p.m;
  x.segment.outputs = {&x.output, 1};
  x.step = {{&x.weight, 1}, Arithmetic::kW8A8, {}};
  x.work = {{&x.segment, 1}, {&x.step, 1}, forced_, p.threads};
}

OwnProduct::~OwnProduct() = default;

const PackedWeight& OwnProduct::weight() const { return *parts_->weight; }

double OwnProduct::Run(int count) {
  const int threads = parts_->work.threads_max;
  const int64_t start = BenchClockNs(threads);
  for (int i = 0; i < count; ++i) Demand(device_->Run(parts_->work, &report_));
  return double(BenchClockNs(threads) - start) / count;
}

double Contender::RatioOf(const Contender& other) const {
  std::vector<double> ratios;
  for (size_t i = 0; i < rounds_ns.size(); ++i) ratios.push_back(other.rounds_ns[i] / rounds_ns[i]);
  return Median(std::move(ratios));
}

void Compete(std::vector<Contender>* contenders, int rounds, double seconds) {
  std::vector<int> inner;
  for (Contender& c : *contenders) {
    c.run(1);
    inner.push_back(std::clamp(static_cast<int>(3e6 / std::max(1.0, c.run(1))), 1, 1000));  // ~3 ms
  }
  const double end = Seconds() + seconds;
  for (int round = 0; round < rounds && (round < 5 || Seconds() < end); ++round)
    for (size_t i = 0; i < contenders->size(); ++i)
      (*contenders)[i].rounds_ns.push_back((*contenders)[i].run(inner[i]));
  for (Contender& c : *contenders) {
    c.median_ns = Median(c.rounds_ns);
    c.best_ns = *std::min_element(c.rounds_ns.begin(), c.rounds_ns.end());
  }
}

std::vector<int8_t> MakeWeight(const std::string& distribution, int64_t k, int64_t n) {
  if (distribution.starts_with("file:")) {
    std::ifstream file(distribution.substr(5), std::ios::binary);
    std::vector<int8_t> weight(size_t(k * n));
    if (!file.read(reinterpret_cast<char*>(weight.data()), k * n)) {
      std::fprintf(stderr, "kernels_bench: %s has fewer than %ld bytes\n", distribution.c_str(),
                   k * n);
      std::exit(1);
    }
    return weight;
  }
  std::mt19937 generator(3);
  std::vector<int8_t> weight(size_t(k * n));
  if (distribution == "uniform") {
    for (int8_t& w : weight) w = static_cast<int8_t>(generator());
    return weight;
  }
  std::normal_distribution<float> normal;
  std::exponential_distribution<float> exponential;
  std::vector<float> column(static_cast<size_t>(k));
  for (int64_t j = 0; j < n; ++j) {
    float amax = 0;
    for (float& x : column) {
      x = distribution == "gaussian"
              ? normal(generator)
              : std::copysign(exponential(generator), float(generator() & 1) - 0.5f);
      amax = std::max(amax, std::fabs(x));
    }
    for (int64_t i = 0; i < k; ++i)
      weight[size_t(i * n + j)] = static_cast<int8_t>(std::lrint(column[size_t(i)] * 127 / amax));
  }
  return weight;
}

int64_t CountWrong(const Problem& p, std::span<const int32_t> result) {
  std::mt19937 generator(5);
  int64_t wrong = 0;
  for (int i = 0; i < 300; ++i) {
    const int64_t m = i < 2 ? 0 : int64_t(generator() % uint32_t(p.m)),
                  n = int64_t(generator() % uint32_t(p.n));
    int32_t sum = 0;
    for (int64_t k = 0; k < p.k; ++k)
      sum += p.activations[size_t(m * p.k + k)] * p.weight[size_t(k * p.n + n)];
    wrong += sum != result[size_t(m * p.n + n)];
  }
  return wrong;
}

constexpr int64_t kProbeLines = 128, kProbeRepeats = 200;

struct Probe::Parts {
  alignas(64) std::byte strip[64 * 1024] = {};
  alignas(64) std::byte panel[64 * 1024] = {};
  alignas(64) std::byte sums[16 * 1024] = {};
  const cpu::MicroKernel* kernel = nullptr;
  cpu::TileArgs tile{};
};

Probe::Probe(std::string_view kernel) : parts_(std::make_unique<Parts>()) {
  for (const cpu::MicroKernel* k : cpu::MicroKernels())
    if (kernel == k->name) parts_->kernel = k;
  if (parts_->kernel == nullptr) {
    std::fprintf(stderr, "kernels_bench: no kernel is named %s\n", std::string(kernel).c_str());
    std::exit(1);
  }
  cpu::TileArgs& t = parts_->tile;
  t.strip = parts_->strip;
  t.panel = reinterpret_cast<uint8_t*>(parts_->panel);
  t.panel_stride = kProbeLines * 64;
  t.lines = kProbeLines;
  t.c = parts_->sums;
  t.ldc = parts_->kernel->nr;
  t.rows = parts_->kernel->mr;
  t.panels = parts_->kernel->nr / 16;
  t.prefetch = t.panel;
}

Probe::~Probe() = default;

double Probe::ops() const {
  return 2.0 * double(kProbeRepeats * kProbeLines * 64) * parts_->tile.rows * parts_->tile.panels;
}

double Probe::Run(int count) {
  const cpu::MicroKernel& kernel = *parts_->kernel;
  const int64_t start = BenchClockNs(1);
  for (int64_t i = 0; i < count * kProbeRepeats; ++i) kernel.run(parts_->tile);
  const double ns = double(BenchClockNs(1) - start) / count;
  if (kernel.release != nullptr) kernel.release();
  return ns;
}

}  // namespace qmatmul::bench
