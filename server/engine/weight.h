// A registered weight: a name's binding, and the packed content that it is bound to.
//
// Why two types: two names may be bound to the same content, which is then packed and held once.
//
// Thread-safety: immutable. Ownership: shared; the last holder frees, so that deleting or replacing a name
// never frees memory under a request.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace qmatmul {

// Why a device holds no copy.
struct Absence {
  std::string device;
  std::string reason;      // empty where it holds one
  bool is_missed = false;  // for the device's loss: it is to hold one when it is back
};

// One packed content.
class WeightContent {
 public:
  // Copies and absences by device index.
  WeightContent(WeightSpec spec, std::string digest, int64_t generation,
                std::vector<std::shared_ptr<const PackedWeight>> copies,
                std::vector<Absence> absences);

  const WeightSpec spec;
  const std::string digest;  // 64 lower-case hex characters
  const int64_t generation;  // grows with every content packed by this store
  // Null where the device holds no copy.
  const std::vector<std::shared_ptr<const PackedWeight>>& copies() const { return copies_; }
  // Whether device `device` can compute with it.
  bool IsOn(size_t device) const {
    return copies_[device] != nullptr && !copies_[device]->is_lost();
  }
  // Whether it cannot for the device's loss, and shall when that is back.
  bool IsMissedOn(size_t device) const {
    return copies_[device] != nullptr ? copies_[device]->is_lost() : absences_[device].is_missed;
  }
  // The device's id, and why it cannot; an empty reason when it can.
  Absence AbsenceOn(size_t device) const;
  // What its copies take of the devices' budgets.
  int64_t bytes() const;
  // The same content with another copy on one device, or, where `copy` is null, with none, and why.
  std::shared_ptr<const WeightContent> With(size_t device, std::shared_ptr<const PackedWeight> copy,
                                            Absence absence) const;

 private:
  const std::vector<std::shared_ptr<const PackedWeight>> copies_;
  const std::vector<Absence> absences_;
};

// One name and what it was bound to when it was looked up.
struct Weight {
  std::string id;  // without "weights/"
  std::shared_ptr<const WeightContent> content;
  int64_t create_time_ns = 0;  // Unix time of the binding
};
using WeightPtr = std::shared_ptr<const Weight>;

}  // namespace qmatmul
