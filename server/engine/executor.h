// Computes the batches of one device: the one thread that is the device's compute, and one that hands
// finished answers out while the device goes on.
//
// Why one thread computes: it is member 0 of the device's team, so nothing else ever computes there
// and two batches never fight for the same cores. The exception runs on the caller's thread (RunNow):
// a job shorter than the hand-off.
//
// Why another one answers: an answer costs the transport 10–20 µs, which for a batch of 64 is longer
// than many products. With nothing waiting the hand-off is saved, and the computing thread answers.
//
// Thread-safety: all methods may be called from any thread, Stop once. Device, metrics and clock
// outlive the executor. Ownership: requests are borrowed until each is completed.
//
// Invariants
//   1. A request that Submit took is completed exactly once, before Stop returns.
//   2. A cancelled or late request is completed without being computed further.
//   3. What a device has in hand when it is lost is computed by the fallback, where that holds the weights.
#pragma once

#include <absl/container/inlined_vector.h>
#include <absl/functional/function_ref.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "kernels/device.h"
#include "server/engine/batcher.h"
#include "server/engine/clock.h"
#include "server/engine/metrics.h"
#include "server/engine/request.h"

namespace qmatmul {

class Executor {
 public:
  // `fallback`, device 0, computes what a lost device had in hand; null for device 0 itself.
  Executor(size_t device_index, Device& device, Device* fallback, Metrics& metrics,
           const Clock& clock, const BatcherLimits& limits, Batcher::Predictor predictor);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Refusals, which leave the request with the caller, are the batcher's.
  Status Submit(Request* request) { return batcher_.Push(request); }
  // Computes on this thread, alone, and completes the request.
  void RunNow(Request* request);
  void Hold(bool held) { batcher_.Hold(held); }
  // Computes what is queued, then ends the threads.
  void Stop();

  // Predicted time of what is queued or running.
  int64_t backlog_ns() const { return batcher_.backlog_ns(); }
  int64_t queued() const { return batcher_.queued(); }
  int64_t queued_rows() const { return batcher_.queued_rows(); }

 private:
  void ComputeLoop();
  void AnswerLoop();
  using Segments = absl::InlinedVector<RowSegment, 2>;

  // Computes the pieces, which may share a batch, and gives `finish` each request whose last one was
  // among them.
  void Run(std::span<const BatchPiece> pieces, int threads_max,
           absl::FunctionRef<void(Request*)> finish);
  // One attempt, on device `index`; `segments` says what became of each piece.
  Fault RunOn(size_t index, Device& device, std::span<const BatchPiece> pieces, int threads_max,
              Segments* segments, RunReport* report);
  void Expire(Request& request) const;
  void CountRun(const Device& device, const Request& first, std::span<const RowSegment> segments,
                const RunReport& report);
  // Notes what was done for the piece's request; true when that was its last.
  bool Settle(const Device& device, const BatchPiece& piece, const RowSegment& segment,
              const Fault& fault, const RunReport& report, int64_t start_ns);
  void Answer(std::vector<Request*>* finished);
  void Complete(Request* request);
  // Nobody waits for its answer any more.
  bool IsDead(const Request& request) const;

  const size_t device_index_;
  Device& device_;
  Device* const fallback_;
  Metrics& metrics_;
  const Clock& clock_;
  Batcher batcher_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::vector<Request*> answers_;
  bool computing_ended_ = false;
  std::thread compute_thread_;  // the threads last: they use all of the above
  std::thread answer_thread_;
};

}  // namespace qmatmul
