#include "kernels/cpu/select.h"

#include <algorithm>
#include <chrono>
#include <tuple>

namespace qmatmul::cpu {
namespace {

// "cpu.avx2" names cpu.avx2.s8s8s32.6x16x4 but not cpu.avx2x.….
bool Names(std::string_view pattern, std::string_view name) {
  if (pattern.empty() || name.substr(0, pattern.size()) != pattern) return false;
  return name.size() == pattern.size() || name[pattern.size()] == '.';
}

bool Listed(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view item = list.substr(0, comma);
    while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
    while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
    if (Names(item, name)) return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

}  // namespace

std::vector<KernelState> KernelStates(std::span<const MicroKernel* const> table,
                                      const CpuFeatures& features, std::string_view disabled) {
  std::vector<KernelState> states;
  for (const MicroKernel* kernel : table) {
    KernelState state{kernel, kernel->name, kernel->supported(features),
                      Listed(disabled, kernel->name), ""};
    if (!state.supported) state.reason = "this processor lacks the instruction set";
    else if (state.disabled) state.reason = "disabled by configuration (QMATMUL_DISABLE_KERNELS)";
    states.push_back(std::move(state));
  }
  for (auto it = states.rbegin(); it != states.rend(); ++it) {
    const MicroKernel& kernel = *it->kernel;
    const bool left = std::any_of(states.begin(), states.end(), [&kernel](const KernelState& s) {
      return s.usable() && s.kernel->fits(kernel.weight, kernel.arithmetic);
    });
    if (left || !it->supported) continue;
    it->disabled = false;
    it->reason = "kept although disabled: no other kernel of its kind is left";
  }
  return states;
}

RowClass RowClassOf(int64_t rows) {
  if (rows <= 1) return RowClass::kOne;
  return rows <= 16 ? RowClass::kFew : RowClass::kMany;
}

std::string_view NameOf(RowClass row_class) {
  if (row_class == RowClass::kOne) return "m1";
  return row_class == RowClass::kFew ? "m2-16" : "m17+";
}

KernelSelector::KernelSelector(std::span<const MicroKernel* const> table,
                               const CpuFeatures& features, std::string_view disabled)
    : states_(KernelStates(table, features, disabled)),
      quarantined_(std::make_unique<std::atomic<uint8_t>[]>(states_.size())) {
  MakeKinds();
}

void KernelSelector::UseCalibration(Calibration calibration) {
  calibration_ = std::move(calibration);
  MakeKinds();
}

void KernelSelector::MakeKinds() {
  kinds_ = {};
  for (size_t i = 0; i < states_.size(); ++i) {
    const KernelState& state = states_[i];
    const MicroKernel& kernel = *state.kernel;
    Kind& kind = kinds_[static_cast<size_t>(kernel.weight)][static_cast<size_t>(kernel.arithmetic)];
    const KernelCost* cost = state.usable() ? calibration_.find(kernel) : nullptr;
    kind.measured = kind.measured && (cost != nullptr || !state.usable());
    kind.candidates.push_back({i, cost, FormFits(state, true), FormFits(state, false)});
  }
  const auto standing = [this](const Candidate& candidate) {
    const MicroKernel& kernel = *states_[candidate.state].kernel;
    return std::tuple(kernel.rank, kernel.mr * kernel.nr, states_[candidate.state].name);
  };
  for (auto& kinds : kinds_)
    for (Kind& kind : kinds)
      std::sort(kind.candidates.begin(), kind.candidates.end(),
                [&](const Candidate& a, const Candidate& b) { return standing(a) > standing(b); });
}

bool KernelSelector::IsQuarantined(size_t index, RowClass row_class) const {
  return quarantined_[index].load(std::memory_order_relaxed) >> static_cast<int>(row_class) & 1;
}

// A form made for the other number of rows only counts where its instruction set has no better one.
bool KernelSelector::FormFits(const KernelState& state, bool one_row) const {
  const auto made_for = [&](const MicroKernel& kernel) { return (kernel.mr == 1) == one_row; };
  if (made_for(*state.kernel)) return true;
  return std::none_of(states_.begin(), states_.end(), [&](const KernelState& other) {
    return other.usable() && other.kernel->rank == state.kernel->rank &&
           other.kernel->fits(state.kernel->weight, state.kernel->arithmetic) &&
           made_for(*other.kernel);
  });
}

std::optional<double> KernelSelector::WorkNs(const Candidate& candidate,
                                             const KernelQuery& query) const {
  if (candidate.cost == nullptr) return {};
  return calibration_.WorkNs(*states_[candidate.state].kernel, *candidate.cost, query);
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
  const KernelState& state = states_[candidate.state];
  const bool fits = query.rows <= 1 ? candidate.fits_one : candidate.fits_more;
  const double work_ns = kind.measured ? WorkNs(candidate, query).value_or(0) : 0;
  return {state.usable(), !IsQuarantined(candidate.state, RowClassOf(query.rows)), fits, work_ns,
          query.rows >= state.kernel->rows_min};
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
    ranked.push_back({&states_[candidate->state], WorkNs(*candidate, query), !merit.sound});
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
  choice.state = &states_[best->state];
  choice.work_ns = WorkNs(*best, query);
  return choice;
}

Fault KernelSelector::Find(std::string_view name, int64_t rows, const KernelState** found) const {
  for (size_t i = 0; i < states_.size(); ++i) {
    const KernelState& state = states_[i];
    if (name != state.name) continue;
    *found = &state;
    const bool quarantined = IsQuarantined(i, RowClassOf(rows));
    if (state.usable() && !quarantined) return {};
    return {FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED",
            "kernel " + std::string(name) +
                " cannot run here: " + (quarantined ? "quarantined for these rows" : state.reason) +
                "; ListKernels shows those that can"};
  }
  return {FaultKind::kInvalidArgument, "KERNEL_UNKNOWN",
          "kernel '" + std::string(name) + "' is not built in; ListKernels shows the names"};
}

void KernelSelector::Quarantine(std::string_view kernel, RowClass row_class,
                                std::string_view reason) {
  for (size_t i = 0; i < states_.size(); ++i) {
    if (kernel != states_[i].kernel->name) continue;
    std::lock_guard lock(mutex_);
    const auto bit = static_cast<uint8_t>(1 << static_cast<int>(row_class));
    if (quarantined_[i].fetch_or(bit, std::memory_order_relaxed) & bit) return;
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    entries_.push_back({std::string(kernel) + "/" + std::string(NameOf(row_class)),
                        std::string(kernel), std::string(reason),
                        now / std::chrono::nanoseconds(1)});
    return;
  }
}

std::vector<QuarantineInfo> KernelSelector::Quarantined() const {
  std::lock_guard lock(mutex_);
  return entries_;
}

bool KernelSelector::Rearm(std::string_view key) {
  std::lock_guard lock(mutex_);
  const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                  [key](const QuarantineInfo& e) { return e.key == key; });
  if (entry == entries_.end()) return false;
  for (size_t i = 0; i < states_.size(); ++i) {
    if (entry->kernel != states_[i].kernel->name) continue;
    for (const RowClass c : {RowClass::kOne, RowClass::kFew, RowClass::kMany})
      if (key.ends_with(NameOf(c)))
        quarantined_[i].fetch_and(static_cast<uint8_t>(~(1 << static_cast<int>(c))),
                                  std::memory_order_relaxed);
  }
  entries_.erase(entry);
  return true;
}

}  // namespace qmatmul::cpu
