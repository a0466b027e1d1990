// How a client retries calls that ended with UNAVAILABLE; a part of ClientOptions. Plain values.
#pragma once

#include <chrono>
#include <cstdint>

namespace qmatmul::client {

struct RetryOptions {
  // Of one call, the first included; 1: no retries.
  int attempts_max = 5;
  // Retry number i waits what the server asked for and a random time of up to
  // min(backoff_max, backoff << (i - 1)) more.
  std::chrono::milliseconds backoff{20};
  std::chrono::milliseconds backoff_max{2'000};
  // All calls of the client share a budget: a retry takes 1 token of at most `budget_max`, a call
  // brings `budget_per_call`. So retries never add more than a tenth to a server's load for long.
  double budget_max = 10;
  double budget_per_call = 0.1;
  // While the server refuses MatMuls of a weight for being full, so many are sent for each that it
  // accepted within the last second (and 10 more); others end with UNAVAILABLE CLIENT_THROTTLED
  // before they cost it anything. 0: all are sent.
  double sent_per_accepted = 1.25;
  uint64_t seed = 0;  // of the random waits; 0: another one for each client
};

}  // namespace qmatmul::client
