// What a device must be able to do for us: memory, copies, launches in order, and their end.
//
// Why a seam: CudaDevice and all it is made of is the same on a GPU (runtime_cuda.cu) and in tests on
// machines without one (runtime_emulated.h), where memory can be short and a device lost at will.
//
// Thread-safety: all methods may be called from any thread; the operations of one stream are issued by one
// thread at a time. Ownership: the caller frees what it allocated, before the Runtime goes.
//
// Invariant: an error of kLost is sticky: everything after it fails the same way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/kernel_table.h"

namespace qmatmul::cuda {

enum class ErrorKind : uint8_t { kNone, kOutOfMemory, kLost };
struct [[nodiscard]] Error {
  ErrorKind kind = ErrorKind::kNone;
  std::string message;
  bool ok() const { return kind == ErrorKind::kNone; }
};

struct RuntimeInfo {
  std::string id;                     // "cuda:0"
  std::string description;            // the device's own name
  std::vector<std::string> features;  // "sm_90", "driver_13.0"
  int64_t memory_bytes = 0;
  int multiprocessors = 1;
  // Blocks of memory are cut from pieces of this size; 0: each is a piece of its own, so that a guard page
  // can follow it.
  int64_t arena_piece_bytes = 0;
};

using Stream = void*;
using Graph = void*;

class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual const RuntimeInfo& info() const = 0;
  // Empty when this device can run it, else why not.
  virtual std::string WhyNot(KernelId id) const = 0;

  virtual Error Allocate(int64_t bytes, std::byte** memory) = 0;
  virtual void Free(std::byte* memory) = 0;
  // Host memory that copies run from and to at full speed.
  virtual Error AllocatePinned(int64_t bytes, std::byte** memory) = 0;
  virtual void FreePinned(std::byte* memory) = 0;

  virtual Error CreateStream(Stream* stream) = 0;
  virtual void DestroyStream(Stream stream) = 0;
  // These are done in order, after the call has returned; memory stays as it is until Synchronize.
  virtual Error Upload(Stream stream, std::byte* device, const std::byte* host, int64_t bytes) = 0;
  virtual Error Download(Stream stream, std::byte* host, const std::byte* device,
                         int64_t bytes) = 0;
  virtual Error Clear(Stream stream, std::byte* device, int64_t bytes) = 0;
  virtual Error CopyOnDevice(Stream stream, std::byte* to, const std::byte* from,
                             int64_t bytes) = 0;
  virtual Error Launch(Stream stream, const KernelLaunch& launch) = 0;
  // Waits, and says what the operations that `enqueue` adds to the stream took there.
  virtual Error Time(Stream stream, const std::function<Error()>& enqueue, double* ns) = 0;
  // Rows of `row_bytes`, a multiple of 16, for boxes of 128 bytes × 128 rows in a 128-byte swizzle.
  virtual Error DescribeRows(const unsigned char* data, int64_t rows, int64_t row_bytes,
                             TensorMap* map) = 0;
  // Records what `enqueue` puts on the stream; nothing of it is done. `graph` stays null where the device does
  // not record it; then it is to be done one by one.
  virtual Error Capture(Stream stream, const std::function<Error()>& enqueue, Graph* graph) = 0;
  // Does what was recorded, with the memory of then as it is now.
  virtual Error Replay(Stream stream, Graph graph) = 0;
  virtual void DestroyGraph(Graph graph) = 0;
  virtual Error Synchronize(Stream stream) = 0;
  // Makes a lost device usable again, by a new context. All its memory and streams were given back.
  virtual Error Reset() = 0;
};

// One for each device that this machine has; none is no error. `why_none` says why, when there is none.
std::vector<std::unique_ptr<Runtime>> OpenRuntimes(std::string* why_none);

}  // namespace qmatmul::cuda
