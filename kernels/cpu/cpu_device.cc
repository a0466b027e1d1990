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

// Adds a weight to the lot that shares its kernel and grouping.
void AddToLots(const MicroKernel& kernel, size_t index, const CpuPackedWeight* weight,
               std::vector<Lot>* lots) {
  const auto same = [&](const Lot& lot) {
    return lot.kernel == &kernel && lot.group_k == weight->group_k();
  };
  auto lot = std::find_if(lots->begin(), lots->end(), same);
  if (lot == lots->end()) lot = lots->insert(lot, Lot{&kernel, weight->group_k(), {}, {}});
  lot->indices.push_back(index);
  lot->weights.push_back(weight);
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
    kernels.push_back({s.kernel->name, s.supported, s.disabled, s.reason,
                       std::string(LayoutOf(s.kernel->weight)), s.kernel->weight,
                       s.kernel->arithmetic});
  return kernels;
}

Fault CpuDevice::StartPack(const WeightSpec& spec, std::unique_ptr<Packer>* packer) {
  auto weight = CpuPackedWeight::Allocate(spec, info_.id);
  if (weight == nullptr)
    return {FaultKind::kResourceExhausted, "WEIGHT_MEMORY",
            "no memory for a packed weight of k = " + std::to_string(spec.k) +
                ", n = " + std::to_string(spec.n)};
  *packer = std::make_unique<CpuPacker>(std::move(weight));
  return {};
}

Fault CpuDevice::Unpack(const PackedWeight& weight, int64_t k_begin, int64_t k_end,
                        std::span<int8_t> out) const {
  const auto* packed = dynamic_cast<const CpuPackedWeight*>(&weight);
  if (packed == nullptr) return Mismatch(weight, LayoutOf(weight.spec()));
  const int64_t n = weight.spec().n;
  assert(0 <= k_begin && k_begin <= k_end && k_end <= weight.spec().k &&
         int64_t(out.size()) >= (k_end - k_begin) * n);
  for (int64_t k = k_begin; k < k_end; ++k)
    for (int64_t column = 0; column < n; ++column)
      out[size_t((k - k_begin) * n + column)] = packed->value(k, column);
  return {};
}

Fault CpuDevice::Choose(int64_t rows, DataType weight, Arithmetic arithmetic,
                        std::string_view forced, const KernelState** chosen) const {
  if (forced.empty()) {
    *chosen = SelectKernel(states_, rows, weight, arithmetic);
    return {};
  }
  if (Fault f = FindKernel(states_, forced, chosen); !f.ok()) return f;
  const MicroKernel& kernel = *(*chosen)->kernel;
  if (kernel.fits(weight, arithmetic)) return {};
  return {FaultKind::kInternal, "LAYOUT_MISMATCH",
          "kernel " + std::string(forced) + " reads " + std::string(LayoutOf(kernel.weight)) +
              " weights for " + std::string(NameOf(kernel.arithmetic)) + ", not " +
              std::string(LayoutOf(weight)) + " for " + std::string(NameOf(arithmetic))};
}

Fault CpuDevice::MakeLots(const Work& work, int64_t rows, std::vector<Lot>* lots) const {
  const WorkStep& step = work.steps[0];
  for (size_t i = 0; i < step.weights.size(); ++i) {
    const PackedWeight& weight = *step.weights[i];
    const auto* packed = dynamic_cast<const CpuPackedWeight*>(&weight);
    if (packed == nullptr || weight.layout() != LayoutOf(weight.spec()))
      return Mismatch(weight, LayoutOf(weight.spec()));
    const KernelState* chosen = nullptr;
    const Fault fault = Choose(rows, weight.spec().dtype, step.arithmetic, work.kernel, &chosen);
    if (!fault.ok()) return fault;
    AddToLots(*chosen->kernel, i, packed, lots);
  }
  return {};
}

Fault CpuDevice::Run(const Work& work, RunReport* report) {
  const int64_t start = NowNs();
  assert(!work.steps.empty() && !work.steps[0].weights.empty());
  if (work.steps.size() > 1)
    return {FaultKind::kUnimplemented, "CHAIN_UNIMPLEMENTED",
            "chains are not computed by this version"};
  const WorkStep& step = work.steps[0];
  const int64_t rows = RowsOf(work.segments);
  std::vector<Lot> lots;
  if (Fault f = MakeLots(work, rows, &lots); !f.ok()) return f;
  for (RowSegment& segment : work.segments)
    for (SegmentOutput& output : segment.outputs)
      if (!output.row_checks.empty())
        std::fill_n(output.row_checks.begin() + segment.row_begin, segment.rows, uint64_t{0});

  *report = {};
  report->rows = rows;
  const int available =
      work.threads_max > 0 ? std::min(work.threads_max, team_.size()) : team_.size();
  for (const Lot& lot : lots) {
    int64_t columns = 0;
    for (size_t i = 0; i < lot.weights.size(); ++i) {
      columns += lot.weights[i]->spec().n;
      report->kernels[lot.indices[i]] = lot.kernel->name;
    }
    const int members = MembersFor(rows, lot.weights[0]->spec().k, columns, available);
    RunTileLoop(lot, work.segments, step.check_vectors, &team_, members, &report->pack_ns);
  }
  report->kernel = report->kernels[0];
  report->compute_ns = NowNs() - start;
  return {};
}

std::vector<KernelChoice> CpuDevice::Explain(
    int64_t rows, std::span<const std::shared_ptr<const PackedWeight>> weights,
    Arithmetic arithmetic, std::string_view forced) const {
  std::vector<KernelChoice> choices;
  std::vector<DataType> types;
  for (const auto& weight : weights) {
    const DataType type = weight->spec().dtype;
    if (std::find(types.begin(), types.end(), type) != types.end()) continue;
    types.push_back(type);
    ExplainType(rows, weights, type, arithmetic, forced, &choices);
  }
  std::stable_partition(choices.begin(), choices.end(),
                        [](const KernelChoice& c) { return c.chosen; });
  return choices;
}

void CpuDevice::ExplainType(int64_t rows,
                            std::span<const std::shared_ptr<const PackedWeight>> weights,
                            DataType type, Arithmetic arithmetic, std::string_view forced,
                            std::vector<KernelChoice>* choices) const {
  std::vector<const KernelState*> order;
  for (const KernelState& state : states_)
    if (state.kernel->fits(type, arithmetic)) order.push_back(&state);
  std::sort(order.begin(), order.end(),
            [rows](const KernelState* a, const KernelState* b) { return BetterFor(rows, *a, *b); });
  const KernelState* chosen = nullptr;
  const Fault fault = Choose(rows, type, arithmetic, forced, &chosen);
  int64_t k = 0, n = 0;
  for (const auto& weight : weights) {
    if (weight->spec().dtype != type) continue;
    k = weight->spec().k;
    n += weight->spec().n;
  }
  for (const KernelState* state : order) {
    KernelChoice choice{state->kernel->name, state->usable(), false, {}, state->reason};
    choice.chosen = fault.ok() && choice.eligible && state == chosen;
    if (choice.chosen) {
      choice.predicted_ns = PredictNs(rows, k, n, 0);
      choice.reason = !forced.empty() ? "forced by the request"
                      : rows == 1     ? "the fastest instruction set here, one-row form"
                                      : "the fastest instruction set here, largest tile";
    } else if (choice.eligible) {
      const bool one_row = state->kernel->mr == 1 && rows > 1;
      choice.reason = one_row ? "computes one row at a time" : "ranks below the choice";
    }
    choices->push_back(std::move(choice));
  }
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
