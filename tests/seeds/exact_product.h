// The exact int32 product in loops of its own, independent of the reference and fast enough for the
// seeds' large shapes: the compiler makes pairwise multiply-adds of int16 of it, which cannot saturate
// in 32 bits.
//
// Thread-safety: free functions; ExactProduct runs one more thread while it works.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "tests/support/random.h"
#include "tests/support/test_tensors.h"

namespace qmatmul::test {

inline std::vector<int8_t> RandomInt8(int64_t count, Random* random) {
  std::vector<int8_t> values(static_cast<size_t>(count));
  for (int8_t& v : values) v = static_cast<int8_t>(random->Next() >> 56);
  return values;
}

// [rows, columns] to [columns, rows].
inline std::vector<int8_t> Transposed(const std::vector<int8_t>& values, int64_t rows,
                                      int64_t columns) {
  std::vector<int8_t> result(values.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      result[static_cast<size_t>(c * rows + r)] = values[static_cast<size_t>(r * columns + c)];
  return result;
}

// a[m, k] times the transpose of w_nk[n, k].
inline std::vector<int32_t> ExactProduct(const std::vector<int8_t>& a,
                                         const std::vector<int8_t>& w_nk, int64_t m, int64_t k,
                                         int64_t n) {
  const std::vector<int16_t> left(a.begin(), a.end()), right(w_nk.begin(), w_nk.end());
  std::vector<int32_t> sums(static_cast<size_t>(m * n));
  const auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t j = 0; j < n; ++j) {
      const int16_t* w = right.data() + j * k;
      for (int64_t i = begin; i < end; ++i) {
        const int16_t* x = left.data() + i * k;
        int32_t sum = 0;
        for (int64_t p = 0; p < k; ++p) sum += x[p] * w[p];
        sums[static_cast<size_t>(i * n + j)] = sum;
      }
    }
  };
  std::thread half(rows, m / 2, m);
  rows(0, m / 2);
  half.join();
  return sums;
}

inline TestActivations Int8Rows(int64_t rows, int64_t k, const std::vector<int8_t>& values) {
  TestActivations a;
  a.dtype = DataType::kInt8;
  a.rows = rows;
  a.k = k;
  const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
  a.SetBytes({bytes, bytes + rows * k});
  return a;
}

}  // namespace qmatmul::test
