// Computes the batches of one device: a bounded queue and the one thread that is the device's
// compute.
//
// Why one thread: it is member 0 of the device's team, so nothing else ever computes there and two
// batches never fight for the same cores. The exception runs on the caller's thread (RunNow): a job
// shorter than the hand-off.
//
// Thread-safety: all methods may be called from any thread, Stop once. Device, metrics and clock
// outlive the executor. Ownership: a batch moves in; its requests are borrowed until each is
// completed.
//
// Invariants
//   1. A batch that Submit took is run, or its requests are completed with the reason, before Stop
//   returns.
//   2. A full queue refuses at once and leaves the batch with the caller.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/device.h"
#include "server/engine/clock.h"
#include "server/engine/metrics.h"
#include "server/engine/request.h"

namespace qmatmul {

// Requests that run together: same weights in the same order, same arithmetic, same forced kernel.
// Output types, epilogues and activation types may differ from one to the next.
struct Batch {
  std::vector<Request*> requests;  // not empty
  int64_t predicted_ns = 0;
};

class Executor {
 public:
  Executor(size_t device_index, Device& device, Metrics& metrics, const Clock& clock,
           int64_t queue_max);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // False when the queue is full or the executor is stopped.
  bool Submit(Batch& batch);
  // Computes on this thread, alone, and completes the requests.
  void RunNow(Batch& batch) { Run(batch, /*threads_max=*/1); }
  // Computes what is queued, then ends the thread.
  void Stop();

  // Predicted time of what is queued or running.
  int64_t backlog_ns() const { return backlog_ns_.load(std::memory_order_relaxed); }
  int64_t queued() const;

 private:
  void Loop();
  void Run(Batch& batch, int threads_max);
  // Completes what nobody waits for any more, before it costs anything.
  void DropExpired(Batch& batch, int64_t now_ns);
  void CountRun(const Batch& batch, const std::vector<RowSegment>& segments,
                const RunReport& report);
  void Deliver(Batch& batch, std::vector<RowSegment>& segments, const Fault& fault,
               const RunReport& report, int64_t start_ns);

  const size_t device_index_;
  Device& device_;
  Metrics& metrics_;
  const Clock& clock_;
  const size_t queue_max_;
  std::atomic<int64_t> backlog_ns_{0};
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::deque<Batch> queue_;
  bool stopped_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace qmatmul
