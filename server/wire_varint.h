// The two things that protobuf's wire format is written with, for the files that write some of it by
// hand: varints, and the head of a length-delimited field.
//
// Thread-safety: free functions without shared state.
#pragma once

#include <cstdint>
#include <string>

namespace qmatmul {

inline void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

// Tag and length of a field of `bytes` bytes, which follow.
inline void AppendFieldHead(int field_number, int64_t bytes, std::string* out) {
  constexpr uint64_t kLengthDelimited = 2;
  AppendVarint(static_cast<uint64_t>(field_number) << 3 | kLengthDelimited, out);
  AppendVarint(static_cast<uint64_t>(bytes), out);
}

}  // namespace qmatmul
