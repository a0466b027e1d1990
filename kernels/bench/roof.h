// What this machine could do at best: the integer-dot rate of registers only, and the bandwidth of
// reading memory. A benchmark's share of the roof is its GOPS over the lower of the two for its
// shape.
//
// Measured in the run that uses it, on the clock that the run uses, since machines differ by the
// day.
#pragma once

#include <cstdint>
#include <map>
#include <string_view>

namespace qmatmul::bench {

// The exact integer-dot sequence of a kernel's instruction set, on registers only and on one thread. A contender
// like the others: processors lower their clock under wide instructions, so only what ran beside the product says
// what it could have reached.
class Peak {
 public:
  explicit Peak(std::string_view kernel);
  bool is_known() const { return work_ != nullptr; }
  // `count` times so many operations; nanoseconds of one time.
  double Run(int count);
  double ops() const { return ops_; }

 private:
  static constexpr int64_t kIterations = 20'000;
  double (*work_)(int64_t iterations) = nullptr;  // returns multiply-accumulates
  double ops_ = 0;
};

class Roof {
 public:
  explicit Roof(int threads) : threads_(threads) {}

  // GB/s of reading `bytes` again and again, for all threads together.
  double ReadGBps(int64_t bytes);

 private:
  int threads_;
  std::map<int64_t, double> reads_;
};

// Nanoseconds that the calling process was on a CPU (one thread: not disturbed by others on a
// shared machine) or of wall time (several threads).
int64_t BenchClockNs(int threads);

}  // namespace qmatmul::bench
