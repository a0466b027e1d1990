// The packed form of weights on CPUs: one layout, n16k4, that every x86 and ARM kernel reads.
//
// Panels of 16 columns; a panel is a run of lines, one for every 4 values of K:
//
//     panel p                       line s of a panel (k = 4s … 4s+3), as 64 values
//   ┌──────────┐ line 0            ┌──────────────┬──────────────┬───┬───────────────┐
//   │ columns  │ line 1            │ col 0        │ col 1        │ … │ col 15        │
//   │ 16p …    │ …                 │ k0 k1 k2 k3  │ k0 k1 k2 k3  │   │ k0 k1 k2 k3   │
//   │ 16p + 15 │                   └──────────────┴──────────────┴───┴───────────────┘
//   └──────────┘                    value v of a line is v = 4 * column + k % 4
//
//   INT8  64 bytes: value v is byte v, signed.
//   INT4  32 bytes: byte b holds value b in its low and value b + 32 in its high nibble, each
//   plus 8. INT2  16 bytes: byte b holds values b, b + 16, b + 32, b + 48 from its low bits up,
//   each plus 1.
//
// K is padded with zeros to whole lines, each scale group by itself; N to whole panels. An INT8
// line is one zmm operand of vpdpbusd, two ymm ones, or one row of an AMX B tile, so one copy
// serves every kernel. Beside the panels, in the same allocation: column sums of each group, scales
// widened to one fp32 a column and group (1 where the weight has none), and the bias.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/weight_columns.h"

namespace qmatmul::cpu {

inline constexpr int64_t kPanelColumns = 16;
inline constexpr int64_t kLineK = 4;
inline constexpr int64_t kLineValues = kPanelColumns * kLineK;

// "n16k4.s8", "n16k4.s4.g128" (K in several groups), "n16k4.s2": everything that makes two differ.
std::string LayoutOf(const WeightSpec& spec);
// What a kernel of this weight type reads: LayoutOf without the group.
std::string_view LayoutOf(DataType weight);
// What a line's unsigned values are offset by: 8 for INT4, 1 for INT2, 0 for INT8.
int32_t OffsetOf(DataType weight);

// Immutable once its packer has finished. Thread-safe.
class CpuPackedWeight final : public PackedWeight {
 public:
  // Null when memory is short.
  static std::shared_ptr<CpuPackedWeight> Allocate(const WeightSpec& spec,
                                                   const std::string& device);
  ~CpuPackedWeight() override;

  int64_t groups() const { return groups_; }
  int64_t group_k() const { return group_k_; }
  int64_t group_lines() const { return group_lines_; }
  int64_t lines() const { return groups_ * group_lines_; }  // per panel
  int64_t line_bytes() const { return line_bytes_; }
  int64_t panels() const { return panels_; }
  int64_t panel_bytes() const { return panel_bytes_; }
  const uint8_t* panel(int64_t p) const { return panel_data_ + p * panel_bytes(); }
  std::span<const int32_t> column_sums() const override { return {total_sums_, size_t(spec().n)}; }
  // Of one group, panels() * 16 of them.
  const int32_t* group_sums(int64_t group) const {
    return sums_ + group * panels() * kPanelColumns;
  }
  const float* scales(int64_t group) const { return scales_ + group * panels() * kPanelColumns; }
  const float* bias() const { return spec().bias_count > 0 ? bias_ : nullptr; }
  const WeightColumns& columns() const { return columns_; }
  // The kLineValues values of the line that value (k, n) is in.
  void ReadLine(int64_t k, int64_t n, int8_t* values) const;
  // Share of INT8 values that a kernel which saturates in 16 bits must set aside (micro_kernel.h,
  // Outlier); estimated from every eighth line.
  double outlier_share() const { return outlier_share_; }

 private:
  friend class CpuPacker;
  CpuPackedWeight(const WeightSpec& spec, const std::string& device);
  // Where the line of value (k, n) is.
  uint8_t* line(int64_t k, int64_t n) const;

  // Worked out once: the tile loop asks for each tile.
  const int64_t groups_, group_k_, group_lines_, line_bytes_, panels_, panel_bytes_;
  std::byte* memory_ = nullptr;
  uint8_t* panel_data_ = nullptr;
  int32_t* sums_ = nullptr;
  int32_t* total_sums_ = nullptr;  // sums_ itself when there is one group
  float* scales_ = nullptr;
  float* bias_ = nullptr;
  WeightColumns columns_;  // all of the above for the epilogue
  double outlier_share_ = 0;
};

// Turns upload bytes into panels as they arrive. Needs at most kStagingBytes beyond the packed
// copy.
class CpuPacker final : public Packer {
 public:
  static constexpr int64_t kStagingBytes = int64_t{4} << 20;

  explicit CpuPacker(std::shared_ptr<CpuPackedWeight> weight);
  Fault Append(std::span<const std::byte> bytes) override;
  Fault Finish(std::shared_ptr<const PackedWeight>* weight) override;

 private:
  // Lines of the upload, from line_ on, that make whole packed lines: up to 4 rows of KN within a
  // group, 16 columns of NK.
  int64_t StripeLines() const;
  void TakeData(std::span<const std::byte> bytes);
  void PackStripe(const uint8_t* stripe, int64_t lines);
  void PackRows(const uint8_t* stripe, int64_t rows);
  void PackColumns(const uint8_t* stripe, int64_t columns);
  void PackColumnsInt8(const uint8_t* stripe, int64_t columns);
  // A stripe too wide to stage: each value goes to its place by itself.
  void Scatter(std::span<const std::byte> bytes);
  void SumColumns();
  void CountOutliers();

  std::shared_ptr<CpuPackedWeight> weight_;
  int64_t position_ = 0;  // upload bytes taken so far
  int64_t line_ = 0;      // first line of the stripe being staged
  bool scatter_ = false;
  std::vector<std::byte> stage_;  // part of a stripe
  std::vector<std::byte> tail_;   // scales, then bias
};

}  // namespace qmatmul::cpu
