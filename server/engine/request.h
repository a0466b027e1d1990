// One MatMul as the engine sees it: validated views of its input, views of the memory its answer
// goes into, and what became of it.
//
// Ownership: whoever makes a Request (a service) owns it and everything its views point to, and
// keeps both until Complete has been called; it owns the weights through their handles. The engine
// only borrows. Thread-safety: none, save `cancelled`; from Submit to Complete the request belongs
// to the engine.
//
// Invariants
//   1. What is in it has been checked (server/wire): sizes agree, values are in range, and every
//   output
//      view has room for [rows, n]. The engine and the devices do not look again.
//   2. Complete is called exactly once, from any thread, with no lock held; the engine does not
//   touch the
//      request afterwards.
#pragma once

#include <absl/container/inlined_vector.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/device.h"
#include "server/engine/status.h"
#include "server/engine/weight_store.h"

namespace qmatmul {

// Room taken by one request among the bytes in flight; gives it back when it is dropped.
class Admission {
 public:
  // What all requests in flight hold together.
  struct Gauge {
    std::atomic<int64_t> requests{0};
    std::atomic<int64_t> bytes{0};
  };

  Admission() = default;
  Admission(Gauge* gauge, int64_t bytes) : gauge_(gauge), bytes_(bytes) {}
  Admission(Admission&& other) noexcept
      : gauge_(std::exchange(other.gauge_, nullptr)), bytes_(other.bytes_) {}
  Admission& operator=(Admission&& other) noexcept {
    std::swap(gauge_, other.gauge_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Admission() {
    if (gauge_ == nullptr) return;
    gauge_->bytes.fetch_sub(bytes_, std::memory_order_relaxed);
    gauge_->requests.fetch_sub(1, std::memory_order_release);
  }

 private:
  Gauge* gauge_ = nullptr;
  int64_t bytes_ = 0;
};

// What was done for a request.
struct Execution {
  std::string_view device;  // lives as long as the engine
  // By output; they live as long as the engine too, and are empty when there was nothing to compute.
  std::array<std::string_view, kWeightsPerCallMax> kernels;
  int64_t batch_rows = 0;
  int64_t padded_rows = 0;
  int64_t queue_ns = 0;
  int64_t compute_ns = 0;
};

// A step of a chain after the first: the result so far, quantized per row, times one more weight.
struct ChainLink {
  WeightPtr weight;
  Arithmetic arithmetic = Arithmetic::kW8A8;
};

// Most requests have one weight: for those its lists are not allocated.
using WeightPtrs = absl::InlinedVector<WeightPtr, 1>;

inline constexpr int64_t kNoDeadline = std::numeric_limits<int64_t>::max();

class Request {
 public:
  Request() = default;
  virtual ~Request() = default;
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  // The answer, or why there is none, is in status, outputs and execution.
  virtual void Complete() = 0;

  // --- What is asked. ---
  WeightPtrs weights;  // 1 … 16, sharing K
  ActivationView activations;
  absl::InlinedVector<SegmentOutput, 1>
      outputs;  // one per weight; of a chain, one, of its last step
  std::vector<ChainLink> then;
  std::vector<Epilogue> intermediates;  // of each step of a chain but the last
  std::span<float> scales_used;         // dynamic quantization: room for [rows], or empty
  Arithmetic arithmetic = Arithmetic::kW8A8;
  std::string_view device;             // forced id or kind; empty: the router chooses
  std::string_view kernel;             // forced name; empty: the device chooses
  int64_t bytes = 0;                   // input and output, for admission
  uint64_t client = 0;                 // who asks: those who ask for the same weights take turns
  int64_t deadline_ns = kNoDeadline;   // on the engine's clock
  std::atomic<bool> cancelled{false};  // set from any thread; work not yet started is then not done

  // --- What became of it. ---
  Status status;
  Execution execution;

  // --- The engine's notes. ---
  Admission admission;
  int64_t admitted_ns = 0;
  int64_t rows_taken = 0;   // that are in some batch
  int64_t rows_left = 0;    // that are not computed yet
  Request* next = nullptr;  // in its line
};

}  // namespace qmatmul
