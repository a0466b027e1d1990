// One run of load: calls drawn from a list by share, sent either so many at a time (closed loop) or
// at a rate whatever comes back (open loop), and everything that was seen of them.
//
// Open loop without coordinated omission: each call has an intended time that does not depend on
// the replies, and its latency counts from there. A call that leaves later than intended (the
// machine or the limit on calls in flight held it up) is measured with its delay, and the late ones
// are counted.
//
// Thread-safety: RunLoad blocks and is called by one thread; `check` is called on gRPC's threads,
// several at once. Ownership: the plan is borrowed for the run.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/load.h"
#include "client/load_histogram.h"

namespace qmatmul::client {

// One of the calls that a run draws from.
struct LoadItem {
  EncodedCall call = {};
  double share = 1;  // of all calls, relative to the others'
  int64_t rows = 0;
  double ops = 0;  // 2 * rows * k * n, of all its weights
};

struct LoadProgress {
  double seconds = 0;  // since the start
  int64_t ok = 0;
  int64_t failed = 0;
  int64_t in_flight = 0;
};

struct LoadPlan {
  std::vector<LoadItem> items = {};
  int64_t in_flight = 1;  // closed loop
  double rate = 0;        // calls a second; > 0: open loop
  bool poisson = true;    // or evenly spaced
  double seconds = 1;     // how long calls are sent
  int64_t calls_max = 0;  // … and at most so many; 0: no limit
  uint64_t seed = 1;
  double latency_limit_s = 0;  // for `in_limit`; 0: none
  double check_share = 0;      // of the replies that `check` sees
  // Is the reply to items[i] right?
  std::function<bool(size_t item, const LoadReply& reply)> check = {};
  std::function<void(const LoadProgress&)> progress = {};  // a few times a second
  bool keep_calls = false;
};

// One call, for those who want each.
struct LoadedCall {
  int64_t intended_ns = 0;  // since the start of the run
  int64_t sent_ns = 0;
  int64_t done_ns = 0;
  int64_t rows = 0;
  Code code = Code::kOk;
};

// What the calls of one row count took.
struct LoadOfRows {
  LoadHistogram latency_ns;
  LoadHistogram queue_ns;
  LoadHistogram compute_ns;
};

struct LoadResult {
  // The window that the rates are of: until the last reply in a closed loop, the time of the sends in
  // an open one.
  double seconds = 0;
  int64_t unix_start_ns = 0;  // wall clock at the start of the window
  int64_t sent = 0;
  int64_t ok = 0;  // in all, and inside the window
  int64_t ok_in_window = 0;
  int64_t rows_in_window = 0;
  double ops_in_window = 0;
  int64_t failed = 0;
  int64_t in_limit = 0;  // ok in the window within the latency limit
  int64_t late = 0;      // open loop: sent more than kLateNs after the intended time
  int64_t late_max_ns = 0;
  int64_t checked = 0;
  int64_t wrong = 0;
  double batch_rows_mean = 0;
  double request_bytes_mean = 0;  // messages, without what the transport adds
  double reply_bytes_mean = 0;
  LoadHistogram latency_ns;            // of those that were answered with a result
  LoadHistogram error_latency_ns;      // of the others
  LoadHistogram queue_ns, compute_ns;  // the server's words, from each reply
  std::map<int64_t, LoadOfRows> by_rows;
  std::map<std::string, int64_t> errors;  // "UNAVAILABLE QUEUE_FULL" -> how many
  std::string first_error;                // in full
  std::vector<LoadedCall> calls;
};

inline constexpr int64_t kLateNs = 1'000'000;

// Sends for the plan's time, waits for what is in flight, and tells.
std::unique_ptr<LoadResult> RunLoad(LoadClient* client, const LoadPlan& plan);

// `count` indices into `items`, each as often as its share says and neighbours together too (to
// within one), shuffled by `seed`.
std::vector<uint32_t> DrawOrder(const std::vector<LoadItem>& items, size_t count, uint64_t seed);

}  // namespace qmatmul::client
