// The clock seam: everything in the engine that looks at the time asks a Clock, so that tests own
// time.
//
// Thread-safety: all methods may be called from any thread.
#pragma once

#include <chrono>
#include <cstdint>

namespace qmatmul {

class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic nanoseconds; only differences mean something.
  virtual int64_t NowNs() const = 0;
  // Nanoseconds since the Unix epoch, for people.
  virtual int64_t UnixNs() const = 0;
};

class SystemClock final : public Clock {
 public:
  int64_t NowNs() const override { return Count(std::chrono::steady_clock::now()); }
  int64_t UnixNs() const override { return Count(std::chrono::system_clock::now()); }

 private:
  template <typename TimePoint>
  static int64_t Count(TimePoint t) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(t.time_since_epoch()).count();
  }
};

}  // namespace qmatmul
