// What a product costs on one device: fitted by a few small products when it opens, corrected by what Runs
// have taken since.
//
//     T = fixed + max(k·n·weight, 2·rows·k·n·op) + (rows·k + rows·n)·out
//
// `fixed` is a submission and its return, `weight` reading the weight once, `out` taking rows to the device and bringing sums to the host
// and finishing them there, an element each.
//
// Thread-safety: Measure before all else, the rest from any thread.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels/device.h"

namespace qmatmul::vulkan {

class Costs {
 public:
  // Runs its products on `device`.
  Fault Measure(Device* device);
  int64_t PredictNs(int64_t rows, int64_t k, int64_t n) const;
  // What a Run took.
  void Learn(const Work& work, int64_t rows, int64_t ns);

 private:
  double Fit(int64_t rows, int64_t k, int64_t n) const;

  double fixed_ns_ = 0, weight_ns_ = 0, op_ns_ = 0, out_ns_ = 0;
  std::atomic<double> correction_{1.0};
};

}  // namespace qmatmul::vulkan
