// The CPU as a Device: one compute team, one kernel table, one packed layout.
//
// Thread-safety: as Device says. Runs on several threads take turns on the team; a Run with
// threads_max = 1 uses the calling thread alone and waits for nobody.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/micro_kernels.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/select.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/cpu/tile_loop.h"
#include "kernels/device.h"
#include "kernels/devices.h"

namespace qmatmul::cpu {

class CpuDevice final : public Device {
 public:
  // `features` is what the CPU can do; tests pass less, to see what a lesser one would choose.
  CpuDevice(const DeviceOptions& options, const CpuFeatures& features,
            std::span<const MicroKernel* const> table = MicroKernels());

  const DeviceInfo& info() const override { return info_; }
  std::vector<KernelInfo> Kernels() const override { return selector_.list().kernels(); }
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
  std::vector<QuarantineInfo> Quarantined() const override {
    return selector_.list().Quarantined();
  }
  void Quarantine(std::string_view kernel, int64_t rows, std::string_view reason) override {
    selector_.list().Quarantine(kernel, rows, reason);
  }
  bool Rearm(std::string_view key) override { return selector_.list().Rearm(key); }

  const KernelSelector& selector() const { return selector_; }

 private:
  // The weights of a step, those that share their packed rows beside each other.
  struct Lots {
    std::array<LotWeight, kWeightsPerCallMax> weights;
    std::array<double, kWeightsPerCallMax> work_ns;  // by lot
    std::array<size_t, kWeightsPerCallMax> ends;     // by lot, within `weights`
    size_t count = 0;
  };

  // Puts aside what differs from the reference.
  void ProveKernels();
  KernelQuery QueryOf(int64_t rows, const CpuPackedWeight& weight, Arithmetic arithmetic,
                      int members) const;
  // The lots of step `step`, for `rows` rows at a time; notes their kernels in the report.
  Fault MakeLots(const Work& work, size_t step, int64_t rows, Lots* lots, RunReport* report) const;
  // Dense outputs of one step.
  void RunLots(const Work& work, size_t step, const Lots& lots, std::span<RowSegment> segments,
               RunReport* report);
  Fault RunStages(const Work& work, RunReport* report);
  int MembersFor(double work_ns, int available) const;
  void ExplainType(int64_t rows, std::span<const std::shared_ptr<const PackedWeight>> weights,
                   DataType type, Arithmetic arithmetic, std::string_view forced,
                   std::vector<KernelChoice>* choices) const;

  DeviceInfo info_;
  KernelSelector selector_;
  ThreadTeam team_;
};

}  // namespace qmatmul::cpu
