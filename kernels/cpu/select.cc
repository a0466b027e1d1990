#include "kernels/cpu/select.h"

#include <algorithm>
#include <tuple>

#include "kernels/cpu/pack.h"

namespace qmatmul::cpu {
namespace {

// One row, few, many: each takes paths of its own.
constexpr RowClasses kRowClasses = {1, 16};

std::vector<KernelInfo> InfosOf(std::span<const MicroKernel* const> table,
                                const CpuFeatures& features) {
  std::vector<KernelInfo> infos;
  for (const MicroKernel* kernel : table) {
    const bool supported = kernel->supported(features);
    infos.push_back({kernel->name, supported, false,
                     supported ? "" : "this processor lacks the instruction set",
                     std::string(LayoutOf(kernel->weight)), kernel->weight, kernel->arithmetic});
  }
  return infos;
}

}  // namespace

KernelSelector::KernelSelector(std::span<const MicroKernel* const> table,
                               const CpuFeatures& features, std::string_view disabled)
    : table_(table.begin(), table.end()), list_(InfosOf(table, features), disabled, kRowClasses) {
  MakeKinds();
}

void KernelSelector::UseCalibration(Calibration calibration) {
  calibration_ = std::move(calibration);
  MakeKinds();
}

void KernelSelector::MakeKinds() {
  kinds_ = {};
  for (size_t i = 0; i < table_.size(); ++i) {
    const MicroKernel& kernel = *table_[i];
    Kind& kind = kinds_[static_cast<size_t>(kernel.weight)][static_cast<size_t>(kernel.arithmetic)];
    const KernelCost* cost = list_.IsUsable(i) ? calibration_.find(kernel) : nullptr;
    kind.measured = kind.measured && (cost != nullptr || !list_.IsUsable(i));
    kind.candidates.push_back({i, cost, FormFits(kernel, true), FormFits(kernel, false)});
  }
  const auto standing = [this](const Candidate& candidate) {
    const MicroKernel& kernel = *table_[candidate.index];
    return std::tuple(kernel.rank, kernel.mr * kernel.nr, std::string_view(kernel.name));
  };
  for (auto& kinds : kinds_)
    for (Kind& kind : kinds)
      std::sort(kind.candidates.begin(), kind.candidates.end(),
                [&](const Candidate& a, const Candidate& b) { return standing(a) > standing(b); });
}

// A form made for the other number of rows only counts where its instruction set has no better one; one that is
// not worth choosing for a single row, where no instruction set has.
bool KernelSelector::FormFits(const MicroKernel& kernel, bool one_row) const {
  const auto is_made_for = [&](const MicroKernel& k) { return (k.mr == 1) == one_row; };
  if (is_made_for(kernel)) return true;
  for (size_t i = 0; i < table_.size(); ++i)
    if (list_.IsUsable(i) && (table_[i]->rank == kernel.rank || (one_row && kernel.rows_min > 1)) &&
        table_[i]->fits(kernel.weight, kernel.arithmetic) && is_made_for(*table_[i]))
      return false;
  return true;
}

std::optional<double> KernelSelector::WorkNs(const Candidate& candidate,
                                             const KernelQuery& query) const {
  if (candidate.cost == nullptr) return {};
  return calibration_.WorkNs(*table_[candidate.index], *candidate.cost, query);
}

bool KernelSelector::Merit::Beats(const Merit& other) const {
  if (usable != other.usable) return usable;
  if (sound != other.sound) return sound;
  if (fits != other.fits) return fits;
  if (work_ns != other.work_ns) return work_ns < other.work_ns;
  return worth_it && !other.worth_it;
}

KernelSelector::Merit KernelSelector::MeritOf(const Kind& kind, const Candidate& candidate,
                                              const KernelQuery& query) const {
  const bool fits = query.rows <= 1 ? candidate.fits_one : candidate.fits_more;
  const double work_ns = kind.measured ? WorkNs(candidate, query).value_or(0) : 0;
  return {list_.IsUsable(candidate.index), !list_.IsQuarantined(candidate.index, query.rows), fits,
          work_ns, query.rows >= table_[candidate.index]->rows_min};
}

std::vector<KernelSelector::Ranked> KernelSelector::Rank(const KernelQuery& query) const {
  const Kind& kind = KindOf(query);
  std::vector<std::pair<Merit, const Candidate*>> order;
  for (const Candidate& candidate : kind.candidates)
    order.push_back({MeritOf(kind, candidate, query), &candidate});
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.first.Beats(b.first); });
  std::vector<Ranked> ranked;
  for (const auto& [merit, candidate] : order) {
    ranked.push_back({candidate->index, table_[candidate->index], WorkNs(*candidate, query)});
    if (auto& ns = ranked.back().predicted_ns; ns) ns = calibration_.RunNs(*ns, query.members);
  }
  return ranked;
}

KernelSelector::Choice KernelSelector::Select(const KernelQuery& query) const {
  const Kind& kind = KindOf(query);
  Choice choice;
  const Candidate* best = nullptr;
  Merit best_merit{};
  for (const Candidate& candidate : kind.candidates) {
    const Merit merit = MeritOf(kind, candidate, query);
    choice.fell_back |= merit.usable && !merit.sound;
    if (best != nullptr && !merit.Beats(best_merit)) continue;
    best = &candidate;
    best_merit = merit;
  }
  if (best == nullptr) return choice;
  choice.kernel = table_[best->index];
  choice.work_ns = WorkNs(*best, query);
  if (best->cost != nullptr)
    choice.ahead_bytes = Calibration::AheadBytes(*best->cost, query.weight_bytes);
  return choice;
}

Fault KernelSelector::Choose(const KernelQuery& query, std::string_view forced,
                             Choice* choice) const {
  *choice = forced.empty() ? Select(query) : Choice{};
  if (forced.empty()) return {};
  size_t index = 0;
  if (Fault f = list_.Find(forced, query.rows, &index); !f.ok()) return f;
  if (Fault f = list_.CheckFits(index, query.weight, LayoutOf(query.weight), query.arithmetic);
      !f.ok())
    return f;
  choice->kernel = table_[index];
  if (const KernelCost* cost = calibration_.find(*choice->kernel); cost != nullptr) {
    choice->work_ns = calibration_.WorkNs(*choice->kernel, *cost, query);
    choice->ahead_bytes = Calibration::AheadBytes(*cost, query.weight_bytes);
  }
  return {};
}

}  // namespace qmatmul::cpu
