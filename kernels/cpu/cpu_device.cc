#include "kernels/cpu/cpu_device.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cstdlib>
#include <limits>

#include "kernels/cpu/self_test.h"
#include "kernels/cpu/tile_loop.h"
#include "kernels/stages.h"

namespace qmatmul::cpu {
namespace {

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

CpuDevice::CpuDevice(const DeviceOptions& options, const CpuFeatures& features,
                     std::span<const MicroKernel* const> table)
    : selector_(table, features, options.disabled_kernels),
      team_(options.threads > 0 ? options.threads : UsableThreads(), options.team_spin_us_max) {
  // Two kernels of one name would hide each other; no build with such a table may serve.
  if (!NamesAreUnique(table)) std::abort();
  info_.id = info_.kind = "cpu";
  info_.description = CpuModelName();
  info_.threads = team_.size();
  info_.lanes = 1;
  info_.memory_bytes = UsableMemoryBytes();
  info_.features = features.Names();
  ProveKernels();
  std::vector<const MicroKernel*> usable;
  for (const KernelState& state : selector_.states())
    if (state.usable()) usable.push_back(state.kernel);
  selector_.UseCalibration(Calibration::Load(options.calibration_file, usable, &team_));
}

void CpuDevice::ProveKernels() {
  for (const KernelInfo& kernel : Kernels()) {
    if (!kernel.supported || kernel.disabled) continue;
    for (const int64_t rows : {1, 13, 37}) {  // one of each row class, none a multiple of a tile
      const std::string difference = ProveKernel(this, kernel, rows);
      if (!difference.empty()) Quarantine(kernel.name, rows, difference);
    }
  }
}

std::vector<KernelInfo> CpuDevice::Kernels() const {
  std::vector<KernelInfo> kernels;
  for (const KernelState& s : selector_.states())
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

KernelQuery CpuDevice::QueryOf(int64_t rows, const CpuPackedWeight& weight, Arithmetic arithmetic,
                               int members) const {
  KernelQuery query;
  query.rows = rows;
  query.k = weight.spec().k;
  query.n = weight.spec().n;
  query.weight_bytes = weight.panels() * weight.panel_bytes();
  query.weight = weight.spec().dtype;
  query.arithmetic = arithmetic;
  query.outlier_share = weight.outlier_share();
  query.members = members;
  return query;
}

Fault CpuDevice::Choose(const KernelQuery& query, std::string_view forced,
                        const KernelState** chosen, bool* fell_back) const {
  if (forced.empty()) {
    *chosen = selector_.Select(query, fell_back);
    return {};
  }
  if (Fault f = selector_.Find(forced, query.rows, chosen); !f.ok()) return f;
  const MicroKernel& kernel = *(*chosen)->kernel;
  if (kernel.fits(query.weight, query.arithmetic)) return {};
  return {FaultKind::kInternal, "LAYOUT_MISMATCH",
          "kernel " + std::string(forced) + " reads " + std::string(LayoutOf(kernel.weight)) +
              " weights for " + std::string(NameOf(kernel.arithmetic)) + ", not " +
              std::string(LayoutOf(query.weight)) + " for " +
              std::string(NameOf(query.arithmetic))};
}

Fault CpuDevice::MakeLots(const Work& work, size_t step, int64_t rows, std::vector<Lot>* lots,
                          RunReport* report) const {
  const WorkStep& s = work.steps[step];
  for (size_t i = 0; i < s.weights.size(); ++i) {
    const PackedWeight& weight = *s.weights[i];
    const auto* packed = dynamic_cast<const CpuPackedWeight*>(&weight);
    if (packed == nullptr || weight.layout() != LayoutOf(weight.spec()))
      return Mismatch(weight, LayoutOf(weight.spec()));
    const KernelState* chosen = nullptr;
    bool fell_back = false;
    const KernelQuery query = QueryOf(rows, *packed, s.arithmetic, 1);
    if (Fault f = Choose(query, work.kernel, &chosen, &fell_back); !f.ok()) return f;
    if (fell_back) report->fallback = "quarantine";
    report->kernels[step + i] = chosen->kernel->name;
    AddToLots(*chosen->kernel, i, packed, lots);
  }
  report->kernel = report->kernels[0];
  return {};
}

Fault CpuDevice::Run(const Work& work, RunReport* report) {
  const int64_t start = NowNs();
  assert(!work.steps.empty() && !work.steps[0].weights.empty());
  *report = {};
  report->rows = RowsOf(work.segments);
  if (Stages::Needed(work)) {
    if (Fault f = RunStages(work, report); !f.ok()) return f;
  } else {
    std::vector<Lot> lots;
    if (Fault f = MakeLots(work, 0, report->rows, &lots, report); !f.ok()) return f;
    RunLots(work, 0, lots, work.segments, report);
  }
  report->compute_ns = NowNs() - start;
  return {};
}

Fault CpuDevice::RunStages(const Work& work, RunReport* report) {
  Stages stages(work);
  std::vector<std::vector<Lot>> lots(work.steps.size());
  for (size_t step = 0; step < lots.size(); ++step)
    if (Fault f = MakeLots(work, step, stages.tile_rows(), &lots[step], report); !f.ok()) return f;
  return stages.Run([&](size_t step, std::span<RowSegment> segments) {
    RunLots(work, step, lots[step], segments, report);
    return Fault{};
  });
}

void CpuDevice::RunLots(const Work& work, size_t step, std::span<const Lot> lots,
                        std::span<RowSegment> segments, RunReport* report) {
  for (RowSegment& segment : segments)
    for (SegmentOutput& output : segment.outputs)
      if (!output.row_checks.empty())
        std::fill_n(output.row_checks.begin() + segment.row_begin, segment.rows, uint64_t{0});

  const int64_t rows = RowsOf(segments);
  const int available =
      work.threads_max > 0 ? std::min(work.threads_max, team_.size()) : team_.size();
  for (const Lot& lot : lots) {
    const int members = MembersFor(lot, rows, work.steps[step].arithmetic, available);
    RunTileLoop(lot, segments, work.steps[step].check_vectors, &team_, members, &report->pack_ns);
  }
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

// More members while the prediction says that they pay for their waking.
int CpuDevice::MembersFor(const Lot& lot, int64_t rows, Arithmetic arithmetic,
                          int available) const {
  int best = 1;
  double best_ns = 0;
  for (int members = 1; members <= available; ++members) {
    double ns = 0;
    for (const CpuPackedWeight* weight : lot.weights) {
      const KernelQuery query = QueryOf(rows, *weight, arithmetic, members);
      ns += selector_.calibration().ProductNs(*lot.kernel, query).value_or(1.0 / members);
    }
    if (members > 1 && ns >= best_ns) continue;
    best = members;
    best_ns = ns;
  }
  return best;
}

void CpuDevice::ExplainType(int64_t rows,
                            std::span<const std::shared_ptr<const PackedWeight>> weights,
                            DataType type, Arithmetic arithmetic, std::string_view forced,
                            std::vector<KernelChoice>* choices) const {
  KernelQuery query;
  query.rows = rows;
  query.weight = type;
  query.arithmetic = arithmetic;
  query.members = team_.size();
  for (const auto& weight : weights) {
    const auto* packed = dynamic_cast<const CpuPackedWeight*>(weight.get());
    if (packed == nullptr || weight->spec().dtype != type) continue;
    query.k = weight->spec().k;
    query.outlier_share = packed->outlier_share();
    query.n += weight->spec().n;
    query.weight_bytes += packed->panels() * packed->panel_bytes();
  }
  const KernelState* chosen = nullptr;
  const Fault fault = Choose(query, forced, &chosen, nullptr);
  for (const KernelSelector::Ranked& r : selector_.Rank(query)) {
    const bool eligible = r.state->usable() && !r.quarantined;
    KernelChoice choice{r.state->kernel->name, eligible, false, {}, r.state->reason};
    choice.chosen = fault.ok() && r.state == chosen;
    if (r.predicted_ns) choice.predicted_ns = int64_t(*r.predicted_ns);
    if (r.quarantined) {
      choice.reason = "quarantined for " + std::string(NameOf(RowClassOf(rows))) + " rows";
    } else if (choice.chosen) {
      choice.reason = forced.empty() ? "least predicted time of the forms made for these rows"
                                     : "forced by the request";
    } else if (choice.eligible) {
      choice.reason = r.state->kernel->mr == 1 && rows > 1
                          ? "computes one row at a time"
                          : "predicted or ranked behind the choice";
    }
    choices->push_back(std::move(choice));
  }
}

int64_t CpuDevice::PredictNs(int64_t rows, int64_t k, int64_t n, int threads) const {
  const int available = threads > 0 ? std::min(threads, team_.size()) : team_.size();
  double best = 0;
  for (int members = 1; members <= available; ++members) {
    KernelQuery query;
    query.rows = rows;
    query.k = k;
    query.n = n;
    query.weight_bytes = k * n;
    query.members = members;
    const KernelState* chosen = selector_.Select(query);
    const double ns = selector_.calibration().ProductNs(*chosen->kernel, query).value_or(0);
    if (members == 1 || ns < best) best = ns;
  }
  return int64_t(best);
}

std::vector<QuarantineInfo> CpuDevice::Quarantined() const { return selector_.Quarantined(); }

void CpuDevice::Quarantine(std::string_view kernel, int64_t rows, std::string_view reason) {
  selector_.Quarantine(kernel, RowClassOf(rows), reason);
}

bool CpuDevice::Rearm(std::string_view key) { return selector_.Rearm(key); }

}  // namespace qmatmul::cpu
