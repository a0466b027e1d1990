#include "kernels/cuda/kernel_choice.h"

#include <algorithm>
#include <chrono>

namespace qmatmul::cuda {
namespace {

// "cuda.mma" names cuda.mma.s8s8s32.128x128x32 but not cuda.mmax.….
bool Listed(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view item = list.substr(0, comma);
    while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
    while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
    if (!item.empty() && name.starts_with(item) &&
        (name.size() == item.size() || name[item.size()] == '.'))
      return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

// A device that was not measured gets no work while another can do it.
constexpr double kUnmeasuredNs = 1e12;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

RowClass RowClassOf(int64_t rows) {
  if (rows <= 8) return RowClass::kFew;
  return rows <= 64 ? RowClass::kSome : RowClass::kMany;
}

std::string_view NameOf(RowClass row_class) {
  if (row_class == RowClass::kFew) return "m1-8";
  return row_class == RowClass::kSome ? "m9-64" : "m65+";
}

KernelChoices::KernelChoices(const std::vector<std::string>& why_not, std::string_view disabled) {
  for (const CudaKernel& kernel : CudaKernels()) {
    State state;
    state.kernel = &kernel;
    state.name = kernel.name;
    state.reason = why_not[states_.size()];
    state.supported = state.reason.empty();
    state.disabled = Listed(disabled, kernel.name);
    if (state.supported && state.disabled)
      state.reason = "disabled by configuration (QMATMUL_DISABLE_KERNELS)";
    all_disabled_ = all_disabled_ && state.disabled;
    states_.push_back(std::move(state));
  }
  // Of each kind one stays, as on the CPU: configuration can slow a device down but not break it.
  for (auto it = states_.rbegin(); it != states_.rend(); ++it) {
    const CudaKernel& kernel = *it->kernel;
    const bool left = std::any_of(states_.begin(), states_.end(), [&kernel](const State& s) {
      return s.usable() && s.kernel->fits(kernel.weight, kernel.arithmetic);
    });
    if (left || !it->supported) continue;
    it->disabled = false;
    it->reason = "kept although disabled: no other kernel of its kind is left";
  }
  quarantined_ = std::make_unique<std::atomic<uint8_t>[]>(states_.size());
}

double KernelChoices::KernelNs(const State& state, const ProductSize& size) const {
  if (state.rates.bytes_per_ns <= 0 || state.rates.products_per_ns <= 0) return 0;
  const CudaKernel& kernel = *state.kernel;
  const int64_t rows = std::max<int64_t>(size.rows, 1);
  const bool tiles = kernel.form == Form::kMma || kernel.form == Form::kWgmma;
  const int64_t pass_rows = tiles ? rows : kernel.mr;
  const int64_t passes = RoundUp(rows, pass_rows) / pass_rows;
  // A tile of 16 rows is the least that mma computes, one of 128 what wgmma does.
  const int64_t padded = tiles ? RoundUp(rows, kernel.form == Form::kMma ? 16 : kernel.mr) : rows;
  const double values = double(size.k) * double(size.n);
  const double read_ns =
      double(passes) * values * BitsOf(size.weight) / 8 / state.rates.bytes_per_ns;
  return std::max(read_ns, values * double(padded) / state.rates.products_per_ns);
}

double KernelChoices::CallNs(const ProductSize& size) const {
  bool fell_back = false;
  const State* state = Select(size, &fell_back);
  if (state == nullptr || costs_.up_bytes_per_ns <= 0 || costs_.down_bytes_per_ns <= 0)
    return kUnmeasuredNs;
  return costs_.call_ns + double(size.rows) * double(size.k) / costs_.up_bytes_per_ns +
         double(size.rows) * double(size.n) * 4 / costs_.down_bytes_per_ns + KernelNs(*state, size);
}

bool KernelChoices::IsQuarantined(const State& state, RowClass row_class) const {
  const auto index = static_cast<size_t>(&state - states_.data());
  return quarantined_[index].load(std::memory_order_relaxed) >> static_cast<int>(row_class) & 1;
}

std::vector<KernelChoices::Ranked> KernelChoices::Rank(const ProductSize& size) const {
  std::vector<Ranked> ranked;
  bool measured = true;
  for (const State& state : states_) {
    if (!state.kernel->fits(size.weight, size.arithmetic)) continue;
    ranked.push_back({&state, IsQuarantined(state, RowClassOf(size.rows)), KernelNs(state, size)});
    measured = measured && (!state.usable() || ranked.back().kernel_ns > 0);
  }
  // Before anything was measured: few rows by dp4a, many by the first of the table.
  const auto merit = [&](const Ranked& r) {
    const Form wanted = size.rows <= 8 ? Form::kGemv : size.rows <= 64 ? Form::kMma : Form::kWgmma;
    return measured ? r.kernel_ns : r.state->kernel->form == wanted ? 0.0 : 1.0;
  };
  std::stable_sort(ranked.begin(), ranked.end(), [&](const Ranked& a, const Ranked& b) {
    if (a.state->usable() != b.state->usable()) return a.state->usable();
    if (a.quarantined != b.quarantined) return !a.quarantined;
    return merit(a) < merit(b);
  });
  return ranked;
}

const KernelChoices::State* KernelChoices::Select(const ProductSize& size, bool* fell_back) const {
  const std::vector<Ranked> ranked = Rank(size);
  for (const Ranked& r : ranked) *fell_back |= r.state->usable() && r.quarantined;
  return ranked.empty() || !ranked[0].state->usable() ? nullptr : ranked[0].state;
}

Fault KernelChoices::Find(std::string_view name, int64_t rows, const State** found) const {
  for (const State& state : states_) {
    if (name != state.name) continue;
    *found = &state;
    const bool quarantined = IsQuarantined(state, RowClassOf(rows));
    if (state.usable() && !quarantined) return {};
    return {FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED",
            "kernel " + state.name +
                " cannot run here: " + (quarantined ? "quarantined for these rows" : state.reason) +
                "; ListKernels shows those that can"};
  }
  return {FaultKind::kInvalidArgument, "KERNEL_UNKNOWN",
          "kernel '" + std::string(name) + "' is not built in; ListKernels shows the names"};
}

void KernelChoices::Quarantine(std::string_view kernel, RowClass row_class,
                               std::string_view reason) {
  for (size_t i = 0; i < states_.size(); ++i) {
    if (kernel != states_[i].name) continue;
    std::lock_guard lock(mutex_);
    const auto bit = static_cast<uint8_t>(1 << static_cast<int>(row_class));
    if (quarantined_[i].fetch_or(bit, std::memory_order_relaxed) & bit) return;
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    entries_.push_back({states_[i].name + "/" + std::string(NameOf(row_class)), states_[i].name,
                        std::string(reason), now / std::chrono::nanoseconds(1)});
    return;
  }
}

std::vector<QuarantineInfo> KernelChoices::Quarantined() const {
  std::lock_guard lock(mutex_);
  return entries_;
}

bool KernelChoices::Rearm(std::string_view key) {
  std::lock_guard lock(mutex_);
  const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                  [key](const QuarantineInfo& e) { return e.key == key; });
  if (entry == entries_.end()) return false;
  for (size_t i = 0; i < states_.size(); ++i)
    for (const RowClass c : {RowClass::kFew, RowClass::kSome, RowClass::kMany})
      if (key == states_[i].name + "/" + std::string(NameOf(c)))
        quarantined_[i].fetch_and(static_cast<uint8_t>(~(1 << static_cast<int>(c))),
                                  std::memory_order_relaxed);
  entries_.erase(entry);
  return true;
}

}  // namespace qmatmul::cuda
