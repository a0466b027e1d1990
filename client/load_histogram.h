// Counts of durations by size, small and fixed: what a load run records each call in, and reads
// percentiles from.
//
// Why not a list of samples: a run of minutes has tens of millions of them, and every thread would
// need its own. Buckets grow with the value, as in Gil Tene's HdrHistogram: 128 to a power of two.
//
// Thread-safety: Record from any thread at once; reading while others record gives some state in
// between. Not copied, not moved.
//
// Invariants
//   1. A percentile differs from the exact one by less than 1 % (1/256 of it, and below 128 ns
//      not at all).
//   2. max() and mean() are exact, for values up to kMax; greater ones count as kMax.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace qmatmul::client {

class LoadHistogram {
 public:
  static constexpr int64_t kMax = (int64_t{1} << 42) - 1;  // 73 minutes in ns

  LoadHistogram() = default;
  LoadHistogram(const LoadHistogram&) = delete;
  LoadHistogram& operator=(const LoadHistogram&) = delete;

  void Record(int64_t value) {
    value = std::clamp<int64_t>(value, 0, kMax);
    counts_[IndexOf(value)].fetch_add(1, std::memory_order_relaxed);
    sum_.fetch_add(value, std::memory_order_relaxed);
    int64_t seen = max_.load(std::memory_order_relaxed);
    while (value > seen && !max_.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {}
  }

  int64_t count() const {
    int64_t total = 0;
    for (const auto& count : counts_) total += count.load(std::memory_order_relaxed);
    return total;
  }
  int64_t max() const { return max_.load(std::memory_order_relaxed); }
  double mean() const {
    const int64_t total = count();
    return total == 0 ? 0
                      : static_cast<double>(sum_.load(std::memory_order_relaxed)) /
                            static_cast<double>(total);
  }
  // The value that `percent` of all are not above, 0 < percent <= 100; 0 when nothing was recorded.
  int64_t Percentile(double percent) const {
    const int64_t total = count();
    const auto rank = static_cast<int64_t>(std::ceil(static_cast<double>(total) * percent / 100));
    int64_t seen = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i].load(std::memory_order_relaxed);
      if (seen >= std::max<int64_t>(rank, 1)) return std::min(MiddleOf(i), max());
    }
    return 0;
  }
  // How many are not above `value`, a bucket's width aside.
  int64_t CountUpTo(int64_t value) const {
    int64_t seen = 0;
    const size_t last = IndexOf(std::clamp<int64_t>(value, 0, kMax));
    for (size_t i = 0; i <= last; ++i) seen += counts_[i].load(std::memory_order_relaxed);
    return seen;
  }

 private:
  static constexpr int kBits = 7;  // 2^7 buckets to a power of two
  static constexpr size_t kBuckets = (42 - kBits + 1) << kBits;

  // Below 2^kBits a value is its own bucket; above, its leading kBits + 1 bits are, by exponent.
  static size_t IndexOf(int64_t value) {
    const auto bits = static_cast<uint64_t>(value);
    const int shift = std::max(0, static_cast<int>(std::bit_width(bits)) - kBits - 1);
    return (static_cast<size_t>(shift) << kBits) + static_cast<size_t>(bits >> shift);
  }
  static int64_t MiddleOf(size_t index) {
    const size_t shift = index < (size_t{2} << kBits) ? 0 : (index >> kBits) - 1;
    const auto leading = static_cast<int64_t>(index - (shift << kBits));
    return (leading << shift) + ((int64_t{1} << shift) >> 1);
  }

  std::array<std::atomic<int64_t>, kBuckets> counts_ = {};
  std::atomic<int64_t> sum_{0};
  std::atomic<int64_t> max_{0};
};

}  // namespace qmatmul::client
