#include "kernels/verify.h"

#include <cassert>
#include <random>

namespace qmatmul {
namespace {

std::vector<uint32_t> DrawCheckVector(int64_t n) {
  std::random_device device;
  std::vector<uint32_t> r(static_cast<size_t>(n));
  for (uint32_t& value : r) {
    do value = static_cast<uint32_t>(device()) & 0x7fff'ffff;
    while (value == 0);
  }
  return r;
}

// A signed factor wraps into arithmetic modulo 2^64.
uint64_t Wrap(int64_t value) { return static_cast<uint64_t>(value); }

}  // namespace

CheckVectors::CheckVectors(int64_t k, int64_t n) : CheckVectors(k, DrawCheckVector(n)) {}

CheckVectors::CheckVectors(int64_t k, std::vector<uint32_t> r)
    : r_(std::move(r)), v_(static_cast<size_t>(k), 0) {
  for ([[maybe_unused]] uint32_t value : r_) assert(value >= 1 && value < (uint32_t{1} << 31));
}

void CheckVectors::AddRows(int64_t k_begin, std::span<const int8_t> values) {
  const size_t lines = values.size() / r_.size();
  assert(lines * r_.size() == values.size() && static_cast<size_t>(k_begin) + lines <= v_.size());
  for (size_t line = 0; line < lines; line++) {
    uint64_t sum = 0;
    for (size_t n = 0; n < r_.size(); n++) sum += Wrap(values[line * r_.size() + n]) * r_[n];
    v_[static_cast<size_t>(k_begin) + line] += sum;
  }
}

void CheckVectors::AddColumns(int64_t n_begin, std::span<const int8_t> values) {
  const size_t lines = values.size() / v_.size();
  assert(lines * v_.size() == values.size() && static_cast<size_t>(n_begin) + lines <= r_.size());
  for (size_t line = 0; line < lines; line++) {
    const uint64_t factor = r_[static_cast<size_t>(n_begin) + line];
    for (size_t k = 0; k < v_.size(); k++) v_[k] += Wrap(values[line * v_.size() + k]) * factor;
  }
}

void CheckVectors::Seal() {
  v_sum_ = 0;
  for (uint64_t value : v_) v_sum_ += value;
  checksum_ = Checksum();
}

// Each step is a bijection of the state for a given word, so a change of any single word shows.
uint64_t CheckVectors::Checksum() const {
  uint64_t state = 0x9e37'79b9'7f4a'7c15;  // arbitrary, odd
  const auto mix = [&](uint64_t word) {
    state = (state ^ word) * 0xd6e8'feb8'6659'fd93;
    state ^= state >> 32;
  };
  for (uint32_t value : r_) mix(value);
  for (uint64_t value : v_) mix(value);
  mix(v_sum_);
  return state;
}

uint64_t CheckVectors::RowCheck(std::span<const int16_t> row, int32_t zero_point) const {
  assert(row.size() == v_.size());
  uint64_t sum = 0;
  for (size_t k = 0; k < row.size(); k++) sum += Wrap(row[k]) * v_[k];
  return sum - Wrap(zero_point) * v_sum_;
}

std::optional<int64_t> FirstWrongRow(const CheckVectors& vectors,
                                     const QuantizedActivations& activations,
                                     std::span<const uint64_t> row_checks) {
  assert(static_cast<int64_t>(row_checks.size()) == activations.rows);
  const size_t k = static_cast<size_t>(activations.k);
  for (size_t m = 0; m < row_checks.size(); m++) {
    const std::span<const int16_t> row(activations.values.data() + m * k, k);
    if (vectors.RowCheck(row, activations.zero_points[m]) != row_checks[m])
      return static_cast<int64_t>(m);
  }
  return std::nullopt;
}

}  // namespace qmatmul
