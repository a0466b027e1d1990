#include "kernels/cuda/arena.h"

#include <algorithm>
#include <cassert>

namespace qmatmul::cuda {

Arena::~Arena() {
  assert(blocks_.empty());
  ReleaseWhole(0);
}

std::byte* Arena::TakeFree(int64_t bytes) {
  Piece* best_piece = nullptr;
  std::byte* best_base = nullptr;
  auto best = std::map<int64_t, int64_t>::iterator();
  for (auto& [base, piece] : pieces_)
    for (auto it = piece.free.begin(); it != piece.free.end(); ++it) {
      if (it->second < bytes || (best_piece != nullptr && best->second <= it->second)) continue;
      best_piece = &piece;
      best_base = base;
      best = it;
    }
  if (best_piece == nullptr) return nullptr;
  const auto [offset, size] = *best;
  best_piece->free.erase(best);
  if (size > bytes) best_piece->free[offset + bytes] = size - bytes;
  return best_base + offset;
}

Error Arena::AddPiece(int64_t bytes) {
  const int64_t usual = runtime_->info().arena_piece_bytes;
  int64_t size = std::max(bytes, usual);
  std::byte* base = nullptr;
  Error error = runtime_->Allocate(size, &base);
  if (error.kind == ErrorKind::kOutOfMemory && ReleaseWhole(0))
    error = runtime_->Allocate(size, &base);
  if (error.kind == ErrorKind::kOutOfMemory && size > bytes) {
    size = bytes;  // the last corner
    error = runtime_->Allocate(size, &base);
  }
  if (!error.ok()) return error;
  pieces_[base] = {size, {{0, size}}};
  held_bytes_ += size;
  return {};
}

Error Arena::Allocate(int64_t bytes, std::byte** memory) {
  bytes = BlockBytes(std::max<int64_t>(bytes, 1));
  std::lock_guard lock(mutex_);
  if (abandoned_) return {ErrorKind::kLost, "its memory went when the device was lost"};
  *memory = TakeFree(bytes);
  if (*memory == nullptr) {
    if (Error error = AddPiece(bytes); !error.ok()) return error;
    *memory = TakeFree(bytes);
  }
  blocks_[*memory] = bytes;
  used_bytes_ += bytes;
  return {};
}

void Arena::Free(std::byte* memory) {
  if (memory == nullptr) return;
  std::lock_guard lock(mutex_);
  if (abandoned_) return;
  const auto block = blocks_.find(memory);
  assert(block != blocks_.end());
  const int64_t bytes = block->second;
  blocks_.erase(block);
  used_bytes_ -= bytes;
  const auto owner = std::prev(pieces_.upper_bound(memory));
  auto& free = owner->second.free;
  auto at = free.emplace(memory - owner->first, bytes).first;
  if (const auto next = std::next(at);
      next != free.end() && at->first + at->second == next->first) {
    at->second += next->second;
    free.erase(next);
  }
  if (at != free.begin()) {
    const auto before = std::prev(at);
    if (before->first + before->second == at->first) {
      before->second += at->second;
      free.erase(at);
    }
  }
  ReleaseWhole(runtime_->info().arena_piece_bytes > 0 ? 1 : 0);
}

bool Arena::ReleaseWhole(int keep) {
  bool released = false;
  for (auto it = pieces_.begin(); it != pieces_.end();) {
    const bool usual = it->second.bytes <= runtime_->info().arena_piece_bytes;
    if (!it->second.whole() || (usual && keep-- > 0)) {
      ++it;
      continue;
    }
    runtime_->Free(it->first);
    held_bytes_ -= it->second.bytes;
    it = pieces_.erase(it);
    released = true;
  }
  return released;
}

void Arena::Abandon() {
  std::lock_guard lock(mutex_);
  for (const auto& [base, piece] : pieces_) runtime_->Free(base);
  pieces_.clear();
  blocks_.clear();
  used_bytes_ = held_bytes_ = 0;
  abandoned_ = true;
}

int64_t Arena::used_bytes() const {
  std::lock_guard lock(mutex_);
  return used_bytes_;
}

int64_t Arena::held_bytes() const {
  std::lock_guard lock(mutex_);
  return held_bytes_;
}

}  // namespace qmatmul::cuda
