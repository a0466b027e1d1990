// The inputs that the seeds' authors named: numpy's legacy generator, drawn as numpy draws it.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace qmatmul::test {

// numpy.random.RandomState(seed).randint(low, high, dtype=int8), one tensor after the other from
// one generator. numpy takes bytes of each 32-bit draw, lowest first, masks them to the least power
// of two that covers the range and rejects what is over it; each call starts on a fresh draw.
class NumpyInt8 {
 public:
  explicit NumpyInt8(uint32_t seed) : generator_(seed) {}

  std::vector<int8_t> Draw(int64_t count, int low, int high) {
    const uint32_t range = static_cast<uint32_t>(high - 1 - low);
    uint32_t mask = 1;
    while (mask < range) mask = mask << 1 | 1;
    std::vector<int8_t> values;
    uint32_t buffer = 0;
    int left = 0;
    while (static_cast<int64_t>(values.size()) < count) {
      buffer = left == 0 ? static_cast<uint32_t>(generator_()) : buffer >> 8;
      left = left == 0 ? 3 : left - 1;
      if ((buffer & mask) <= range)
        values.push_back(static_cast<int8_t>(low + static_cast<int>(buffer & mask)));
    }
    return values;
  }

 private:
  std::mt19937 generator_;
};

}  // namespace qmatmul::test
