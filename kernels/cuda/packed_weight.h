// A weight in a GPU's memory, and what puts it there. kernel_args.h draws the layout.
//
// One block of memory: packed values, column sums of each group, scales widened to one fp32 a column and group
// (1 where the weight has none), bias; totals of the column sums where there are groups.
//
// Thread-safety: a CudaPackedWeight is immutable once its packer has finished.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/kernel_args.h"
#include "kernels/device.h"

namespace qmatmul::cuda {

// "nk16.s8", "nk32.s4.g128", "nk64.s2".
std::string LayoutOf(const WeightSpec& spec);
std::string_view LayoutOf(DataType weight);

class CudaPackedWeight final : public PackedWeight {
 public:
  // Faults: RESOURCE_EXHAUSTED WEIGHT_MEMORY, DEVICE_LOST.
  static Fault Allocate(const WeightSpec& spec, std::shared_ptr<Gpu> gpu,
                        std::shared_ptr<CudaPackedWeight>* weight);
  ~CudaPackedWeight() override;

  std::span<const int32_t> column_sums() const override { return totals_; }
  bool is_lost() const override { return gpu_->lost(); }
  const WeightArgs& args() const { return args_; }
  const Gpu* gpu() const { return gpu_.get(); }
  // Bytes that a product reads.
  int64_t data_bytes() const { return args_.row_bytes * args_.n; }

 private:
  friend class CudaPacker;
  CudaPackedWeight(const WeightSpec& spec, std::shared_ptr<Gpu> gpu);

  const std::shared_ptr<Gpu> gpu_;
  std::byte* memory_ = nullptr;
  WeightArgs args_;
  int32_t* device_totals_ = nullptr;  // null with one group
  std::vector<int32_t> totals_;
};

// Sends the upload on in chunks of at most kStageBytes, which kernels take to their places.
class CudaPacker final : public Packer {
 public:
  static constexpr int64_t kStageBytes = 512 << 10;

  explicit CudaPacker(std::shared_ptr<CudaPackedWeight> weight);
  Fault Append(std::span<const std::byte> bytes) override;
  Fault Finish(std::shared_ptr<const PackedWeight>* weight) override;

 private:
  enum class Section : uint8_t { kData, kScales, kBias, kEnd };
  int64_t SectionBytes() const;
  void SkipEmpty();
  // Takes what is staged to the device.
  Fault Flush();
  Fault FlushData();
  Fault FlushScales();
  Fault FlushBias();
  Fault PutFloats(const std::vector<float>& values, const float* to);
  Fault FillScales();
  Fault SumColumns();
  Fault FaultOf(const Error& error);

  std::shared_ptr<CudaPackedWeight> weight_;
  int64_t position_ = 0;  // upload bytes taken so far
  Section section_ = Section::kData;
  int64_t section_at_ = 0;  // bytes of the section before the stage
  std::vector<std::byte> stage_;
  float first_scale_ = 1.0f;
};

// Rows [k_begin, k_end) as int8.
Fault UnpackWeight(const CudaPackedWeight& weight, Gpu* gpu, int64_t k_begin, int64_t k_end,
                   std::span<int8_t> out);

}  // namespace qmatmul::cuda
