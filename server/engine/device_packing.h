// One weight being packed for one device, with its room in that device's budget set aside.
//
// Thread-safety: used by one thread at a time. Ownership: dropped before Finish it frees what it packed and
// gives the room back; a finished copy gives back its own when its last holder drops it.
//
// Invariant: what is packed never takes more of the budget than the ledger says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kernels/device.h"
#include "server/engine/memory_ledger.h"
#include "server/engine/status.h"

namespace qmatmul {

class DevicePacking {
 public:
  // Sets room aside and begins. kResourceExhausted WEIGHT_MEMORY, and what the device itself says.
  static Status Start(size_t index, Device& device, std::shared_ptr<MemoryLedger> ledger,
                      const WeightSpec& spec, std::unique_ptr<DevicePacking>* packing);
  ~DevicePacking();
  DevicePacking(const DevicePacking&) = delete;
  DevicePacking& operator=(const DevicePacking&) = delete;

  size_t index() const { return index_; }
  // The upload's next bytes. After an error it is only good for dropping.
  Status Append(std::span<const std::byte> bytes);
  Status Finish(std::shared_ptr<const PackedWeight>* copy);

 private:
  DevicePacking(size_t index, std::shared_ptr<MemoryLedger> ledger, const WeightSpec& spec)
      : index_(index), ledger_(std::move(ledger)), spec_(spec) {}
  // `value` and `limit` beside what a device said of its memory.
  Status FromFaultOf(const Fault& fault, const char* field) const;

  const size_t index_;
  const std::shared_ptr<MemoryLedger> ledger_;
  const WeightSpec spec_;
  int64_t reserved_bytes_ = 0;
  std::unique_ptr<Packer> packer_;
};

// Whether a device said that it is lost.
bool IsLoss(const Status& status);
// Another device may do what this one cannot; what is wrong with the upload itself is wrong on all.
bool IsPassedOver(const Status& status);

}  // namespace qmatmul
