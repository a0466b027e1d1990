#include "kernels/top_k.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>

namespace qmatmul {
namespace {

// Values looked at together: enough to make the look worth a branch, few enough that a hit costs little.
constexpr int64_t kBlock = 64;
// Room for candidates beyond k, at least. The threshold rises only when it is full: with much more, a small k
// would let a hundredth of all values pass; with much less, it would be thinned again and again at the start.
constexpr int64_t kRoomMin = 64;

template <typename T>
T Load(const std::byte* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// An int32 of the same order. Floats are sign and magnitude: a negative one counts down from 0, where
// both zeros meet.
struct IntegerOrder {
  static int32_t Of(int32_t value) { return value; }
};
template <typename Bits, uint32_t kSign>
struct FloatOrder {
  static int32_t Of(Bits bits) {
    const auto magnitude = static_cast<int32_t>(bits & (kSign - 1));
    const int32_t negative = -static_cast<int32_t>((bits & kSign) != 0);
    return (magnitude ^ negative) - negative;
  }
};

// Greater order first, then lower column, as one number.
uint64_t CandidateOf(int32_t order, int64_t column) {
  const uint32_t high = static_cast<uint32_t>(order) ^ 0x8000'0000u;
  return uint64_t{high} << 32 | ~static_cast<uint32_t>(column);
}
int32_t OrderOf(uint64_t candidate) {
  return static_cast<int32_t>(static_cast<uint32_t>(candidate >> 32) ^ 0x8000'0000u);
}
int64_t ColumnOf(uint64_t candidate) { return ~static_cast<uint32_t>(candidate); }

// A value above a threshold that is not negative is not negative itself, and such bits are their own
// order: as signed integers of the type's width they compare as they lie in memory, many at once.
template <typename T, typename Order>
bool AnyAbove(const std::byte* row, int64_t begin, int32_t threshold) {
  using Signed = std::make_signed_t<T>;
  T values[kBlock];
  std::memcpy(values, row + begin * static_cast<int64_t>(sizeof(T)), sizeof values);
  if (threshold >= 0) {
    Signed above = 0;
    for (const T value : values)
      above |= static_cast<Signed>(static_cast<Signed>(value) > static_cast<Signed>(threshold));
    return above != 0;
  }
  int32_t above = 0;
  for (const T value : values) above |= static_cast<int32_t>(Order::Of(value) > threshold);
  return above != 0;
}

// Leaves the k best at the front, in any order, and returns the order of the least of them: a later
// value must exceed it, since of equal ones the lower column wins.
int32_t Thin(std::vector<uint64_t>* candidates, int64_t k) {
  const auto last = candidates->begin() + (k - 1);
  std::nth_element(candidates->begin(), last, candidates->end(), std::greater<>());
  candidates->resize(static_cast<size_t>(k));
  return OrderOf(candidates->back());
}

template <typename T, typename Order>
void Collect(const std::byte* row, int64_t n, int64_t k, std::vector<uint64_t>* candidates) {
  const auto room = static_cast<size_t>(std::min(n, k + std::max(k, kRoomMin)));
  candidates->clear();
  candidates->reserve(room);
  int64_t threshold =
      std::numeric_limits<int64_t>::min();  // below every order until the first thinning
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, n);
    if (threshold >= std::numeric_limits<int32_t>::min() && end - begin == kBlock &&
        !AnyAbove<T, Order>(row, begin, static_cast<int32_t>(threshold)))
      continue;
    for (int64_t i = begin; i < end; ++i) {
      const int32_t order = Order::Of(Load<T>(row, i));
      if (order <= threshold) continue;
      if (candidates->size() == room) {
        threshold = Thin(candidates, k);
        if (order <= threshold) continue;
      }
      candidates->push_back(CandidateOf(order, i));
    }
  }
  if (static_cast<int64_t>(candidates->size()) > k) Thin(candidates, k);
  std::sort(candidates->begin(), candidates->end(), std::greater<>());
}

}  // namespace

void SelectTopK(const std::byte* row, DataType dtype, int64_t n, int64_t k, std::byte* values,
                std::byte* columns, std::vector<uint64_t>* scratch) {
  assert(1 <= k && k <= n);
  switch (dtype) {
    case DataType::kInt8: Collect<int8_t, IntegerOrder>(row, n, k, scratch); break;
    case DataType::kInt16: Collect<int16_t, IntegerOrder>(row, n, k, scratch); break;
    case DataType::kInt32: Collect<int32_t, IntegerOrder>(row, n, k, scratch); break;
    case DataType::kF32:
      Collect<uint32_t, FloatOrder<uint32_t, 0x8000'0000u>>(row, n, k, scratch);
      break;
    default: Collect<uint16_t, FloatOrder<uint16_t, 0x8000u>>(row, n, k, scratch); break;
  }
  const size_t bytes = static_cast<size_t>(BitsOf(dtype) / 8);
  for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
    const auto column = static_cast<int32_t>(ColumnOf((*scratch)[i]));
    std::memcpy(values + i * bytes, row + static_cast<size_t>(column) * bytes, bytes);
    std::memcpy(columns + i * 4, &column, 4);
  }
}

}  // namespace qmatmul
