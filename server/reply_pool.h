// Memory for replies: blocks that the kernels write into and gRPC sends from, taken back when the
// transport is done with them.
//
// Why a pool: a reply of some MiB that is allocated and freed for each call costs page faults on
// every page of it, each time.
//
// Thread-safety: all methods may be called from any thread. Ownership: a block may outlive the pool
// and the server (gRPC drops slices when it likes); what the pool keeps idle is freed with the last
// of both.
//
// Invariants
//   1. A block's memory starts on a cache line and has room for what was asked.
//   2. Idle blocks never hold more than idle_bytes_max.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace qmatmul {

class ReplyPool {
 public:
  class Core;
  struct Header;
  // Gives a block back: Release(block.release()) is what a slice's deleter calls.
  static void Release(Header* block);
  struct Releaser {
    void operator()(Header* block) const { Release(block); }
  };
  // A block, as its header; Data is its memory.
  using Block = std::unique_ptr<Header, Releaser>;
  static std::byte* Data(Header* block);

  explicit ReplyPool(int64_t idle_bytes_max);
  ~ReplyPool();
  ReplyPool(const ReplyPool&) = delete;
  ReplyPool& operator=(const ReplyPool&) = delete;

  // So many bytes before a block's data are its holder's too, for what goes in front of it.
  static constexpr size_t kHeadBytes = 448;

  // Null when memory is short.
  Block Take(int64_t bytes);
  int64_t idle_bytes() const;

 private:
  const std::shared_ptr<Core> core_;
};

}  // namespace qmatmul
