// The packed form of INT8 weights on x86 CPUs, and the packer that makes it from upload bytes.
//
// n16k4: panels of 16 columns; a panel is a run of 64-byte lines, one for every 4 values of K:
//
//     panel p                       line s of a panel (k = 4s … 4s+3)
//   ┌──────────┐ line 0            ┌──────────────┬──────────────┬───┬───────────────┐
//   │ columns  │ line 1            │ col 0        │ col 1        │ … │ col 15        │
//   │ 16p …    │ …                 │ k0 k1 k2 k3  │ k0 k1 k2 k3  │   │ k0 k1 k2 k3   │
//   │ 16p + 15 │ line ⌈K/4⌉-1      └──────────────┴──────────────┴───┴───────────────┘
//   └──────────┘
//
// K and N are padded with zeros. A line is one zmm operand of vpdpbusd, two ymm ones, or one row of
// an AMX B tile, so one copy serves every x86 kernel. Beside the panels, in the same allocation:
// column sums, scales widened to one fp32 a column (1 where the weight has none) and the bias.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/device.h"

namespace qmatmul::cpu {

inline constexpr char kLayoutN16K4[] = "n16k4.s8";
inline constexpr int64_t kPanelColumns = 16;
inline constexpr int64_t kLineK = 4;
inline constexpr int64_t kLineBytes = kPanelColumns * kLineK;

// Immutable once Finish has returned it. Thread-safe.
class CpuPackedWeight final : public PackedWeight {
 public:
  // Null when memory is short.
  static std::shared_ptr<CpuPackedWeight> Allocate(const WeightSpec& spec,
                                                   const std::string& device);
  ~CpuPackedWeight() override;

  int64_t lines() const { return lines_; }  // per panel
  int64_t panels() const { return panels_; }
  int64_t panel_bytes() const { return lines_ * kLineBytes; }
  const int8_t* panel(int64_t p) const { return panel_data_ + p * panel_bytes(); }
  std::span<const int32_t> column_sums() const override { return {sums_, size_t(spec().n)}; }
  // Padded to whole panels with zeros, for kernels that work on whole panels.
  const int32_t* padded_sums() const { return sums_; }
  const float* scales() const { return scales_; }
  const float* bias() const { return spec().bias_count > 0 ? bias_ : nullptr; }

 private:
  friend class N16K4Packer;
  CpuPackedWeight(const WeightSpec& spec, const std::string& device);

  int64_t lines_ = 0;
  int64_t panels_ = 0;
  std::byte* memory_ = nullptr;
  int8_t* panel_data_ = nullptr;
  int32_t* sums_ = nullptr;
  float* scales_ = nullptr;
  float* bias_ = nullptr;
};

// Turns upload bytes into panels as they arrive. Needs at most kStagingBytes beyond the packed
// copy.
class N16K4Packer final : public Packer {
 public:
  static constexpr int64_t kStagingBytes = int64_t{4} << 20;

  explicit N16K4Packer(std::shared_ptr<CpuPackedWeight> weight);
  Fault Append(std::span<const std::byte> bytes) override;
  Fault Finish(std::shared_ptr<const PackedWeight>* weight) override;

 private:
  // Lines of the upload that make whole packed lines: 4 rows of KN, 16 columns of NK.
  int64_t StripeLines() const {
    return weight_->spec().layout == Layout::kKN ? kLineK : kPanelColumns;
  }
  void TakeData(std::span<const std::byte> bytes);
  void PackStripe(const int8_t* stripe, int64_t lines);
  void PackRowsKN(const int8_t* stripe, int64_t rows);
  void PackColumnsNK(const int8_t* stripe, int64_t columns);
  void ScatterKN(std::span<const std::byte> bytes);
  Fault FinishScales();
  Fault FinishBias();
  void SumColumns();

  std::shared_ptr<CpuPackedWeight> weight_;
  int64_t position_ = 0;          // upload bytes taken so far
  int64_t line_ = 0;              // first line of the stripe being staged
  bool scatter_ = false;          // a stripe is too wide to stage
  std::vector<std::byte> stage_;  // part of a stripe
  std::vector<std::byte> tail_;   // scales, then bias
};

}  // namespace qmatmul::cpu
