// Which micro-kernel computes a product: the one with the least predicted time among those that this CPU
// runs, configuration allows and no fault has put aside. A total order, so that the answer never depends
// on the order in which kernels stand in the table.
//
// Order: usable before not; of one instruction set, the one-row form for one row and the tile form for
// more (a one-row form computes a tile row by row, however cheap it looks); then less predicted time, where
// every candidate was measured; then one that is worth it for so few rows (MicroKernel::rows_min), the higher
// rank, the larger tile, the name.
//
// Thread-safety: all methods may be called from any thread; UseCalibration before the first of them.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/cpu/calibration.h"
#include "kernels/cpu/micro_kernel.h"
#include "kernels/kernel_list.h"

namespace qmatmul::cpu {

class KernelSelector {
 public:
  struct Choice {
    const MicroKernel* kernel = nullptr;  // null when the table has none of that kind
    std::optional<double> work_ns;        // Calibration::WorkNs
    int64_t ahead_bytes = kAheadBytes;    // Calibration::AheadBytes
    bool fell_back = false;               // a usable one is quarantined
  };
  struct Ranked {
    size_t index = 0;  // in the table, and in the list
    const MicroKernel* kernel = nullptr;
    std::optional<double> predicted_ns;
  };

  // `disabled`: as in DeviceOptions.
  KernelSelector(std::span<const MicroKernel* const> table, const CpuFeatures& features,
                 std::string_view disabled);
  void UseCalibration(Calibration calibration);
  const Calibration& calibration() const { return calibration_; }
  KernelList& list() { return list_; }
  const KernelList& list() const { return list_; }

  // The best. Allocates nothing and looks at nothing but numbers: it is asked for every call.
  Choice Select(const KernelQuery& query) const;
  // All of that kind, best first.
  std::vector<Ranked> Rank(const KernelQuery& query) const;
  // The kernel of that name, or the best where it is empty. KERNEL_UNKNOWN, KERNEL_UNSUPPORTED,
  // LAYOUT_MISMATCH.
  Fault Choose(const KernelQuery& query, std::string_view forced, Choice* choice) const;

 private:
  // What can be said of a kernel before any query.
  struct Candidate {
    size_t index = 0;
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
  bool FormFits(const MicroKernel& kernel, bool one_row) const;
  std::optional<double> WorkNs(const Candidate& candidate, const KernelQuery& query) const;
  Merit MeritOf(const Kind& kind, const Candidate& candidate, const KernelQuery& query) const;

  const std::vector<const MicroKernel*> table_;
  KernelList list_;  // at the same places
  Calibration calibration_;
  std::array<std::array<Kind, 2>, static_cast<size_t>(DataType::kInt2) + 1> kinds_;
};

}  // namespace qmatmul::cpu
