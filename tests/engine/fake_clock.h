// Time that a test owns: it moves when told to, and only then.
//
// Thread-safety: all methods may be called from any thread.
#pragma once

#include <atomic>

#include "server/engine/clock.h"

namespace qmatmul {

class FakeClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns_.load(); }
  int64_t UnixNs() const override { return 1'800'000'000'000'000'000 + now_ns_.load(); }
  void Advance(int64_t ns) { now_ns_.fetch_add(ns); }

 private:
  std::atomic<int64_t> now_ns_{1'000'000'000};
};

}  // namespace qmatmul
