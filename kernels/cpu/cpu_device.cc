#include "kernels/cpu/cpu_device.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <typeinfo>
#include <utility>

#include "kernels/cpu/tile_loop.h"
#include "kernels/cpu/unpack.h"
#include "kernels/self_test.h"
#include "kernels/stages.h"

namespace qmatmul::cpu {
namespace {

// Work that was never measured is taken for long: every member joins.
constexpr double kUnmeasuredNs = 1e9;

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
  for (size_t i = 0; i < table.size(); ++i)
    if (selector_.list().IsUsable(i)) usable.push_back(table[i]);
  selector_.UseCalibration(Calibration::Load(options.calibration_file, usable, &team_));
}

void CpuDevice::ProveKernels() {
  for (const KernelInfo& kernel : Kernels()) {
    if (!kernel.usable()) continue;
    for (const int64_t rows : {1, 13, 37}) {  // one of each row class, none a multiple of a tile
      // What could not be asked is not trusted either.
      if (Fault f = ProveKernel(this, kernel, rows); !f.ok())
        Quarantine(kernel.name, rows, f.message);
    }
  }
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
  assert(0 <= k_begin && k_begin <= k_end && k_end <= weight.spec().k &&
         int64_t(out.size()) >= (k_end - k_begin) * weight.spec().n);
  UnpackRows(*packed, k_begin, k_end, out.data());
  return {};
}

Fault CpuDevice::ReadUpload(const PackedWeight& weight, int64_t begin,
                            std::span<std::byte> out) const {
  const auto* packed = dynamic_cast<const CpuPackedWeight*>(&weight);
  if (packed == nullptr) return Mismatch(weight, LayoutOf(weight.spec()));
  ReadUploadBytes(*packed, begin, out);
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

Fault CpuDevice::MakeLots(const Work& work, size_t step, int64_t rows, Lots* lots,
                          RunReport* report) const {
  const WorkStep& s = work.steps[step];
  std::array<LotWeight, kWeightsPerCallMax> chosen;
  std::array<double, kWeightsPerCallMax> work_ns;
  const size_t count = s.weights.size();
  assert(0 < count && count <= chosen.size());
  for (size_t i = 0; i < count; ++i) {
    // The type says the layout: only this device's packer makes one.
    if (typeid(*s.weights[i]) != typeid(CpuPackedWeight))
      return Mismatch(*s.weights[i], LayoutOf(s.weights[i]->spec()));
    const auto* packed = static_cast<const CpuPackedWeight*>(s.weights[i].get());
    KernelSelector::Choice choice;
    const KernelQuery query = QueryOf(rows, *packed, s.arithmetic, 1);
    if (Fault f = selector_.Choose(query, work.kernel, &choice); !f.ok()) return f;
    if (choice.fell_back) report->fallback = "quarantine";
    report->kernels[step + i] = choice.kernel->name;
    chosen[i] = {choice.kernel, packed, i, choice.ahead_bytes};
    work_ns[i] = choice.work_ns.value_or(kUnmeasuredNs);
  }
  report->kernel = report->kernels[0];
  lots->count = 0;
  size_t placed = 0;
  for (size_t i = 0; i < count; ++i) {
    if (chosen[i].weight == nullptr) continue;  // in a lot already
    const LotWeight first = chosen[i];
    lots->work_ns[lots->count] = 0;
    for (size_t j = i; j < count; ++j) {
      if (chosen[j].weight == nullptr || !SharePackedRows(first, chosen[j])) continue;
      lots->work_ns[lots->count] += work_ns[j];
      lots->weights[placed++] = std::exchange(chosen[j], LotWeight{});
    }
    lots->ends[lots->count++] = placed;
  }
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
    Lots lots;
    if (Fault f = MakeLots(work, 0, report->rows, &lots, report); !f.ok()) return f;
    RunLots(work, 0, lots, work.segments, report);
  }
  report->compute_ns = NowNs() - start;
  return {};
}

Fault CpuDevice::RunStages(const Work& work, RunReport* report) {
  Stages stages(work);
  std::vector<Lots> lots(work.steps.size());
  for (size_t step = 0; step < lots.size(); ++step)
    if (Fault f = MakeLots(work, step, stages.tile_rows(), &lots[step], report); !f.ok()) return f;
  return stages.Run([&](size_t step, std::span<RowSegment> segments) {
    RunLots(work, step, lots[step], segments, report);
    return Fault{};
  });
}

void CpuDevice::RunLots(const Work& work, size_t step, const Lots& lots,
                        std::span<RowSegment> segments, RunReport* report) {
  for (RowSegment& segment : segments)
    for (SegmentOutput& output : segment.outputs)
      if (!output.row_checks.empty())
        std::fill_n(output.row_checks.begin() + segment.row_begin, segment.rows, uint64_t{0});

  const int available =
      work.threads_max > 0 ? std::min(work.threads_max, team_.size()) : team_.size();
  size_t begin = 0;
  for (size_t i = 0; i < lots.count; begin = lots.ends[i++]) {
    const std::span<const LotWeight> lot(&lots.weights[begin], lots.ends[i] - begin);
    const LoopReport loop = RunTileLoop(lot, segments, work.steps[step].check_vectors, &team_,
                                        MembersFor(lots.work_ns[i], available));
    report->packed_rows += loop.packed_rows;
    report->pack_ns += loop.pack_ns;
  }
}

std::vector<KernelChoice> CpuDevice::Explain(
    int64_t rows, std::span<const std::shared_ptr<const PackedWeight>> weights,
    Arithmetic arithmetic, std::string_view forced) const {
  return ExplainEachType(weights, [&](DataType type, std::vector<KernelChoice>* choices) {
    ExplainType(rows, weights, type, arithmetic, forced, choices);
  });
}

// All members where the prediction says that they pay for their waking, else one: the more of them share
// the same work, the sooner it is done.
int CpuDevice::MembersFor(double work_ns, int available) const {
  const Calibration& costs = selector_.calibration();
  return costs.RunNs(work_ns, available) < costs.RunNs(work_ns, 1) ? available : 1;
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
  KernelSelector::Choice made;
  if (!selector_.Choose(query, forced, &made).ok()) made = {};
  for (const KernelSelector::Ranked& r : selector_.Rank(query)) {
    const bool chosen = r.kernel == made.kernel;
    std::string_view why = "predicted or ranked behind the choice";
    if (chosen && !forced.empty()) why = "forced by the request";
    else if (chosen) why = "least predicted time of the forms made for these rows";
    else if (r.kernel->mr == 1 && rows > 1) why = "computes one row at a time";
    choices->push_back(selector_.list().Explain(r.index, rows, chosen, why));
    if (r.predicted_ns) choices->back().predicted_ns = int64_t(*r.predicted_ns);
  }
}

int64_t CpuDevice::PredictNs(int64_t rows, const PackedWeight& weight, Arithmetic arithmetic,
                             int threads) const {
  assert(typeid(weight) == typeid(CpuPackedWeight));
  const auto& packed = static_cast<const CpuPackedWeight&>(weight);
  const int available = threads > 0 ? std::min(threads, team_.size()) : team_.size();
  const KernelSelector::Choice choice = selector_.Select(QueryOf(rows, packed, arithmetic, 1));
  const double work_ns = choice.work_ns.value_or(0);
  return int64_t(selector_.calibration().RunNs(work_ns, MembersFor(work_ns, available)));
}

}  // namespace qmatmul::cpu
