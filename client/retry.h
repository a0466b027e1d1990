// When a call that ended with UNAVAILABLE is tried again: exponential backoff with full jitter, never
// past the deadline, and out of a budget that all calls of a client share, so that clients of a full
// server do not multiply its load.
//
// Private to client/. Thread-safe. It neither waits nor reads a clock: the caller says how much time
// is left, and waits. With a seed in the options its waits are always the same.
//
// Invariants
//   1. A retry takes one token, a call brings a fraction of one; without a whole token nothing is
//      retried.
//   2. A wait is at least what the server asked for, and shorter than the time that is left.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <random>

#include "client/retry_options.h"
#include "client/status.h"

namespace qmatmul::client {

// Which UNAVAILABLE may be tried again.
enum class Repeatable : uint8_t {
  kNever,
  // The server refused it and says when to come back (RetryInfo): it has done nothing.
  kRefused,
  // Also a connection that was lost underway: twice is as good as once.
  kIdempotent,
};

class RetryPolicy {
 public:
  using Duration = std::chrono::nanoseconds;

  explicit RetryPolicy(const RetryOptions& options);

  // Every call once, before its first attempt.
  void CallStarts();
  // The wait before one more attempt, when `attempts` were made and the last ended with `status`;
  // nothing when it is final. Takes the token.
  std::optional<Duration> Wait(const Status& status, Repeatable repeatable, int attempts,
                               Duration left);

 private:
  Duration Jitter(int attempts);

  const RetryOptions options_;
  // Thousandths of a token.
  const int64_t budget_max_;
  const int64_t budget_per_call_;
  std::atomic<int64_t> budget_;

  std::mutex mutex_;  // guards random_
  std::mt19937_64 random_;
};

}  // namespace qmatmul::client
