// Bytes of packed weights in the memory of each device, and how many there may be.
//
// Why apart from the store: a copy outlives its name while requests hold it, and its bytes must be
// counted until it is gone.
//
// Thread-safety: all methods may be called from any thread.
//
// Invariant: used + reserved never exceeds the limit; used is exact, to the byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace qmatmul {

class MemoryLedger {
 public:
  MemoryLedger(size_t devices, int64_t limit_bytes)
      : limit_(limit_bytes), used_(devices), reserved_(devices) {}

  // Sets room aside for a copy being packed; false when it would not fit.
  bool Reserve(size_t device, int64_t bytes);
  void Unreserve(size_t device, int64_t bytes);
  // The copy is there: what was set aside becomes what it really holds. False when that does not
  // fit, and then the reservation stands.
  bool Commit(size_t device, int64_t reserved, int64_t bytes);
  void Free(size_t device, int64_t bytes);

  int64_t limit() const { return limit_; }
  int64_t used(size_t device) const;

 private:
  const int64_t limit_;
  mutable std::mutex mutex_;
  std::vector<int64_t> used_;
  std::vector<int64_t> reserved_;
};

}  // namespace qmatmul
