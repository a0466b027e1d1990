#include "server/wire_split.h"

#include <algorithm>

#include "server/wire_varint.h"

namespace qmatmul {
namespace {

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

constexpr int kTagBytesMax = 5;
constexpr int kVarintBytesMax = 10;
// What protobuf takes as a length at most.
constexpr uint64_t kLengthMax = INT32_MAX;

// Reads bytes that lie in pieces.
class Reader {
 public:
  explicit Reader(std::span<const ByteSpan> pieces) : pieces_(pieces) {
    for (const ByteSpan& piece : pieces) left_ += piece.bytes;
    SkipEmpty();
  }

  size_t left() const { return left_; }

  // Over-long forms are read as protobuf reads them; bits beyond 64 are dropped.
  bool ReadVarint(int bytes_max, uint64_t* value) {
    *value = 0;
    for (int i = 0; i < bytes_max && left_ > 0; ++i) {
      const auto byte = static_cast<uint64_t>(pieces_[index_].data[offset_]);
      Advance(1);
      *value |= (byte & 0x7f) << (7 * i);
      if (byte < 0x80) return true;
    }
    return false;
  }

  // `take` gets each stretch of the next `bytes` bytes, which must be there.
  template <class Take>
  void Read(size_t bytes, Take take) {
    while (bytes > 0) {
      const ByteSpan& piece = pieces_[index_];
      const size_t n = std::min(bytes, piece.bytes - offset_);
      take(ByteSpan{piece.data + offset_, n});
      Advance(n);
      bytes -= n;
    }
  }

 private:
  void Advance(size_t bytes) {
    offset_ += bytes;
    left_ -= bytes;
    SkipEmpty();
  }
  void SkipEmpty() {
    while (index_ < pieces_.size() && offset_ == pieces_[index_].bytes) {
      ++index_;
      offset_ = 0;
    }
  }

  std::span<const ByteSpan> pieces_;
  size_t index_ = 0;
  size_t offset_ = 0;
  size_t left_ = 0;
};

class Splitter {
 public:
  Splitter(std::span<const ByteSpan> message, SplitMessage* split)
      : reader_(message), split_(split) {}

  // The fields from here to where `end` bytes are left.
  bool Split(size_t end, std::span<const uint32_t> path, std::string* out) {
    while (reader_.left() > end) {
      uint64_t tag = 0;
      if (!reader_.ReadVarint(kTagBytesMax, &tag) || reader_.left() < end) return false;
      if (tag > UINT32_MAX || tag >> 3 == 0) return false;
      if (!SplitField(static_cast<uint32_t>(tag), end, path, out)) return false;
    }
    return reader_.left() == end;
  }

 private:
  bool SplitField(uint32_t tag, size_t end, std::span<const uint32_t> path, std::string* out) {
    switch (tag & 7) {
      case kVarint: return CopyVarint(tag, end, out);
      case kFixed64: return Copy(tag, 8, end, out);
      case kFixed32: return Copy(tag, 4, end, out);
      case kLengthDelimited: return SplitDelimited(tag, end, path, out);
      default: return false;  // groups, and types that do not exist
    }
  }

  bool CopyVarint(uint32_t tag, size_t end, std::string* out) {
    uint64_t value = 0;
    if (!reader_.ReadVarint(kVarintBytesMax, &value) || reader_.left() < end) return false;
    AppendVarint(tag, out);
    AppendVarint(value, out);
    return true;
  }

  bool Copy(uint32_t tag, size_t bytes, size_t end, std::string* out) {
    if (reader_.left() - end < bytes) return false;
    AppendVarint(tag, out);
    reader_.Read(bytes,
                 [&](ByteSpan s) { out->append(reinterpret_cast<const char*>(s.data), s.bytes); });
    return true;
  }

  bool SplitDelimited(uint32_t tag, size_t end, std::span<const uint32_t> path, std::string* out) {
    uint64_t length = 0;
    if (!reader_.ReadVarint(kTagBytesMax, &length) || length > kLengthMax) return false;
    if (reader_.left() < end || reader_.left() - end < length) return false;
    if (tag >> 3 != path.front()) {
      AppendVarint(tag, out);
      AppendVarint(length, out);
      reader_.Read(
          length, [&](ByteSpan s) { out->append(reinterpret_cast<const char*>(s.data), s.bytes); });
      return true;
    }
    if (path.size() == 1) {
      split_->payload.clear();
      split_->payload_bytes = static_cast<int64_t>(length);
      split_->has_payload = true;
      reader_.Read(length, [&](ByteSpan s) { split_->payload.push_back(s); });
      return true;
    }
    std::string inner;
    if (!Split(reader_.left() - length, path.subspan(1), &inner)) return false;
    AppendVarint(tag, out);
    AppendVarint(inner.size(), out);
    out->append(inner);
    return true;
  }

  Reader reader_;
  SplitMessage* const split_;
};

}  // namespace

void SplitMessage::Clear() {
  envelope.clear();
  payload.clear();
  payload_bytes = 0;
  has_payload = false;
}

bool SplitPayload(std::span<const ByteSpan> message, std::span<const uint32_t> path,
                  SplitMessage* split) {
  split->Clear();
  return Splitter(message, split).Split(0, path, &split->envelope);
}

}  // namespace qmatmul
