// A Device for tests: the plain product in a loop, any predicted time, and a gate that holds Runs
// back.
//
// Thread-safety: as Device asks; the knobs may be turned while Runs are going on.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace qmatmul {

class FakeDevice final : public Device {
 public:
  explicit FakeDevice(std::string id = "cpu", std::string kind = "cpu");

  // --- Knobs. ---
  std::atomic<int64_t> predicted_ns{1'000'000};
  std::atomic<bool> refuse_int4{true};
  // As if it were gone: Runs fail when they are done, uploads at once.
  std::atomic<bool> lost{false};
  // Whether it can be opened anew: then what it held before stays lost.
  std::atomic<bool> comes_back{false};
  // Bytes that its packers may still take, all together; what is more is refused for want of memory.
  std::atomic<int64_t> upload_bytes_left{int64_t{1} << 40};
  // Runs end for want of memory.
  std::atomic<bool> scratch_is_short{false};
  // Runs of the whole team wait at the gate while it is closed; those of one thread pass.
  void CloseGate();
  void OpenGate();
  // Blocks until `count` Runs have begun since the start.
  void AwaitRuns(int count);

  // --- What happened. ---
  std::atomic<int> runs{0};          // begun
  std::atomic<int> threads_max{-1};  // of the last Run
  std::atomic<int> packed_alive{0};  // PackedWeights not yet freed
  std::atomic<int> rearms{0};        // attempts to open it anew
  std::atomic<int> returns{0};       // those that did

  const DeviceInfo& info() const override { return info_; }
  std::vector<KernelInfo> Kernels() const override;
  Fault StartPack(const WeightSpec& spec, std::unique_ptr<Packer>* packer) override;
  Fault Unpack(const PackedWeight& weight, int64_t k_begin, int64_t k_end,
               std::span<int8_t> out) const override;
  Fault ReadUpload(const PackedWeight& weight, int64_t begin,
                   std::span<std::byte> out) const override;
  Fault Run(const Work& work, RunReport* report) override;
  std::vector<KernelChoice> Explain(int64_t rows,
                                    std::span<const std::shared_ptr<const PackedWeight>> weights,
                                    Arithmetic arithmetic, std::string_view forced) const override;
  int64_t PredictNs(int64_t rows, const PackedWeight& weight, Arithmetic arithmetic,
                    int threads) const override;
  std::vector<QuarantineInfo> Quarantined() const override;
  bool Rearm(std::string_view key) override;

 private:
  DeviceInfo info_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
};

// Its kernels: one that works, one this machine lacks, one disabled.
inline constexpr char kFakeKernel[] = "cpu.fake.s8s8s32.1x1x1";
inline constexpr char kFakeKernelUnsupported[] = "cpu.fake512.s8s8s32.8x32x4";
inline constexpr char kFakeKernelDisabled[] = "cpu.fakeoff.s8s8s32.4x4x4";

}  // namespace qmatmul
