// A GPU as a Device: weights in its memory, kernels of kernels/cuda/, three lanes of work that overlap.
//
// Thread-safety: as Device says; Runs beyond the lanes wait for one.
//
// Invariants
//   1. A kernel serves only after it gave the reference's bytes here, at the start (self-test). One that loses
//      the device there is not offered again, and the device is made anew.
//   2. A lost device (an error that the CUDA runtime repeats from then on) answers DEVICE_LOST to everything;
//      what it was computing is void, and its weights are lost for good. Rearm resets it and opens it anew, for
//      weights that come then.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/cuda/batch.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/kernel_choice.h"
#include "kernels/device.h"
#include "kernels/devices.h"

namespace qmatmul::cuda {

class CudaDevice final : public Device {
 public:
  // Null when the GPU cannot be used, with the reason.
  static std::unique_ptr<CudaDevice> Open(std::unique_ptr<Runtime> runtime,
                                          const DeviceOptions& options, std::string* why_not);

  const DeviceInfo& info() const override { return info_; }
  std::vector<KernelInfo> Kernels() const override { return choices_.list().kernels(); }
  Fault StartPack(const WeightSpec& spec, std::unique_ptr<Packer>* packer) override;
  Fault Unpack(const PackedWeight& weight, int64_t k_begin, int64_t k_end,
               std::span<int8_t> out) const override;
  Fault Run(const Work& work, RunReport* report) override;
  std::vector<KernelChoice> Explain(int64_t rows,
                                    std::span<const std::shared_ptr<const PackedWeight>> weights,
                                    Arithmetic arithmetic, std::string_view forced) const override;
  int64_t PredictNs(int64_t rows, const PackedWeight& weight, Arithmetic arithmetic,
                    int threads) const override;
  // A lost device: all of its kernels, under the device's own name.
  std::vector<QuarantineInfo> Quarantined() const override;
  void Quarantine(std::string_view kernel, int64_t rows, std::string_view reason) override {
    choices_.list().Quarantine(kernel, rows, reason);
  }
  bool Rearm(std::string_view key) override {
    return key == info_.id ? Reopen() : choices_.list().Rearm(key);
  }

  // As it is now; another one after the device was opened anew.
  std::shared_ptr<Gpu> gpu() const {
    const std::lock_guard lock(gpu_mutex_);
    return gpu_;
  }

 private:
  CudaDevice(std::shared_ptr<Gpu> gpu, const DeviceOptions& options,
             std::span<const std::string> broken);
  // Puts aside what gives other bytes. Ok, or why a kernel could not be asked, and which.
  Fault ProveKernels(std::string* unproved);
  // Puts `kernel` aside for these rows if it gave wrong bytes; what else kept it from its proof.
  Fault Judge(const Fault& proof, std::string_view kernel, int64_t rows);
  // False when it is not lost, or still is.
  bool Reopen();
  // That `weight` is held by `gpu`; DEVICE_LOST or LAYOUT_MISMATCH when it is not.
  Fault CheckHeld(const PackedWeight& weight, const Gpu& gpu) const;
  // The forced kernel, or the best; `layout` is the weight's.
  Fault ChooseOne(const ProductSize& size, std::string_view layout, std::string_view forced,
                  KernelChoices::Choice* choice) const;
  // The weights are this GPU's, and each has a kernel.
  Fault Choose(const Work& work, const Gpu& gpu, int64_t rows, std::vector<StepKernels>* kernels,
               RunReport* report) const;
  // Run; where `launches_ns` is not null, that receives what the launches took on the device.
  Fault RunTimed(const Work& work, RunReport* report, double* launches_ns);
  Fault RunTiles(const Work& work, std::span<const StepKernels> kernels, Gpu* gpu, int64_t rows,
                 RunReport* report, double* launches_ns);

  std::mutex reopen_mutex_;       // one attempt at a time
  mutable std::mutex gpu_mutex_;  // guards gpu_
  std::shared_ptr<Gpu> gpu_;
  DeviceInfo info_;
  KernelChoices choices_;
};

// Every GPU of this machine; none without a driver. `why_none` says why there is none; it stays empty where
// configuration disables all kernels, for then none is wanted.
std::vector<std::unique_ptr<Device>> OpenCudaDevices(const DeviceOptions& options,
                                                     std::string* why_none);

}  // namespace qmatmul::cuda
