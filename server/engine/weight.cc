#include "server/engine/weight.h"

namespace qmatmul {

WeightContent::WeightContent(WeightSpec spec_in, std::string digest_in, int64_t generation_in,
                             std::shared_ptr<MemoryLedger> ledger,
                             std::vector<std::shared_ptr<const PackedWeight>> copies,
                             std::vector<Absence> absences)
    : spec(spec_in),
      digest(std::move(digest_in)),
      generation(generation_in),
      copies_(std::move(copies)),
      absences_(std::move(absences)),
      ledger_(std::move(ledger)),
      written_off_(copies_.size()) {}

WeightContent::~WeightContent() {
  for (size_t device = 0; device < copies_.size(); ++device) {
    if (copies_[device] == nullptr || written_off_[device]) continue;
    const int64_t bytes = copies_[device]->bytes();
    copies_[device]
        .reset();  // the memory goes first, so that the ledger never says less than there is
    ledger_->Free(device, bytes);
  }
}

Absence WeightContent::AbsenceOn(size_t device) const {
  Absence absence = absences_[device];
  if (copies_[device] != nullptr && copies_[device]->is_lost())
    absence.reason =
        "the device was lost, and this copy with it; to have it there again, delete the weight and "
        "register it anew";
  return absence;
}

int64_t WeightContent::bytes() const {
  int64_t total = 0;
  for (size_t device = 0; device < copies_.size(); ++device)
    if (copies_[device] != nullptr && !written_off_[device]) total += copies_[device]->bytes();
  return total;
}

void WeightContent::WriteOffLost(size_t device) const {
  if (copies_[device] == nullptr || !copies_[device]->is_lost()) return;
  if (!written_off_[device].exchange(true)) ledger_->Free(device, copies_[device]->bytes());
}

}  // namespace qmatmul
