// The kernels of one device as its machine and configuration see them, and which of them are put aside: the
// part of choosing that is the same on every device. Which of them is the fastest, each device says itself.
//
// Quarantine: a kernel that gave a wrong result is put aside for its class of rows alone (key
// "cpu.avx2.s8s8s32.6x16x4/m2-16"), since other numbers of rows take other paths through it; it can be
// re-armed. The last kernel of a kind still runs when it is quarantined: a slow server is better than none,
// and verification sees it.
//
// Thread-safety: all methods may be called from any thread; Refuse only before the device serves.
//
// Invariants
//   1. A kernel keeps its place: `index` is that in the device's own table.
//   2. Of each weight type and arithmetic one supported kernel is usable, whatever is disabled: configuration
//      can slow a device down but not break it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"

namespace qmatmul {

// Whether a comma-separated list has this name, or a prefix of it that ends before a dot: "cpu.avx2" names
// cpu.avx2.s8s8s32.6x16x4 but not cpu.avx2_split.….
bool IsListed(std::string_view list, std::string_view name);

// The last rows of the first two classes: {1, 16} makes "m1", "m2-16" and "m17+".
using RowClasses = std::array<int64_t, 2>;

class KernelList {
 public:
  // `kernels` best first, with the reasons of those that are not supported. `disabled`: as IsListed takes it.
  KernelList(std::vector<KernelInfo> kernels, std::string_view disabled,
             const RowClasses& row_classes);

  const std::vector<KernelInfo>& kernels() const { return kernels_; }
  bool IsUsable(size_t index) const { return kernels_[index].usable(); }
  // For products of `rows` rows.
  bool IsQuarantined(size_t index, int64_t rows) const {
    return quarantined_[index].load(std::memory_order_relaxed) >> ClassOf(rows) & 1;
  }
  bool IsEligible(size_t index, int64_t rows) const {
    return IsUsable(index) && !IsQuarantined(index, rows);
  }

  // The kernel of that name. KERNEL_UNKNOWN; KERNEL_UNSUPPORTED (not supported, disabled, or quarantined for
  // these rows).
  Fault Find(std::string_view name, int64_t rows, size_t* index) const;
  // LAYOUT_MISMATCH when it multiplies by other weights; `layout` is theirs.
  Fault CheckFits(size_t index, DataType weight, std::string_view layout,
                  Arithmetic arithmetic) const;
  // Its line of Device::Explain: `why` says how one that may be chosen came to its place.
  KernelChoice Explain(size_t index, int64_t rows, bool chosen, std::string_view why) const;

  // Takes a kernel for unsupported: it failed its self-test.
  void Refuse(size_t index, std::string reason);
  void Quarantine(std::string_view kernel, int64_t rows, std::string_view reason);
  std::vector<QuarantineInfo> Quarantined() const;
  // False when no such key is quarantined.
  bool Rearm(std::string_view key);

 private:
  struct Entry {
    QuarantineInfo info;
    size_t index;
    uint8_t bit;  // of quarantined_[index]
  };

  size_t ClassOf(int64_t rows) const {
    return size_t{rows > classes_[0]} + size_t{rows > classes_[1]};
  }
  std::string NameOfClass(int64_t rows) const;
  void KeepOneOfEachKind();

  std::vector<KernelInfo> kernels_;
  const RowClasses classes_;
  std::vector<std::atomic<uint8_t>> quarantined_;  // by kernel: a bit for each class of rows
  mutable std::mutex mutex_;                       // guards entries_
  std::vector<Entry> entries_;
};

// Device::Explain by what `explain` appends for the weights of one type: for each of their types, the chosen
// kernels first.
std::vector<KernelChoice> ExplainEachType(
    std::span<const std::shared_ptr<const PackedWeight>> weights,
    const std::function<void(DataType, std::vector<KernelChoice>*)>& explain);

}  // namespace qmatmul
