// Memory whose end is a wall: one byte past it faults.
//
// Why: a kernel that reads or writes beyond a ragged edge must be seen in every build, not only
// under a sanitizer (inline assembly escapes those).
//
// Thread-safety: as an array of bytes. Ownership: owns its pages; not movable, hold it by pointer.
//
// Invariants
//   1. data() + bytes() is the first byte of a page that cannot be touched; so is the page before
//   the
//      first page.
//   2. The bytes between the page's start and data() hold a pattern; IntactBefore() says whether
//   they
//      still do.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace qmatmul::test {

class GuardedBuffer {
 public:
  explicit GuardedBuffer(size_t bytes, uint8_t fill = 0xA5) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t body = (bytes + page - 1) / page * page;
    mapped_bytes_ = body + 2 * page;
    mapped_ = static_cast<std::byte*>(
        mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (mapped_ == MAP_FAILED) throw std::bad_alloc();
    first_ = mapped_ + page;
    if (body > 0 && mprotect(first_, body, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    data_ = first_ + (body - bytes);
    if (body > bytes) std::memset(first_, kPattern, body - bytes);
    if (bytes > 0) std::memset(data_, fill, bytes);
  }
  ~GuardedBuffer() { munmap(mapped_, mapped_bytes_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool IntactBefore() const {
    for (const std::byte* p = first_; p < data_; p++)
      if (*p != static_cast<std::byte>(kPattern)) return false;
    return true;
  }

 private:
  static constexpr int kPattern = 0x5C;
  size_t bytes_;
  size_t mapped_bytes_ = 0;
  std::byte* mapped_ = nullptr;
  std::byte* first_ = nullptr;
  std::byte* data_ = nullptr;
};

}  // namespace qmatmul::test
