// A GPU as a Device: weights in its memory, kernels of kernels/cuda/, three lanes of work that overlap.
//
// Thread-safety: as Device says; Runs beyond the lanes wait for one.
//
// Invariants
//   1. A kernel serves only after it gave the reference's bytes here, at the start (self-test). One that loses
//      the device there is not offered again, and the device is made anew.
//   2. A lost device (an error that the CUDA runtime repeats from then on) answers DEVICE_LOST to everything;
//      what it was computing is void.
#pragma once

#include <memory>
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
  std::vector<KernelInfo> Kernels() const override;
  Fault StartPack(const WeightSpec& spec, std::unique_ptr<Packer>* packer) override;
  Fault Unpack(const PackedWeight& weight, int64_t k_begin, int64_t k_end,
               std::span<int8_t> out) const override;
  Fault Run(const Work& work, RunReport* report) override;
  std::vector<KernelChoice> Explain(int64_t rows,
                                    std::span<const std::shared_ptr<const PackedWeight>> weights,
                                    Arithmetic arithmetic, std::string_view forced) const override;
  int64_t PredictNs(int64_t rows, const PackedWeight& weight, Arithmetic arithmetic,
                    int threads) const override;
  std::vector<QuarantineInfo> Quarantined() const override { return choices_.Quarantined(); }
  void Quarantine(std::string_view kernel, int64_t rows, std::string_view reason) override {
    choices_.Quarantine(kernel, RowClassOf(rows), reason);
  }
  bool Rearm(std::string_view key) override { return choices_.Rearm(key); }

  const Gpu& gpu() const { return *gpu_; }

 private:
  CudaDevice(std::shared_ptr<Gpu> gpu, const DeviceOptions& options,
             std::span<const std::string> broken);
  // Puts aside what gives other bytes. The name of the kernel that lost the device, if one did.
  std::string ProveKernels();
  Fault Mismatch(const PackedWeight& weight) const;
  // The weights are this GPU's, and each has a kernel.
  Fault Choose(const Work& work, int64_t rows, std::vector<StepKernels>* kernels,
               RunReport* report) const;
  Fault RunTiles(const Work& work, std::span<const StepKernels> kernels, int64_t rows,
                 RunReport* report);

  std::shared_ptr<Gpu> gpu_;
  DeviceInfo info_;
  KernelChoices choices_;
};

// Every GPU of this machine; none without a driver. `why_none` says why there is none; it stays empty where
// configuration disables all kernels, for then none is wanted.
std::vector<std::unique_ptr<Device>> OpenCudaDevices(const DeviceOptions& options,
                                                     std::string* why_none);

}  // namespace qmatmul::cuda
