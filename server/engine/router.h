// Which device computes a request, by predicted time, and whether it is so short that queueing it
// would cost more than computing it.
//
// Thread-safety: all methods may be called from any thread; a Router is immutable. Devices outlive
// it.
//
// Invariant: the router chooses who computes, never what: every choice gives the same bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"
#include "server/engine/request.h"
#include "server/engine/status.h"
#include "server/engine/weight_store.h"

namespace qmatmul {

// What a route depends on.
struct RouteQuery {
  int64_t rows = 0;
  std::span<const WeightPtr> weights;
  Arithmetic arithmetic = Arithmetic::kW8A8;
  std::string_view device;  // forced id or kind; empty: any
  std::string_view kernel;  // forced name; empty: any
  std::span<const ChainLink> then = {};
};

RouteQuery QueryOf(const Request& request);
// Which of the query's weights device `device` does not hold, and why; empty when it holds them all.
std::string WhyNotHeld(const RouteQuery& query, size_t device);

struct Route {
  size_t device = 0;         // index
  bool runs_inline = false;  // on the caller's thread, alone
};

class Router {
 public:
  // `known_kinds`: every kind of device there is code for, present here or not.
  Router(std::span<Device* const> devices, std::vector<std::string> known_kinds,
         int64_t inline_ns_max);

  // `backlog_ns[d]`: predicted work already waiting for device d.
  //   kInvalidArgument     DEVICE_UNKNOWN, KERNEL_UNKNOWN
  //   kFailedPrecondition  DEVICE_ABSENT, KERNEL_UNSUPPORTED
  Status Choose(const RouteQuery& query, std::span<const int64_t> backlog_ns, Route* route) const;

  // Predicted time of the query's products on a device that holds its weights, for `rows` rows, on `threads` threads (0: the whole team).
  int64_t PredictNs(size_t device, const RouteQuery& query, int64_t rows, int threads) const;

  // Whether `device` fits the forced id or kind ("" fits all).
  bool Fits(size_t device, std::string_view forced) const;

 private:
  struct Kernel {
    size_t device;
    KernelInfo info;
  };

  Status CheckDevice(std::string_view forced) const;
  Status CheckKernel(const RouteQuery& query, size_t* device) const;
  Status CheckKernelFits(const KernelInfo& kernel, const Weight& weight,
                         Arithmetic arithmetic) const;

  const std::vector<Device*> devices_;
  const std::vector<std::string> known_kinds_;
  const int64_t inline_ns_max_;
  std::vector<Kernel> kernels_;
};

}  // namespace qmatmul
