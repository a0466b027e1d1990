#include "server/reply_pool.h"

#include <array>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <new>

namespace qmatmul {
namespace {

constexpr size_t kLine = 64;
// Blocks come in eight sizes an octave, so that one is at most an eighth larger than it need be.
constexpr int kStepsPerOctave = 8;
constexpr int kOctaves = 48;
constexpr size_t kBlockMin = 512;

struct SizeClass {
  size_t index;
  size_t bytes;
};

SizeClass ClassOf(size_t bytes) {
  if (bytes <= kBlockMin) return {0, kBlockMin};
  const auto octave = static_cast<size_t>(std::bit_width(bytes - 1) - 1);  // 2^octave < bytes
  const size_t step = (size_t{1} << octave) / kStepsPerOctave;
  const size_t steps = (bytes - (size_t{1} << octave) + step - 1) / step;  // 1 … 8
  const auto first = static_cast<size_t>(std::bit_width(kBlockMin) - 1);
  return {(octave - first) * kStepsPerOctave + steps, (size_t{1} << octave) + steps * step};
}

}  // namespace

struct alignas(kLine) ReplyPool::Header {
  std::shared_ptr<Core> core;  // while the block is out
  Header* next = nullptr;      // while it is idle
  SizeClass size{};
};

class ReplyPool::Core {
 public:
  explicit Core(int64_t idle_bytes_max) : idle_bytes_max_(idle_bytes_max) {}
  ~Core() {
    for (Header* block : idle_) {
      while (block != nullptr) {
        Header* const next = block->next;
        Free(block);
        block = next;
      }
    }
  }

  Header* Take(const SizeClass& size) {
    {
      const std::lock_guard lock(mutex_);
      if (Header* const block = idle_[size.index]; block != nullptr) {
        idle_[size.index] = block->next;
        idle_bytes_ -= static_cast<int64_t>(size.bytes);
        return block;
      }
    }
    void* const memory = std::aligned_alloc(kLine, sizeof(Header) + kHeadBytes + size.bytes);
    if (memory == nullptr) return nullptr;
    auto* const block = new (memory) Header;
    block->size = size;
    return block;
  }

  void Give(Header* block) {
    const auto bytes = static_cast<int64_t>(block->size.bytes);
    {
      const std::lock_guard lock(mutex_);
      if (idle_bytes_ + bytes <= idle_bytes_max_) {
        block->next = idle_[block->size.index];
        idle_[block->size.index] = block;
        idle_bytes_ += bytes;
        return;
      }
    }
    Free(block);
  }

  int64_t idle_bytes() const {
    const std::lock_guard lock(mutex_);
    return idle_bytes_;
  }

 private:
  static void Free(Header* block) {
    block->~Header();
    std::free(block);
  }

  const int64_t idle_bytes_max_;
  mutable std::mutex mutex_;  // guards what follows
  std::array<Header*, size_t{kOctaves} * kStepsPerOctave> idle_{};
  int64_t idle_bytes_ = 0;
};

ReplyPool::ReplyPool(int64_t idle_bytes_max) : core_(std::make_shared<Core>(idle_bytes_max)) {}
ReplyPool::~ReplyPool() = default;

ReplyPool::Block ReplyPool::Take(int64_t bytes) {
  Header* const block = core_->Take(ClassOf(static_cast<size_t>(bytes)));
  if (block != nullptr) block->core = core_;
  return Block(block);
}

void ReplyPool::Release(Header* block) {
  // The last block out may be the last to know the pool.
  const std::shared_ptr<Core> core = std::move(block->core);
  core->Give(block);
}

std::byte* ReplyPool::Data(Header* block) {
  static_assert(kHeadBytes % kLine == 0);
  return reinterpret_cast<std::byte*>(block + 1) + kHeadBytes;
}

int64_t ReplyPool::idle_bytes() const { return core_->idle_bytes(); }

}  // namespace qmatmul
