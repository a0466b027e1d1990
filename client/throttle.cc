#include "client/throttle.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

namespace qmatmul::client {
namespace {

constexpr std::chrono::milliseconds kSecond{1'000};
// Sent a second whatever was accepted: a lone caller hardly ever meets the throttle.
constexpr double kAlwaysSent = 10;
// At once, in seconds' worth. A server whose queue is short would refuse most of a larger burst.
constexpr double kBurst = 0.05;

}  // namespace

OverloadThrottle::Slot& OverloadThrottle::SlotOf(std::string_view weight) {
  return slots_[std::hash<std::string_view>()(weight) % slots_.size()];
}

OverloadThrottle::Counts& OverloadThrottle::Now(Slot* slot, Time now) {
  const int64_t part = now.time_since_epoch() / (kSecond / kParts);
  // A thread that read the clock earlier counts with the others.
  for (int64_t steps = std::min<int64_t>(part - slot->newest, kParts); steps > 0; --steps)
    slot->second[static_cast<size_t>((part - steps + 1) % kParts)] = {};
  slot->newest = std::max(slot->newest, part);
  return slot->second[static_cast<size_t>(slot->newest % kParts)];
}

std::optional<Status> OverloadThrottle::Refuse(std::string_view weight, Time now) {
  if (sent_per_accepted_ <= 0) return {};
  Slot& slot = SlotOf(weight);
  const std::lock_guard lock(slot.mutex);
  Now(&slot, now);
  Counts all;
  for (const Counts& part : slot.second) {
    all.accepted += part.accepted;
    all.refused += part.refused;
  }
  const double rate = kAlwaysSent + sent_per_accepted_ * static_cast<double>(all.accepted);
  const std::chrono::duration<double> since =
      now - std::exchange(slot.filled, std::max(slot.filled, now));
  slot.tokens = std::min(slot.tokens + rate * std::max(since.count(), 0.0),
                         std::max(kAlwaysSent, rate * kBurst));
  if (all.refused == 0) return {};
  if (slot.tokens >= 1) return --slot.tokens, std::nullopt;
  const std::string limit = std::to_string(static_cast<int64_t>(rate));
  Status status;
  status.code = Code::kUnavailable;
  status.reason = "CLIENT_THROTTLED";
  status.message =
      "not sent: within a second the server took " + std::to_string(all.accepted) +
      " and refused " + std::to_string(all.refused) + " calls of this client for weight \"" +
      std::string(weight) + "\", and " + limit +
      " a second are sent to a server that is full; call less often, or use another server";
  status.metadata = {{"accepted", std::to_string(all.accepted)}, {"limit", limit}};
  return status;
}

void OverloadThrottle::Ended(std::string_view weight, const Status& status, Time now) {
  const bool unavailable = status.code == Code::kUnavailable;
  // Another server may have room when this one is draining.
  const bool full = unavailable && status.retry_after.count() > 0 && status.reason != "DRAINING";
  if (sent_per_accepted_ <= 0 || (unavailable && !full) || status.code == Code::kCancelled) return;
  Slot& slot = SlotOf(weight);
  const std::lock_guard lock(slot.mutex);
  Counts& newest = Now(&slot, now);
  ++(full ? newest.refused : newest.accepted);
}

}  // namespace qmatmul::client
