// Random int8 data for benchmarks and self-tests, from a fixed seed so that two runs see the same.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace qmatmul::cli {

inline std::vector<int8_t> RandomInt8(size_t count, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<int8_t> values(count);
  for (int8_t& value : values) value = static_cast<int8_t>(generator() >> 56);
  return values;
}

}  // namespace qmatmul::cli
