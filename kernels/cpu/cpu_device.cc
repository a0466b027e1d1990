#include "kernels/cpu/cpu_device.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cstdlib>
#include <limits>

#include "kernels/cpu/tile_loop.h"

namespace qmatmul::cpu {
namespace {

// Entering the team, packing a row, leaving: what a product costs beside its products.
constexpr int64_t kCallNs = 1500;

int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

Fault Mismatch(const PackedWeight& weight, std::string_view wanted) {
  return {FaultKind::kInternal, "LAYOUT_MISMATCH",
          "weight is packed as " + weight.device() + "/" + weight.layout() +
              ", the kernel reads cpu/" + std::string(wanted)};
}

int64_t RowsOf(std::span<const RowSegment> segments) {
  int64_t rows = 0;
  for (const RowSegment& segment : segments) rows += segment.rows;
  return rows;
}

// The step's weights as this device packs them, all in the kernel's layout.
Fault Resolve(const WorkStep& step, const MicroKernel& kernel,
              std::vector<const CpuPackedWeight*>* weights) {
  for (const auto& weight : step.weights) {
    const auto* packed = dynamic_cast<const CpuPackedWeight*>(weight.get());
    if (packed == nullptr || weight->layout() != kernel.layout)
      return Mismatch(*weight, kernel.layout);
    weights->push_back(packed);
  }
  return {};
}

}  // namespace

CpuDevice::CpuDevice(const DeviceOptions& options, const CpuFeatures& features)
    : states_(KernelStates(MicroKernels(), features, options.disabled_kernels)),
      team_(options.threads > 0 ? options.threads : UsableThreads(), options.team_spin_us_max) {
  // Two kernels of one name would hide each other; no build with such a table may serve.
  if (!NamesAreUnique(MicroKernels())) std::abort();
  info_.id = info_.kind = "cpu";
  info_.description = CpuModelName();
  info_.threads = team_.size();
  info_.lanes = 1;
  info_.memory_bytes = UsableMemoryBytes();
  info_.features = features.Names();
  MeasureRates();
}

std::vector<KernelInfo> CpuDevice::Kernels() const {
  std::vector<KernelInfo> kernels;
  for (const KernelState& s : states_)
    kernels.push_back({s.kernel->name, s.supported, s.disabled, s.reason, s.kernel->layout});
  return kernels;
}

Fault CpuDevice::StartPack(const WeightSpec& spec, std::unique_ptr<Packer>* packer) {
  if (spec.dtype != DataType::kInt8)
    return {FaultKind::kUnimplemented, "WEIGHT_DTYPE_UNIMPLEMENTED",
            std::string(NameOf(spec.dtype)) +
                " weights are not packed by this version's CPU kernels; INT8 is"};
  auto weight = CpuPackedWeight::Allocate(spec, info_.id);
  if (weight == nullptr)
    return {FaultKind::kResourceExhausted, "WEIGHT_MEMORY",
            "no memory for a packed weight of k = " + std::to_string(spec.k) +
                ", n = " + std::to_string(spec.n)};
  *packer = std::make_unique<N16K4Packer>(std::move(weight));
  return {};
}

Fault CpuDevice::Unpack(const PackedWeight& weight, int64_t k_begin, int64_t k_end,
                        std::span<int8_t> out) const {
  const auto* packed = dynamic_cast<const CpuPackedWeight*>(&weight);
  if (packed == nullptr) return Mismatch(weight, kLayoutN16K4);
  const int64_t n = weight.spec().n;
  assert(0 <= k_begin && k_begin <= k_end && k_end <= weight.spec().k &&
         int64_t(out.size()) >= (k_end - k_begin) * n);
  for (int64_t k = k_begin; k < k_end; ++k)
    for (int64_t column = 0; column < n; ++column)
      out[size_t((k - k_begin) * n + column)] = packed->panel(
          column /
          kPanelColumns)[k / kLineK * kLineBytes + column % kPanelColumns * kLineK + k % kLineK];
  return {};
}

Fault CpuDevice::Choose(int64_t rows, std::string_view forced, const KernelState** chosen) const {
  if (!forced.empty()) return FindKernel(states_, forced, chosen);
  *chosen = SelectKernel(states_, rows, kLayoutN16K4);
  return {};
}

Fault CpuDevice::Run(const Work& work, RunReport* report) {
  const int64_t start = NowNs();
  assert(!work.steps.empty() && !work.steps[0].weights.empty());
  if (work.steps.size() > 1)
    return {FaultKind::kUnimplemented, "CHAIN_UNIMPLEMENTED",
            "chains are not computed by this version"};
  const WorkStep& step = work.steps[0];
  if (step.arithmetic != Arithmetic::kW8A8)
    return {FaultKind::kUnimplemented, "W8A32_UNIMPLEMENTED",
            "W8A32 is not computed by this version's CPU kernels"};
  const int64_t rows = RowsOf(work.segments);
  const KernelState* chosen = nullptr;
  if (Fault f = Choose(rows, work.kernel, &chosen); !f.ok()) return f;
  const MicroKernel& kernel = *chosen->kernel;
  std::vector<const CpuPackedWeight*> weights;
  if (Fault f = Resolve(step, kernel, &weights); !f.ok()) return f;

  int64_t columns = 0;
  for (const CpuPackedWeight* weight : weights) columns += weight->spec().n;
  for (RowSegment& segment : work.segments)
    for (SegmentOutput& output : segment.outputs)
      if (!output.row_checks.empty())
        std::fill_n(output.row_checks.begin() + segment.row_begin, segment.rows, uint64_t{0});
  const int available =
      work.threads_max > 0 ? std::min(work.threads_max, team_.size()) : team_.size();
  TileLoopReport loop;
  RunTileLoop(kernel, work.segments, weights, step.check_vectors, &team_,
              MembersFor(rows, weights[0]->spec().k, columns, available), &loop);
  *report = {kernel.name, loop.rows, loop.padded_rows, loop.pack_ns, NowNs() - start};
  return {};
}

std::vector<KernelChoice> CpuDevice::Explain(
    int64_t rows, std::span<const std::shared_ptr<const PackedWeight>> weights,
    Arithmetic arithmetic, std::string_view forced) const {
  std::vector<const KernelState*> order;
  for (const KernelState& state : states_) order.push_back(&state);
  std::sort(order.begin(), order.end(),
            [rows](const KernelState* a, const KernelState* b) { return BetterFor(rows, *a, *b); });
  const KernelState* chosen = nullptr;
  const Fault fault = Choose(rows, forced, &chosen);
  int64_t k = 0, n = 0;
  for (const auto& weight : weights) {
    k = weight->spec().k;
    n += weight->spec().n;
  }
  std::vector<KernelChoice> choices;
  for (const KernelState* state : order) {
    KernelChoice choice{state->kernel->name,
                        state->usable() && arithmetic == Arithmetic::kW8A8,
                        false,
                        {},
                        state->reason};
    choice.chosen = fault.ok() && choice.eligible && state == chosen;
    if (choice.chosen) {
      choice.predicted_ns = PredictNs(rows, k, n, 0);
      choice.reason = !forced.empty() ? "forced by the request"
                      : rows == 1     ? "the fastest instruction set here, one-row form"
                                      : "the fastest instruction set here, largest tile";
    } else if (choice.eligible) {
      const bool one_row = state->kernel->mr == 1;
      choice.reason = one_row && rows > 1 ? "computes one row at a time" : "ranks below the choice";
    } else if (choice.reason.empty()) {
      choice.reason = "does not compute " + std::string(NameOf(arithmetic));
    }
    choices.push_back(std::move(choice));
  }
  std::stable_partition(choices.begin(), choices.end(),
                        [](const KernelChoice& c) { return c.chosen; });
  return choices;
}

int64_t CpuDevice::PredictNs(int64_t rows, int64_t k, int64_t n, int threads) const {
  const int available = threads > 0 ? std::min(threads, team_.size()) : team_.size();
  const double macs = double(rows) * double(k) * double(n);
  const double rate = rows == 1 ? gemv_macs_per_ns_ : gemm_macs_per_ns_;
  return kCallNs + int64_t(macs / (rate * MembersFor(rows, k, n, available)));
}

double CpuDevice::MeasureMacsPerNs(int64_t rows, int64_t k, int64_t n) {
  std::vector<int8_t> data(size_t(std::max(k * n, rows * k)), 1);
  std::vector<int32_t> out(size_t(rows * n));
  std::shared_ptr<const PackedWeight> weight;
  WeightView view;
  view.spec = {DataType::kInt8, Layout::kNK, k, n, 0, DataType::kUnspecified, 0, 0};
  view.data = data.data();
  if (!Pack(view, &weight).ok()) return 1.0;
  const ByteSpan span{reinterpret_cast<const std::byte*>(data.data()), size_t(rows * k)};
  const ActivationView activations{DataType::kInt8,     rows, k, {&span, 1},
                                   Quantization::kNone, {},   {}};
  SegmentOutput output;
  output.view = {reinterpret_cast<std::byte*>(out.data()), n * 4};
  RowSegment segment;
  segment.activations = &activations;
  segment.rows = rows;
  segment.outputs = {&output, 1};
  const WorkStep step{{&weight, 1}, Arithmetic::kW8A8, {}};
  int64_t best = std::numeric_limits<int64_t>::max();
  for (int i = 0; i < 5; ++i) {
    RunReport report;
    const int64_t start = NowNs();
    if (!Run({{&segment, 1}, {&step, 1}, {}, 1}, &report).ok()) return 1.0;
    best = std::min(best, NowNs() - start);
  }
  return double(rows) * double(k) * double(n) / double(std::max<int64_t>(best, 1));
}

void CpuDevice::MeasureRates() {
  gemv_macs_per_ns_ = MeasureMacsPerNs(1, 1024, 2048);
  gemm_macs_per_ns_ = MeasureMacsPerNs(24, 512, 512);
}

}  // namespace qmatmul::cpu
