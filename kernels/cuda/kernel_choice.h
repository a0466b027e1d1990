// Which kernel computes a product: the one with the least predicted time among those that this device runs,
// configuration allows and no fault has put aside; and what a whole call is predicted to take.
//
// Costs are fitted by measuring at the start (cost_fit.h): T = call + bytes up and down + kernel, and a
// kernel's time is what its weight takes to be read or its products to be computed, whichever is more.
//
// Quarantine: as on the CPU, by classes of rows (key "cuda.mma.s8s8s32.128x128x32/m9-64"). The last kernel of
// a kind still runs when it is quarantined: verification sees it.
//
// Thread-safety: all methods may be called from any thread; costs are set before the first of them.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/product_plan.h"
#include "kernels/device.h"

namespace qmatmul::cuda {

enum class RowClass : uint8_t { kFew, kSome, kMany };
RowClass RowClassOf(int64_t rows);            // to 8, to 64, more
std::string_view NameOf(RowClass row_class);  // "m1-8", "m9-64", "m65+"

// What one kernel takes. Zero: not measured.
struct KernelRates {
  double bytes_per_ns = 0;     // of weights read
  double products_per_ns = 0;  // multiply-adds, padding included
};
struct CallCosts {
  double call_ns = 0;  // of the smallest product, all in
  double up_bytes_per_ns = 0, down_bytes_per_ns = 0;
};

struct ProductSize {
  int64_t rows = 0, k = 0, n = 0;
  DataType weight = DataType::kInt8;
  Arithmetic arithmetic = Arithmetic::kW8A8;
};

class KernelChoices {
 public:
  struct State {
    const CudaKernel* kernel = nullptr;
    std::string name;
    bool supported = true, disabled = false;
    std::string reason;  // why not
    KernelRates rates;
    bool usable() const { return supported && !disabled; }
  };
  struct Ranked {
    const State* state = nullptr;
    bool quarantined = false;
    double kernel_ns = 0;  // 0: not measured
  };

  // `why_not[i]` of CudaKernels()[i]: empty when the device runs it.
  KernelChoices(const std::vector<std::string>& why_not, std::string_view disabled);
  const std::vector<State>& states() const { return states_; }
  // Configuration disabled every kernel: the device is not wanted.
  bool all_disabled() const { return all_disabled_; }
  void SetRates(size_t index, const KernelRates& rates) { states_[index].rates = rates; }
  void SetCosts(const CallCosts& costs) { costs_ = costs; }

  // The best; `fell_back` when a usable one is quarantined. Null when there is none of that kind.
  const State* Select(const ProductSize& size, bool* fell_back) const;
  std::vector<Ranked> Rank(const ProductSize& size) const;
  // KERNEL_UNKNOWN, KERNEL_UNSUPPORTED.
  Fault Find(std::string_view name, int64_t rows, const State** found) const;
  double KernelNs(const State& state, const ProductSize& size) const;
  // A whole call, with rows of bytes up and fp32 down. What was never measured is taken for very long.
  double CallNs(const ProductSize& size) const;

  void Quarantine(std::string_view kernel, RowClass row_class, std::string_view reason);
  std::vector<QuarantineInfo> Quarantined() const;
  bool Rearm(std::string_view key);

 private:
  bool IsQuarantined(const State& state, RowClass row_class) const;

  std::vector<State> states_;
  bool all_disabled_ = true;
  CallCosts costs_;
  std::unique_ptr<std::atomic<uint8_t>[]> quarantined_;  // by state: a bit for each class of rows
  mutable std::mutex mutex_;                             // guards entries_
  std::vector<QuarantineInfo> entries_;
};

}  // namespace qmatmul::cuda
