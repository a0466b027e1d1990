// Freivalds' check of integer products (docs/numerics.md §7).
//
// Why: an int32 product can be checked far below its cost, so a bad core, a flipped bit or a wrong
// kernel is found while serving. With a secret r[n], kernels return c[m] = Σ_n acc[m][n]·r[n] mod
// 2^64; here it is worked out again from the unpacked activations and v[k] = Σ_n W[k][n]·r[n]. One
// wrong element is always caught; any error independent of r passes with probability < 2^-30.
//
// Thread-safety: built by one thread; sealed, it is immutable and shared freely.
//
// Invariants
//   1. r[n] is within [1, 2^31): a difference of one element, |d| < 2^32, cannot vanish modulo
//   2^64.
//   2. v comes from the plain weight, before packing, so a wrong packing is caught too.
//   3. r must stay secret from whoever sends activations, and never repeats between weights.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/matmul.h"
#include "kernels/quantize.h"

namespace qmatmul {

class CheckVectors {
 public:
  // Draws r from the system's random source. The memory is (8·k + 4·n) bytes.
  CheckVectors(int64_t k, int64_t n);
  // With a given r (tests, and a stored one), each within [1, 2^31).
  CheckVectors(int64_t k, std::vector<uint32_t> r);

  // Takes in W[k_begin + i][0 … n) for each line of `values`, [lines, n]; every element exactly
  // once over all calls of AddRows and AddColumns.
  void AddRows(int64_t k_begin, std::span<const int8_t> values);
  // Takes in W[0 … k)[n_begin + i] for each line of `values`, [lines, k].
  void AddColumns(int64_t n_begin, std::span<const int8_t> values);
  // Sums V and the checksum; nothing may be added after it.
  void Seal();

  std::span<const uint32_t> r() const { return r_; }
  // False when r or v changed since Seal: memory went bad, and the check would accuse a kernel
  // wrongly.
  bool Intact() const { return checksum_ == Checksum(); }

  // c[m] = Σ_k q[k]·v[k] - za·V mod 2^64 for one row of unpacked activations.
  uint64_t RowCheck(std::span<const int16_t> row, int32_t zero_point) const;

 private:
  uint64_t Checksum() const;

  std::vector<uint32_t> r_;
  std::vector<uint64_t> v_;
  uint64_t v_sum_ = 0;
  uint64_t checksum_ = 0;
};

// The first row whose check differs from what the kernel returned; none when all agree.
// row_checks.size() == activations.rows.
std::optional<int64_t> FirstWrongRow(const CheckVectors& vectors,
                                     const QuantizedActivations& activations,
                                     std::span<const uint64_t> row_checks);

}  // namespace qmatmul
