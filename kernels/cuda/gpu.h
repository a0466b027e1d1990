// One opened GPU: its runtime, its memory, whether it is lost, and the streams ("lanes") that work runs on.
//
// Why apart from CudaDevice: weights hold it too, so that their memory is given back rightly whichever goes
// first.
//
// Thread-safety: Gpu may be used from any thread; a Lane by the one thread that has taken it.
// Ownership: a Gpu is shared by the device and its weights; lanes belong to it. The runtime is shared by the
// Gpus that were made on it one after the other.
//
// Invariant: a Gpu that was closed touches the runtime no more, so that nothing of before a reset is given to
// what came after it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/cuda/arena.h"
#include "kernels/cuda/graph_cache.h"
#include "kernels/cuda/runtime.h"
#include "kernels/matmul.h"

namespace qmatmul::cuda {

// Memory that only grows; contents are not kept.
class Buffer {
 public:
  enum class Where : uint8_t { kDevice, kPinned };
  Buffer(Runtime* runtime, Arena* arena, Where where)
      : runtime_(runtime), arena_(arena), where_(where) {}
  ~Buffer() { Release(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  Error Reserve(int64_t bytes);
  void Release();
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Runtime* const runtime_;
  Arena* const arena_;
  const Where where_;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

struct Lane {
  explicit Lane(Runtime* runtime, Arena* arena);
  ~Lane();
  // A zeroed buffer's growth: what is new is zero as well.
  Error ReserveZeroed(Buffer* buffer, int64_t bytes);

  Runtime* const runtime;
  Stream stream = nullptr;
  Buffer host, device;  // what goes up and comes down, the same layout on both sides
  Buffer work;          // operands, intermediate results
  Buffer partial;       // sums of slices of K: all zero between launches
  Buffer tickets;       // likewise
  GraphCache graphs;
};

class Gpu {
 public:
  static constexpr int kLanes = 3;

  explicit Gpu(std::shared_ptr<Runtime> runtime);
  // Makes the lanes.
  Error Open();
  // The reverse, of a lost one: waits for those who hold lanes; then lanes and memory go, weights' too. Their
  // owners may still drop them.
  void Close();

  Runtime& runtime() { return *runtime_; }
  const std::shared_ptr<Runtime>& shared_runtime() const { return runtime_; }
  const RuntimeInfo& info() const { return runtime_->info(); }
  Arena& arena() { return arena_; }
  bool lost() const { return lost_time_ns() != 0; }
  // Unix time at which the loss was noticed, 0 before.
  int64_t lost_time_ns() const { return lost_time_ns_.load(std::memory_order_relaxed); }

  // Batches that were a captured graph done again.
  int64_t graph_runs() const { return graph_runs_.load(std::memory_order_relaxed); }
  void CountGraphRun() { graph_runs_.fetch_add(1, std::memory_order_relaxed); }

  // What a caller of Device is told; a sticky error is remembered. `memory_reason` and `what` are for a
  // lack of memory.
  Fault FaultOf(const Error& error, const char* memory_reason, const std::string& what);
  // Takes it for lost: what it needs is not to be had.
  void GiveUp(const std::string& why);
  // DEVICE_LOST when it is, else ok.
  Fault CheckLost();

  // Takes a lane, when one is free, and gives it back at its end. Null when the Gpu was closed meanwhile:
  // CheckLost says so.
  class Hold {
   public:
    explicit Hold(Gpu* gpu);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    Lane* operator->() const { return lane_; }
    Lane* get() const { return lane_; }
    explicit operator bool() const { return lane_ != nullptr; }

   private:
    Gpu* const gpu_;
    Lane* lane_;
  };

 private:
  const std::shared_ptr<Runtime> runtime_;
  Arena arena_;
  std::atomic<int64_t> lost_time_ns_ = 0;
  std::atomic<int64_t> graph_runs_ = 0;
  std::mutex mutex_;  // guards what follows
  std::condition_variable freed_;
  std::string lost_message_;
  bool closed_ = false;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<Lane*> free_;
};

}  // namespace qmatmul::cuda
