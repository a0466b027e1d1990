#include "server/engine/memory_ledger.h"

#include <cassert>

namespace qmatmul {

bool MemoryLedger::Reserve(size_t device, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes > limits_[device] - used_[device] - reserved_[device]) return false;
  reserved_[device] += bytes;
  return true;
}

void MemoryLedger::Unreserve(size_t device, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  reserved_[device] -= bytes;
  assert(reserved_[device] >= 0);
}

bool MemoryLedger::Commit(size_t device, int64_t reserved, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes > limits_[device] - used_[device] - (reserved_[device] - reserved)) return false;
  reserved_[device] -= reserved;
  used_[device] += bytes;
  return true;
}

void MemoryLedger::Free(size_t device, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  used_[device] -= bytes;
  assert(used_[device] >= 0);
}

int64_t MemoryLedger::used(size_t device) const {
  const std::lock_guard lock(mutex_);
  return used_[device];
}

int64_t MemoryLedger::left(size_t device) const {
  const std::lock_guard lock(mutex_);
  return limits_[device] - used_[device] - reserved_[device];
}

}  // namespace qmatmul
