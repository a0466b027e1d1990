// Device memory in blocks, cut from larger pieces and kept for the next.
//
// Why: cudaMalloc and cudaFree wait for the whole device, so weights that come and go and scratch that grows
// must not call them; and what a weight holds is to be said to the byte.
//
// Thread-safety: all methods may be called from any thread. Ownership: the runtime outlives the arena; blocks
// are given back before it goes, or abandoned.
//
// Invariants
//   1. Blocks are multiples of kBlockBytes, and aligned to it.
//   2. Free neighbours are one; a piece without blocks goes back to the device, but for one that is kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

#include "kernels/cuda/runtime.h"

namespace qmatmul::cuda {

class Arena {
 public:
  static constexpr int64_t kBlockBytes = 256;

  explicit Arena(Runtime* runtime) : runtime_(runtime) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // What Allocate takes for `bytes`.
  static int64_t BlockBytes(int64_t bytes) {
    return (bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
  }
  Error Allocate(int64_t bytes, std::byte** memory);
  void Free(std::byte* memory);

  // Gives everything back, blocks that are in use too: freeing those later does nothing. From then on
  // Allocate fails, and the runtime is not asked any more.
  void Abandon();

  int64_t used_bytes() const;  // in blocks
  int64_t held_bytes() const;  // in pieces

 private:
  struct Piece {
    int64_t bytes = 0;
    std::map<int64_t, int64_t> free;  // offset to size
    bool whole() const { return free.size() == 1 && free.begin()->second == bytes; }
  };
  using Pieces = std::map<std::byte*, Piece>;

  // The smallest free block that fits; null when none does.
  std::byte* TakeFree(int64_t bytes);
  Error AddPiece(int64_t bytes);
  // Gives pieces without blocks back; `keep` of them stay.
  bool ReleaseWhole(int keep);

  Runtime* const runtime_;
  mutable std::mutex mutex_;
  Pieces pieces_;
  std::map<std::byte*, int64_t> blocks_;
  int64_t used_bytes_ = 0;
  int64_t held_bytes_ = 0;
  bool abandoned_ = false;
};

}  // namespace qmatmul::cuda
