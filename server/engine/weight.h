// A registered weight: a name's binding, and the packed content that it is bound to.
//
// Why two types: two names may be bound to the same content, which is then packed and held once.
//
// Thread-safety: any thread may call everything; only which lost copies were written off ever changes.
// Ownership: shared; the last holder frees, so that deleting or replacing a name never frees memory under a
// request.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "server/engine/memory_ledger.h"

namespace qmatmul {

// Why a device holds no copy.
struct Absence {
  std::string device;
  std::string reason;  // empty where it holds one
};

// One packed content. Its destructor gives its bytes back.
class WeightContent {
 public:
  WeightContent(WeightSpec spec, std::string digest, int64_t generation,
                std::shared_ptr<MemoryLedger> ledger,
                std::vector<std::shared_ptr<const PackedWeight>> copies,
                std::vector<Absence> absences);
  ~WeightContent();
  WeightContent(const WeightContent&) = delete;
  WeightContent& operator=(const WeightContent&) = delete;

  const WeightSpec spec;
  const std::string digest;  // 64 lower-case hex characters
  const int64_t generation;  // grows with every content packed by this store
  // By device index; null where the device holds no copy.
  const std::vector<std::shared_ptr<const PackedWeight>>& copies() const { return copies_; }
  // Whether device `device` can compute with it.
  bool IsOn(size_t device) const {
    return copies_[device] != nullptr && !copies_[device]->is_lost();
  }
  // The device's id, and why it cannot; an empty reason when it can.
  Absence AbsenceOn(size_t device) const;
  // What its copies take of the devices' budgets.
  int64_t bytes() const;
  // Gives back now what a lost copy took of a device that has been opened anew, and does not hold it any more.
  void WriteOffLost(size_t device) const;

 private:
  std::vector<std::shared_ptr<const PackedWeight>> copies_;
  const std::vector<Absence> absences_;  // by device index
  std::shared_ptr<MemoryLedger> ledger_;
  mutable std::vector<std::atomic<bool>> written_off_;  // by device index
};

// One name and what it was bound to when it was looked up.
struct Weight {
  std::string id;  // without "weights/"
  std::shared_ptr<const WeightContent> content;
  int64_t create_time_ns = 0;  // Unix time of the binding
};
using WeightPtr = std::shared_ptr<const Weight>;

}  // namespace qmatmul
