#include "kernels/kernel_list.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace qmatmul {

bool IsListed(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view item = list.substr(0, comma);
    while (item.starts_with(' ')) item.remove_prefix(1);
    while (item.ends_with(' ')) item.remove_suffix(1);
    if (name.starts_with(item) && (name.size() == item.size() || name[item.size()] == '.'))
      return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

KernelList::KernelList(std::vector<KernelInfo> kernels, std::string_view disabled,
                       const RowClasses& row_classes)
    : kernels_(std::move(kernels)), classes_(row_classes), quarantined_(kernels_.size()) {
  for (KernelInfo& kernel : kernels_) {
    kernel.disabled = IsListed(disabled, kernel.name);
    if (kernel.supported && kernel.disabled)
      kernel.reason = "disabled by configuration (QMATMUL_DISABLE_KERNELS)";
  }
  KeepOneOfEachKind();
}

void KernelList::KeepOneOfEachKind() {
  for (auto last = kernels_.rbegin(); last != kernels_.rend(); ++last) {
    const bool left = std::any_of(kernels_.begin(), kernels_.end(), [last](const KernelInfo& k) {
      return k.usable() && k.weight == last->weight && k.arithmetic == last->arithmetic;
    });
    if (left || !last->supported) continue;
    last->disabled = false;
    last->reason = "kept although disabled: no other kernel of its kind is left";
  }
}

std::string KernelList::NameOfClass(int64_t rows) const {
  const size_t c = ClassOf(rows);
  const int64_t first = c == 0 ? 1 : classes_[c - 1] + 1;
  const std::string name = "m" + std::to_string(first);
  if (c == classes_.size()) return name + "+";
  return first == classes_[c] ? name : name + "-" + std::to_string(classes_[c]);
}

Fault KernelList::Find(std::string_view name, int64_t rows, size_t* index) const {
  const auto found = std::find_if(kernels_.begin(), kernels_.end(),
                                  [name](const KernelInfo& k) { return k.name == name; });
  if (found == kernels_.end())
    return {FaultKind::kInvalidArgument, "KERNEL_UNKNOWN",
            "kernel '" + std::string(name) + "' is not built in; ListKernels shows the names"};
  *index = static_cast<size_t>(found - kernels_.begin());
  if (IsEligible(*index, rows)) return {};
  return {FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED",
          "kernel " + found->name + " cannot run here: " + Explain(*index, rows, false, "").reason +
              "; ListKernels shows those that can"};
}

Fault KernelList::CheckFits(size_t index, DataType weight, std::string_view layout,
                            Arithmetic arithmetic) const {
  const KernelInfo& kernel = kernels_[index];
  if (kernel.weight == weight && kernel.arithmetic == arithmetic) return {};
  return {FaultKind::kInternal, "LAYOUT_MISMATCH",
          "kernel " + kernel.name + " reads " + kernel.layout + " weights for " +
              std::string(NameOf(kernel.arithmetic)) + ", not " + std::string(layout) + " for " +
              std::string(NameOf(arithmetic))};
}

KernelChoice KernelList::Explain(size_t index, int64_t rows, bool chosen,
                                 std::string_view why) const {
  const KernelInfo& kernel = kernels_[index];
  KernelChoice choice{kernel.name, IsEligible(index, rows), chosen, {}, kernel.reason};
  if (choice.eligible) choice.reason = why;
  else if (IsQuarantined(index, rows))
    choice.reason = "quarantined for " + NameOfClass(rows) + " rows";
  return choice;
}

void KernelList::Refuse(size_t index, std::string reason) {
  kernels_[index].supported = false;
  kernels_[index].reason = std::move(reason);
  KeepOneOfEachKind();
}

void KernelList::Quarantine(std::string_view kernel, int64_t rows, std::string_view reason) {
  for (size_t i = 0; i < kernels_.size(); ++i) {
    if (kernel != kernels_[i].name) continue;
    const std::lock_guard lock(mutex_);
    const auto bit = static_cast<uint8_t>(1 << ClassOf(rows));
    if (quarantined_[i].fetch_or(bit, std::memory_order_relaxed) & bit) return;
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const QuarantineInfo info{kernels_[i].name + "/" + NameOfClass(rows), kernels_[i].name,
                              std::string(reason), now / std::chrono::nanoseconds(1)};
    entries_.push_back({info, i, bit});
  }
}

std::vector<QuarantineInfo> KernelList::Quarantined() const {
  const std::lock_guard lock(mutex_);
  std::vector<QuarantineInfo> infos;
  for (const Entry& entry : entries_) infos.push_back(entry.info);
  return infos;
}

bool KernelList::Rearm(std::string_view key) {
  const std::lock_guard lock(mutex_);
  const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                  [key](const Entry& e) { return e.info.key == key; });
  if (entry == entries_.end()) return false;
  quarantined_[entry->index].fetch_and(static_cast<uint8_t>(~entry->bit),
                                       std::memory_order_relaxed);
  entries_.erase(entry);
  return true;
}

std::vector<KernelChoice> ExplainEachType(
    std::span<const std::shared_ptr<const PackedWeight>> weights,
    const std::function<void(DataType, std::vector<KernelChoice>*)>& explain) {
  std::vector<KernelChoice> choices;
  std::vector<DataType> types;
  for (const auto& weight : weights) {
    const DataType type = weight->spec().dtype;
    if (std::find(types.begin(), types.end(), type) != types.end()) continue;
    types.push_back(type);
    explain(type, &choices);
  }
  std::stable_partition(choices.begin(), choices.end(),
                        [](const KernelChoice& c) { return c.chosen; });
  return choices;
}

}  // namespace qmatmul
