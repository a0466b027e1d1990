// One tile of rows of a Work, from the callers' memory through the GPU and back: one upload, all steps, one
// download.
//
//     host and device, the same layout            work (device only)
//     ┌───────────────────────────────┐           operands and states of each form of a step's rows,
//     │ rows, outputs, check vectors, │ up        intermediate results of even and of odd steps,
//     │ activations                   │           block sums of W8A32
//     ├───────────────────────────────┤
//     │ outcomes, row checks          │ up, down
//     ├───────────────────────────────┤
//     │ refusals, states, results     │ down
//     └───────────────────────────────┘
//
// A chain's intermediate results never leave the device; what the next step refuses of them is noted there.
// Results are dense on the device; the host takes each to its request, by SelectTopK where top_k is asked.
//
// Thread-safety: one thread. Ownership: borrows the Work, the lane and the GPU for its life.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/cuda/product_plan.h"
#include "kernels/device.h"

namespace qmatmul::cuda {

// A kernel for each weight of a step.
using StepKernels = std::array<const CudaKernel*, kWeightsPerCallMax>;

// Rows [row_begin, row_begin + rows) of a segment's request, at a place of the tile.
struct TilePart {
  size_t segment = 0;
  int64_t row_begin = 0, rows = 0, tile_row = 0;
};

// By segment, over all tiles: the row that its fault names, kNoRow for none, kOwnInput for its own input's.
inline constexpr int64_t kNoRow = INT64_MAX, kOwnInput = -1;

class Batch {
 public:
  // Where `launches_ns` is not null, what launches take on the device is added to it; they are then done one by one.
  Batch(const Work& work, std::span<const StepKernels> kernels, Gpu* gpu, Lane* lane,
        double* launches_ns);

  // Device and pinned memory that a row takes beside what all share.
  int64_t row_bytes() const;
  // Faults: RESOURCE_EXHAUSTED SCRATCH_MEMORY, DEVICE_LOST. What a segment's rows are refused for lands in
  // its fault.
  Fault Run(std::span<const TilePart> parts, std::vector<int64_t>* refused_rows, RunReport* report);

 private:
  // Weights that read the same operands.
  struct Form {
    int32_t group_k = 0, group_pad = 0;
    int64_t row_bytes = 0;
    bool floats = false;
    int64_t operands = 0, states = 0;  // in `work`
  };
  struct Product {
    ProductPlan plan;
    size_t form = 0;
    int64_t outputs = 0;       // first DeviceOutput
    int64_t checks = 0;        // row checks, and
    int64_t check_vector = 0;  // r; 0: not asked
    int64_t outcomes = 0;
    int64_t results = 0;
    int64_t result_bytes = 0;  // of a row, at most
  };
  struct Step {
    std::vector<Form> forms;
    std::vector<Product> products;
    int64_t refusals = 0;
    int64_t intermediate = 0;  // result of a step that is not the last, in `work`
  };

  const CudaPackedWeight& WeightOf(size_t step, size_t w) const;
  bool IsLast(size_t step) const { return step + 1 == work_.steps.size(); }
  bool ChecksWanted(size_t w) const;
  Form FormOf(size_t step, const CudaPackedWeight& weight) const;
  void MakeForms();
  void PlaceUploads();
  void PlaceResults();
  void PlaceWork();
  Error Reserve();
  void FillRows();
  RowSource SourceOf(const ActivationView& view, int64_t row) const;
  void FillOutputs();
  DeviceOutput OutputOf(const Epilogue& epilogue, const WeightArgs& weight) const;
  void FillActivations();
  Error Enqueue(bool* replayed);
  Error EnqueueTimed(std::span<const Operation> operations);
  Error AddStep(size_t step, std::vector<Operation>* operations) const;
  ProductArgs ArgsOf(size_t step, size_t w) const;
  Error LaunchOf(size_t step, size_t w, KernelLaunch* launch) const;
  void Settle(std::vector<int64_t>* refused_rows);
  void SettleRefusals(size_t p, std::vector<int64_t>* refused_rows);
  void SettleOutput(size_t p, size_t w);

  template <typename T>
  T* Host(int64_t offset) const {
    return reinterpret_cast<T*>(lane_->host.data() + offset);
  }
  template <typename T>
  T* OnDevice(int64_t offset) const {
    return reinterpret_cast<T*>(lane_->device.data() + offset);
  }
  template <typename T>
  T* InWork(int64_t offset) const {
    return reinterpret_cast<T*>(lane_->work.data() + offset);
  }

  const Work& work_;
  const std::span<const StepKernels> kernels_;
  Gpu* const gpu_;
  Lane* const lane_;
  double* const launches_ns_;
  std::span<const TilePart> parts_;
  int64_t rows_ = 0;
  std::vector<Step> steps_;
  int64_t sources_ = 0, activations_ = 0;
  std::vector<int64_t> part_bytes_;  // where each part's activations lie
  int64_t down_begin_ = 0, up_end_ = 0, end_ = 0;
  int64_t work_bytes_ = 0, float_partial_ = 0, partial_bytes_ = 0, ticket_bytes_ = 0;
  std::vector<uint64_t> candidates_;
};

}  // namespace qmatmul::cuda
