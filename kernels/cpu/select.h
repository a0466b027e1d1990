// Which micro-kernel computes a call: a total order over the rows of the table, so that the answer
// never depends on the order in which the rows stand.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu/micro_kernel.h"
#include "kernels/device.h"

namespace qmatmul::cpu {

struct KernelState {
  const MicroKernel* kernel = nullptr;
  bool supported = false;
  bool disabled = false;
  std::string reason;  // why it is not supported or disabled
  bool usable() const { return supported && !disabled; }
};

// The table as this CPU and configuration see it. `disabled` is a comma-separated list of names or
// of prefixes that end before a dot ("cpu.avx2" disables every avx2 kernel). Of each weight type
// and arithmetic one kernel always stays, the last of the table, so that configuration can slow a
// server down but not break it.
std::vector<KernelState> KernelStates(std::span<const MicroKernel* const> table,
                                      const CpuFeatures& features, std::string_view disabled);

// True when `a` is the better choice for `rows`: a usable one first; one that is worth it for so
// few rows; the higher rank; a one-row kernel only for one row; then the larger tile, and the name.
bool BetterFor(int64_t rows, const KernelState& a, const KernelState& b);

// The best for `rows` of that weight type and arithmetic; null when the table has none.
const KernelState* SelectKernel(std::span<const KernelState> states, int64_t rows, DataType weight,
                                Arithmetic arithmetic);

// The row of that name, or a fault: KERNEL_UNKNOWN, KERNEL_UNSUPPORTED.
Fault FindKernel(std::span<const KernelState> states, std::string_view name,
                 const KernelState** found);

}  // namespace qmatmul::cpu
