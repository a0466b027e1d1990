// Bytes of packed weights in the memory of each device, and how many there may be, a budget each.
//
// Why apart from the store: a copy outlives its name while requests hold it, and its bytes must be
// counted until it is gone.
//
// Thread-safety: all methods may be called from any thread.
//
// Invariant: used + reserved never exceeds a device's limit; used is exact, to the byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace qmatmul {

class MemoryLedger {
 public:
  // One limit for each device.
  explicit MemoryLedger(std::vector<int64_t> limits)
      : limits_(std::move(limits)), used_(limits_.size()), reserved_(limits_.size()) {}

  // Sets room aside for a copy being packed; false when it would not fit.
  bool Reserve(size_t device, int64_t bytes);
  void Unreserve(size_t device, int64_t bytes);
  // The copy is there: what was set aside becomes what it really holds. False when that does not
  // fit, and then the reservation stands.
  bool Commit(size_t device, int64_t reserved, int64_t bytes);
  void Free(size_t device, int64_t bytes);

  int64_t limit(size_t device) const { return limits_[device]; }
  int64_t used(size_t device) const;
  // Neither used nor set aside.
  int64_t left(size_t device) const;

 private:
  const std::vector<int64_t> limits_;
  mutable std::mutex mutex_;
  std::vector<int64_t> used_;
  std::vector<int64_t> reserved_;
};

}  // namespace qmatmul
