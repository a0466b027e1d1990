#include "client/retry.h"

#include <algorithm>
#include <cmath>

namespace qmatmul::client {
namespace {

constexpr int64_t kToken = 1000;

int64_t Thousandths(double tokens) {
  return std::llround(std::clamp(tokens, 0.0, 1e9) * static_cast<double>(kToken));
}

bool MayRepeat(const Status& status, Repeatable repeatable) {
  if (status.code != Code::kUnavailable || repeatable == Repeatable::kNever) return false;
  if (status.retry_after > std::chrono::milliseconds::zero()) return true;
  // Without a reason it is the transport that failed, and nobody knows how far the call got.
  return repeatable == Repeatable::kIdempotent && status.reason.empty();
}

}  // namespace

RetryPolicy::RetryPolicy(const RetryOptions& options)
    : options_(options),
      budget_max_(Thousandths(options.budget_max)),
      budget_per_call_(Thousandths(options.budget_per_call)),
      budget_(budget_max_),
      random_(options.seed != 0 ? options.seed : std::random_device{}()) {}

void RetryPolicy::CallStarts() {
  int64_t budget = budget_.load(std::memory_order_relaxed);
  // Full nearly always: then this is one load.
  while (budget < budget_max_ &&
         !budget_.compare_exchange_weak(budget, std::min(budget_max_, budget + budget_per_call_),
                                        std::memory_order_relaxed)) {}
}

std::optional<RetryPolicy::Duration> RetryPolicy::Wait(const Status& status, Repeatable repeatable,
                                                       int attempts, Duration left) {
  if (attempts >= options_.attempts_max || !MayRepeat(status, repeatable)) return {};
  const Duration wait = status.retry_after + Jitter(attempts);
  if (wait >= left) return {};
  int64_t budget = budget_.load(std::memory_order_relaxed);
  do {
    if (budget < kToken) return {};
  } while (!budget_.compare_exchange_weak(budget, budget - kToken, std::memory_order_relaxed));
  return wait;
}

RetryPolicy::Duration RetryPolicy::Jitter(int attempts) {
  const int doublings = std::clamp(attempts - 1, 0, 20);
  const Duration longest = std::min<Duration>(
      options_.backoff_max, Duration(options_.backoff) * (int64_t{1} << doublings));
  const std::lock_guard lock(mutex_);
  return Duration(
      std::uniform_int_distribution<int64_t>(0, std::max<int64_t>(0, longest.count()))(random_));
}

}  // namespace qmatmul::client
