// Which micro-kernel computes a product: the one with the least predicted time among those that this CPU
// runs, configuration allows and no fault has put aside. A total order, so that the answer never depends
// on the order in which kernels stand in the table.
//
// Order: usable before not; of one instruction set, the one-row form for one row and the tile form for
// more (a one-row form computes a tile row by row, however cheap it looks); then less predicted time, where
// every candidate was measured; then one that is worth it for so few rows (MicroKernel::rows_min), the higher
// rank, the larger tile, the name.
//
// Quarantine: a kernel that gave a wrong result is put aside for its row class alone (key
// "cpu.avx2.s8s8s32.6x16x4/m2-16"); the others go on, and it can be re-armed. The last kernel of a kind
// still runs when it is quarantined: a slow server is better than none, and verification sees it.
//
// Thread-safety: all methods may be called from any thread; UseCalibration before the first of them.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu/calibration.h"
#include "kernels/cpu/micro_kernel.h"
#include "kernels/device.h"

namespace qmatmul::cpu {

struct KernelState {
  const MicroKernel* kernel = nullptr;
  std::string_view name;
  bool supported = false;
  bool disabled = false;
  std::string reason;  // why it is not supported or disabled
  bool usable() const { return supported && !disabled; }
};

// Products whose kernels take the same paths: one row, few, many.
enum class RowClass : uint8_t { kOne, kFew, kMany };
RowClass RowClassOf(int64_t rows);
std::string_view NameOf(RowClass row_class);  // "m1", "m2-16", "m17+"

// The table as this CPU and configuration see it. `disabled` is a comma-separated list of names or of
// prefixes that end before a dot ("cpu.avx2" disables every avx2 kernel). Of each weight type and
// arithmetic one kernel always stays, the last of the table, so that configuration can slow a server down
// but not break it.
std::vector<KernelState> KernelStates(std::span<const MicroKernel* const> table,
                                      const CpuFeatures& features, std::string_view disabled);

class KernelSelector {
 public:
  struct Ranked {
    const KernelState* state = nullptr;
    std::optional<double> predicted_ns;
    bool quarantined = false;  // for these rows
  };

  KernelSelector(std::span<const MicroKernel* const> table, const CpuFeatures& features,
                 std::string_view disabled);
  void UseCalibration(Calibration calibration);
  const Calibration& calibration() const { return calibration_; }
  std::span<const KernelState> states() const { return states_; }

  struct Choice {
    const KernelState* state = nullptr;  // null when the table has none of that kind
    std::optional<double> work_ns;       // Calibration::WorkNs
    bool fell_back = false;              // a usable one is quarantined
  };

  // The best. Allocates nothing and looks at nothing but numbers: it is asked for every call.
  Choice Select(const KernelQuery& query) const;
  // All of that kind, best first.
  std::vector<Ranked> Rank(const KernelQuery& query) const;
  // The kernel of that name, or a fault: KERNEL_UNKNOWN, KERNEL_UNSUPPORTED (not supported, disabled, or
  // quarantined for these rows).
  Fault Find(std::string_view name, int64_t rows, const KernelState** found) const;

  void Quarantine(std::string_view kernel, RowClass row_class, std::string_view reason);
  std::vector<QuarantineInfo> Quarantined() const;
  // False when no such key is quarantined.
  bool Rearm(std::string_view key);

 private:
  // What can be said of a kernel before any query.
  struct Candidate {
    size_t state = 0;
    const KernelCost* cost = nullptr;
    // It is made for one row (for more), or no usable kernel of its rank is.
    bool fits_one = false;
    bool fits_more = false;
  };
  // The kernels of one weight type and arithmetic: the higher rank, the larger tile, the greater name first.
  struct Kind {
    std::vector<Candidate> candidates;
    bool measured = true;  // every usable one
  };
  // What a query makes of a candidate, most weighty first.
  struct Merit {
    bool usable, sound, fits;
    double work_ns;  // 0 where times compare nothing
    bool worth_it;
    bool Beats(const Merit& other) const;
  };

  const Kind& KindOf(const KernelQuery& query) const {
    return kinds_[static_cast<size_t>(query.weight)][static_cast<size_t>(query.arithmetic)];
  }
  void MakeKinds();
  bool FormFits(const KernelState& state, bool one_row) const;
  std::optional<double> WorkNs(const Candidate& candidate, const KernelQuery& query) const;
  Merit MeritOf(const Kind& kind, const Candidate& candidate, const KernelQuery& query) const;
  bool IsQuarantined(size_t index, RowClass row_class) const;

  std::vector<KernelState> states_;
  Calibration calibration_;
  std::array<std::array<Kind, 2>, static_cast<size_t>(DataType::kInt2) + 1> kinds_;
  std::unique_ptr<std::atomic<uint8_t>[]> quarantined_;  // by state: a bit for each row class
  mutable std::mutex mutex_;                             // guards entries_
  std::vector<QuarantineInfo> entries_;
};

}  // namespace qmatmul::cpu
