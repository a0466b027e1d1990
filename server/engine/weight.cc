#include "server/engine/weight.h"

namespace qmatmul {

WeightContent::WeightContent(WeightSpec spec_in, std::string digest_in, int64_t generation_in,
                             std::vector<std::shared_ptr<const PackedWeight>> copies,
                             std::vector<Absence> absences)
    : spec(spec_in),
      digest(std::move(digest_in)),
      generation(generation_in),
      copies_(std::move(copies)),
      absences_(std::move(absences)) {}

Absence WeightContent::AbsenceOn(size_t device) const {
  Absence absence = absences_[device];
  absence.is_missed = IsMissedOn(device);
  if (absence.is_missed)
    absence.reason =
        "the device was lost; the weight is packed there, from another's copy, when the device is "
        "back";
  return absence;
}

int64_t WeightContent::bytes() const {
  int64_t total = 0;
  for (const auto& copy : copies_) total += copy != nullptr ? copy->bytes() : 0;
  return total;
}

std::shared_ptr<const WeightContent> WeightContent::With(size_t device,
                                                         std::shared_ptr<const PackedWeight> copy,
                                                         Absence absence) const {
  auto copies = copies_;
  auto absences = absences_;
  copies[device] = std::move(copy);
  absences[device] = std::move(absence);
  return std::make_shared<WeightContent>(spec, digest, generation, std::move(copies),
                                         std::move(absences));
}

}  // namespace qmatmul
