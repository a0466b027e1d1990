#include "kernels/cpu/select.h"

#include <algorithm>
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
    KernelState state{kernel, kernel->supported(features), Listed(disabled, kernel->name), ""};
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

bool BetterFor(int64_t rows, const KernelState& a, const KernelState& b) {
  const auto key = [rows](const KernelState& s) {
    const bool fits = rows == 1 ? s.kernel->mr == 1 : s.kernel->mr > 1;
    return std::tuple(s.usable(), rows >= s.kernel->rows_min, s.kernel->rank, fits, s.kernel->mr * s.kernel->nr,
                      std::string_view(s.kernel->name));
  };
  return key(a) > key(b);
}

const KernelState* SelectKernel(std::span<const KernelState> states, int64_t rows, DataType weight,
                                Arithmetic arithmetic) {
  const KernelState* best = nullptr;
  for (const KernelState& state : states) {
    if (!state.usable() || !state.kernel->fits(weight, arithmetic)) continue;
    if (best == nullptr || BetterFor(rows, state, *best)) best = &state;
  }
  return best;
}

Fault FindKernel(std::span<const KernelState> states, std::string_view name,
                 const KernelState** found) {
  for (const KernelState& state : states) {
    if (name != state.kernel->name) continue;
    *found = &state;
    if (state.usable()) return {};
    return {FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED",
            "kernel " + std::string(name) + " cannot run here: " + state.reason +
                "; ListKernels shows those that can"};
  }
  return {FaultKind::kInvalidArgument, "KERNEL_UNKNOWN",
          "kernel '" + std::string(name) + "' is not built in; ListKernels shows the names"};
}

}  // namespace qmatmul::cpu
