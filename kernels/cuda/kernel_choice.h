// Which kernel computes a product: the one with the least predicted time among those that this device runs,
// configuration allows and no fault has put aside; and what a whole call is predicted to take.
//
// Costs are fitted by measuring at the start (cost_fit.h): T = call + bytes up and down + kernel, and a
// kernel's time is what its weight takes to be read or its products to be computed, whichever is more.
//
// Thread-safety: all methods may be called from any thread; costs are set before the first of them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/product_plan.h"
#include "kernels/kernel_list.h"

namespace qmatmul::cuda {

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
  struct Choice {
    const CudaKernel* kernel = nullptr;  // null when no usable one is of that kind
    bool fell_back = false;              // a usable one is quarantined
  };
  struct Ranked {
    size_t index = 0;  // in CudaKernels(), and in the list
    const CudaKernel* kernel = nullptr;
    double kernel_ns = 0;  // 0: not measured
  };

  // `why_not[i]` of CudaKernels()[i]: empty when the device runs it. `disabled`: as in DeviceOptions.
  KernelChoices(const std::vector<std::string>& why_not, std::string_view disabled);
  KernelList& list() { return list_; }
  const KernelList& list() const { return list_; }
  void SetRates(size_t index, const KernelRates& rates) { rates_[index] = rates; }
  void SetCosts(const CallCosts& costs) { costs_ = costs; }

  // The best. Allocates nothing: it is asked for every call.
  Choice Select(const ProductSize& size) const;
  // All of that kind, best first.
  std::vector<Ranked> Rank(const ProductSize& size) const;
  // A whole call, with rows of bytes up and fp32 down. What was never measured is taken for very long.
  double CallNs(const ProductSize& size) const;

 private:
  // What a product makes of a kernel, most weighty first.
  struct Merit {
    bool usable, sound;
    double cost;
    bool Beats(const Merit& other) const;
  };

  double KernelNs(size_t index, const ProductSize& size) const;
  // Every kernel of that kind that is not put aside was.
  bool IsMeasured(const ProductSize& size) const;
  Merit MeritOf(size_t index, const ProductSize& size, bool measured) const;

  KernelList list_;                 // at the places of CudaKernels()
  std::vector<KernelRates> rates_;  // likewise
  CallCosts costs_;
};

}  // namespace qmatmul::cuda
