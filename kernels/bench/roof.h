// What this machine could do at best: the integer-dot rate of registers only, and the bandwidth of
// reading memory. A benchmark's share of the roof is its GOPS over the lower of the two for its
// shape.
//
// Measured in the run that uses it, on the clock that the run uses, since machines differ by the
// day.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace qmatmul::bench {

class Roof {
 public:
  explicit Roof(int threads) : threads_(threads) {}

  // GOPS of the exact integer-dot sequence of a kernel's instruction set, for all threads together;
  // 0 when there is no loop for that instruction set here.
  double PeakGops(const std::string& kernel);
  // GB/s of reading `bytes` again and again, for all threads together.
  double ReadGBps(int64_t bytes);
  // The lower of the peak and of what reading the weight once a call allows.
  double Gops(const std::string& kernel, int64_t m, int64_t k, int64_t n);

 private:
  int threads_;
  std::map<std::string, double> peaks_;
  std::map<int64_t, double> reads_;
};

// Nanoseconds that the calling process was on a CPU (one thread: not disturbed by others on a
// shared machine) or of wall time (several threads).
int64_t BenchClockNs(int threads);

}  // namespace qmatmul::bench
