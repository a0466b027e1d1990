// What the CUDA kernels take on the device alone: rows and weights lie there, times come from events, and
// nothing is copied in between. Beside them cuBLASLt, where its library is installed, and torch._int_mm, where
// Python has torch.
//
// Weights are rotated so that at least 256 MiB are read before one comes again: a weight that stays in the L2
// cache says nothing about memory.
//
// Thread-safety: one thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace qmatmul::bench {

struct DeviceTimeSettings {
  std::vector<std::array<int64_t, 3>> shapes;  // m, k, n; empty: those of the goals
  std::string kernel;                          // empty: every kernel that fits
  std::string python;                          // the interpreter that may have torch
  bool json = false;
};

// Prints a line for each shape and kernel; the exit status. 3: there is no GPU, or no CUDA in this build.
int PrintDeviceTimes(const DeviceTimeSettings& settings);

}  // namespace qmatmul::bench
