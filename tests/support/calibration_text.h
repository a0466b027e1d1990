// Calibration files with costs of a test's own choosing, in the form that Calibration::Parse reads.
//
// Thread-safety: values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/cpu/calibration.h"

namespace qmatmul::test {

// `body` with the checksum that the reader will work out: FNV-1a, 64 bits.
inline std::string WithChecksum(const std::string& body) {
  uint64_t hash = 14695981039346656037ull;
  for (const char c : body) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  return body + "checksum " + std::to_string(hash) + '\n';
}

// The head of a file whose key is `key`: reading costs next to nothing, so that line_ns decides.
inline std::string CalibrationHead(std::string_view key) {
  return "qmatmul-calibration/3\n" + std::string(key) +
         "\nmachine 1000 0 0 1e9 1e9 1e9\n";  // call, finish, hand-over; L2, LLC and DRAM in GB/s
}

// One kernel whose every strip takes `line_ns` a line, whatever its height.
inline std::string CalibrationLine(std::string_view kernel, double line_ns) {
  std::string line =
      std::string(kernel) + " 0 0 0 4096 0 0 0 0";  // packing, three of streams, four of outliers
  for (int height = 0; height <= cpu::kStripRowsMax; ++height)
    line += ' ' + std::to_string(line_ns);
  return line + '\n';
}

}  // namespace qmatmul::test
