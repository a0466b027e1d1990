// Which MatMuls are not sent because the server is full: while it refuses calls for a weight, a client
// sends at most `sent_per_accepted` times as many a second as were accepted in the last one, and 10 more,
// evenly. The others end here at once, with UNAVAILABLE CLIENT_THROTTLED.
//
// It exists because a refusal costs a server (and the machine's network and the client) nearly what a
// small call costs: at ten times its capacity a server would spend its cores on saying no. The idea is
// that of client-side throttling in "Site Reliability Engineering", ch. 21; here over a window that
// forgets within a second, so that a server with room again is used again.
//
// Private to client/. Thread-safe. It reads no clock: the caller says what time it is. Weights are told
// apart by a hash into a few slots; two that share one are throttled together.
//
// Invariants
//   1. While nothing was refused within the last second, everything is sent.
//   2. Some calls are always sent, so that a server with room again is found.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string_view>

#include "client/status.h"

namespace qmatmul::client {

class OverloadThrottle {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // 0: nothing is held back, ever.
  explicit OverloadThrottle(double sent_per_accepted) : sent_per_accepted_(sent_per_accepted) {}

  // Before each attempt: nothing when it may be sent, or the error that it ends with instead.
  std::optional<Status> Refuse(std::string_view weight, Time now);
  // How an attempt ended. Full is UNAVAILABLE with a time to come back; a call that was lost or cancelled counts as
  // neither, and so does one that met a server which is draining.
  void Ended(std::string_view weight, const Status& status, Time now);

 private:
  static constexpr int kParts = 8;  // of a second

  struct Counts {
    int64_t accepted = 0, refused = 0;
  };
  struct Slot {
    std::mutex mutex;                   // guards what follows
    std::array<Counts, kParts> second;  // the last one by parts, the newest at newest % kParts
    int64_t newest = 0;
    double tokens =
        0;  // each sends a call while the server is full; as many as fit, at the first call
    Time filled;
  };

  Slot& SlotOf(std::string_view weight);
  // The part of the second that is now, with what is too old forgotten. The slot's mutex is held.
  static Counts& Now(Slot* slot, Time now);

  const double sent_per_accepted_;
  std::array<Slot, 64> slots_;
};

}  // namespace qmatmul::client
