// The door of the engine: holds devices and weights, admits requests, and sees to it that each is
// computed once and completed once.
//
// It knows nothing of gRPC or protobuf: a service fills a Request through server/wire and submits
// it.
//
// Thread-safety: all methods may be called from any thread, Stop once and last.
// Ownership: the engine owns its devices, weights, executors and metrics; requests are borrowed
// (request.h).
//
// Invariants
//   1. A request is computed on the thread that submits it only if it is predicted to be shorter
//   than a
//      hand-off; then it runs at once, whatever waits.
//   2. Bytes and requests in flight never exceed their limits; what does not fit is refused at
//   once.
#pragma once

#include <absl/container/inlined_vector.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"
#include "server/engine/clock.h"
#include "server/engine/executor.h"
#include "server/engine/metrics.h"
#include "server/engine/request.h"
#include "server/engine/router.h"
#include "server/engine/weight_store.h"

namespace qmatmul {

struct EngineOptions {
  BatcherLimits batcher;                           // of each device
  int64_t in_flight_bytes_max = int64_t{1} << 30;  // input and output of all requests
  // Packed weights on each device, by its index; those beyond the end may have 2^40 bytes.
  std::vector<int64_t> weight_bytes_max;
  int64_t inline_ns_max = 20'000;  // what a hand-off costs
  bool metrics = true;
  std::vector<std::string> known_device_kinds;
};

// What would run for some rows of some weights, and why.
struct Plan {
  struct Candidate {
    std::string device;
    KernelChoice choice;
  };
  std::string device;
  std::string kernel;
  bool runs_inline = false;
  std::string rule;
  std::vector<Candidate> candidates;  // the chosen device's first
};

class Engine {
 public:
  // At least one device. The clock outlives the engine.
  Engine(std::vector<std::unique_ptr<Device>> devices, const EngineOptions& options,
         const Clock& clock);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Takes room for request->bytes; before the memory of its answer is allocated.
  // kUnavailable IN_FLIGHT_BYTES, DRAINING.
  Status Admit(Request* request);
  // Computes an admitted request: here and now, or queued. Refusals, the router's and the batcher's,
  // complete it too.
  void Submit(Request* request);
  Status Explain(const RouteQuery& query, Plan* plan) const;
  // While held, requests are taken in and nothing new is computed.
  void Hold(bool held);
  // Puts what is quarantined under this key to work again: a kernel, or a lost device, which is opened anew.
  // What it held is then missed there (WeightStore::RestoreNext). False when there is no such key, or the
  // device stays lost.
  bool Rearm(std::string_view key);
  // Tries to open lost devices anew; the ids of those that are back.
  std::vector<std::string> ReviveDevices();
  // Refuses what comes, computes what is queued, ends the threads.
  void Stop();

  WeightStore& weights() { return *weights_; }
  const WeightStore& weights() const { return *weights_; }
  Metrics& metrics() { return *metrics_; }
  const Metrics& metrics() const { return *metrics_; }
  const Clock& clock() const { return clock_; }
  const std::vector<Device*>& devices() const { return device_list_; }
  int64_t requests_in_flight() const { return gauge_.requests.load(std::memory_order_acquire); }
  int64_t bytes_in_flight() const { return gauge_.bytes.load(std::memory_order_relaxed); }
  int64_t queued(size_t device) const { return executors_[device]->queued(); }
  int64_t queued_rows(size_t device) const { return executors_[device]->queued_rows(); }

 private:
  absl::InlinedVector<int64_t, 8> Backlogs() const;
  bool RearmOn(size_t device, std::string_view key);
  void Refuse(Request* request, Status status);

  const EngineOptions options_;
  const Clock& clock_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::vector<Device*> device_list_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<WeightStore> weights_;
  std::unique_ptr<Router> router_;
  Admission::Gauge gauge_;
  std::atomic<bool> held_{false};
  std::atomic<bool> stopped_{false};
  std::vector<std::unique_ptr<Executor>> executors_;  // last: they use all of the above
};

}  // namespace qmatmul
