// A device made of host memory and fibers, for tests: the whole of CudaDevice runs on it.
//
// How it is unkind: operations happen only in Synchronize, so that nobody may look at a result too early;
// each allocation starts as rubbish and ends at a faulting page; memory runs out where a test says, and the
// device is lost after as many launches as it says.
//
// Thread-safety: as Runtime; the settings may be changed at any time.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/simt.h"

namespace qmatmul::cuda {

struct EmulatedOptions {
  int index = 0;
  simt::Order order = simt::Order::kForward;
  uint64_t seed = 0;
  int64_t memory_bytes = int64_t{4} << 30;
  int64_t arena_piece_bytes = 0;
};

class EmulatedRuntime : public Runtime {
 public:
  explicit EmulatedRuntime(const EmulatedOptions& options);
  ~EmulatedRuntime() override;

  const RuntimeInfo& info() const override { return info_; }
  std::string WhyNot(KernelId id) const override {
    return id == KernelId::kWgmma8 ? "wgmma is not emulated: it needs an sm_90a GPU" : "";
  }
  Error Allocate(int64_t bytes, std::byte** memory) override;
  void Free(std::byte* memory) override;
  Error AllocatePinned(int64_t bytes, std::byte** memory) override;
  void FreePinned(std::byte* memory) override;
  Error CreateStream(Stream* stream) override;
  void DestroyStream(Stream stream) override;
  Error Upload(Stream stream, std::byte* device, const std::byte* host, int64_t bytes) override;
  Error Download(Stream stream, std::byte* host, const std::byte* device, int64_t bytes) override;
  Error Clear(Stream stream, std::byte* device, int64_t bytes) override;
  Error CopyOnDevice(Stream stream, std::byte* to, const std::byte* from, int64_t bytes) override;
  Error Launch(Stream stream, const KernelLaunch& launch) override;
  Error Time(Stream stream, const std::function<Error()>& enqueue, double* ns) override;
  Error DescribeRows(const unsigned char* data, int64_t rows, int64_t row_bytes,
                     TensorMap* map) override;
  Error Capture(Stream stream, const std::function<Error()>& enqueue, Graph* graph) override;
  Error Replay(Stream stream, Graph graph) override;
  void DestroyGraph(Graph graph) override;
  Error Synchronize(Stream stream) override;
  Error Reset() override;

  // The device is lost at the launch after `launches` more; negative: never.
  void LoseAfter(int64_t launches) { launches_left_ = launches; }
  // Reset fails so often before it works.
  void SetFailingResets(int resets) { failing_resets_ = resets; }
  int resets() const { return resets_; }
  // As a driver that captures nothing.
  void SetCaptures(bool captures) { captures_ = captures; }
  int graphs() const { return graphs_; }
  int64_t replays() const { return replays_; }
  void SetMemoryBytes(int64_t bytes) { memory_bytes_ = bytes; }
  int64_t allocated_bytes() const { return allocated_bytes_; }
  int64_t launches() const { return launches_; }
  int64_t launches(KernelId id) const { return launches_of_[size_t(id)]; }

 private:
  struct Queue;
  using Recording = std::vector<std::function<void()>>;
  Error Lost() const;
  Error Enqueue(Stream stream, std::function<void()> operation);
  void Run(const KernelLaunch& launch);

  EmulatedOptions options_;
  RuntimeInfo info_;
  std::atomic<int64_t> memory_bytes_;
  std::atomic<int64_t> allocated_bytes_ = 0;
  std::atomic<int64_t> launches_left_ = -1;
  std::atomic<int64_t> launches_ = 0;
  std::array<std::atomic<int64_t>, kKernelCount> launches_of_ = {};
  std::atomic<bool> lost_ = false;
  std::atomic<int> failing_resets_ = 0, resets_ = 0, streams_ = 0, graphs_ = 0;
  std::atomic<int64_t> replays_ = 0;
  std::atomic<bool> captures_ = true;
  std::mutex mutex_;  // guards sizes_
  std::map<std::byte*, int64_t> sizes_;
};

}  // namespace qmatmul::cuda
