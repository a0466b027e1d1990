// What an ISA's file gives to the kernel table: a tile product, and the row work around it.
//
// A micro-kernel multiplies a packed strip of activations by packed panels of a weight and leaves
// sums: int32 for W8A8, fp32 for W8A32. It knows its tile (mr x nr, kr values of K a step) and
// whether this CPU can run it. It does not know scales, zero points, ragged K or N (packing pads
// with zeros), threads or blocking.
//
// Operands
//   strip   [⌈K/kr⌉][rows][kr] elements of `operand`, K padded with zeros; rows <= mr
//   panel   n16k4 (see pack.h): one line for every 4 values of K and 16 columns. INT8 lines hold
//   the values
//           themselves, INT4 and INT2 lines hold them offset by 8 and 1, unsigned: a kernel's sums
//           are then too large by offset * Σ_k a, which the epilogue takes off.
//   tile    c[row * ldc + column], columns = 16 * panels; int32, or fp32 for float operands
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/matmul.h"

namespace qmatmul::cpu {

// What vpmaddubsw must not see: for a pair of values (k, k + 1 of a column) whose positive sum exceeds
// kPairSumMax or whose negative sum is below -kPairSumMax, the excess of its larger value. With u8
// activations, 255 * 128 = 32,640 fits in an int16, so what remains cannot saturate.
inline constexpr int kPairSumMax = 128;
struct Outlier {
  uint16_t line;  // within the lines at hand
  uint8_t value;  // 4 * column + k % 4
  int8_t excess;  // of the weight's value beyond what may stay
};

// The highest strip of any kernel.
inline constexpr int kStripRowsMax = 32;

struct TileArgs {
  const void* strip;
  const uint8_t* panel;
  int64_t panel_stride;  // bytes from one panel to the next
  int64_t lines;         // lines to go through, 4 values of K each
  void* c;
  int64_t ldc;
  int rows;         // 1 … mr
  int panels;       // 1 … nr / 16
  bool accumulate;  // add to c instead of setting it
  // Where not null, of the panels' columns: sums start from -correction * column_sums (MicroKernel::corrects).
  const int32_t* column_sums;
  int32_t correction;
  // Lines that will be wanted next: one is touched a step, but see touch_period.
  const uint8_t* prefetch;
  // Of those, since another strip's tile touches the rest; where passes > 1.
  bool touch_every_other;
  // Two lines of each panel are touched every so many pairs of lines; where the kernel spreads.
  int64_t touch_period = 1;
};

// One row and one or two panels of a weight with several scale groups.
struct GroupArgs {
  const void* strip;
  const uint8_t* panel;
  int64_t panel_stride;  // bytes to the next panel
  int panels;            // 1 or 2, side by side
  int64_t groups;
  int64_t group_lines;
  const int32_t* row_sums;  // of each group: Σ of the strip's values
  int32_t
      offset;  // of the weight's values: a group's sums are too large by offset * row_sums[group]
  // Of group g and column c, scales[g * stride + c] and so on.
  int64_t stride;
  const float* scales;
  const int32_t* column_sums;  // sums are too large by correction * these, too
  int32_t correction;
  int64_t ahead_bytes;   // lines that far ahead will be wanted next
  int64_t scales_ahead;  // scales of each group that will, from this panel's on
  float* y;              // 16 results a panel of numerics §2's sum over the groups: set
};

// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): the order is how a row of the table reads
struct MicroKernel {
  const char*
      name;  // "cpu.avx2.s8s8s32.6x16x4": device.isa.activation-weight-accumulator.mr x nr x kr
  bool (*supported)(const CpuFeatures&);
  DataType weight;  // kInt8, kInt4, kInt2: what its panels hold
  Arithmetic arithmetic;
  Operand operand;  // what the strip holds
  int mr;
  int nr;
  int kr;
  // How fast this row is among its peers: higher wins at equal fit.
  int rank;
  void (*run)(const TileArgs&);
  const RowOps* ops;
  // For kernels that are exact only without outliers, null for all others. set_outliers_aside copies lines to
  // `clean` without their outliers, lists these, and returns how many; add_outliers adds, after `run` on the
  // clean lines, what they contribute to the tile.
  int64_t (*set_outliers_aside)(const uint8_t* panel, int64_t lines, uint8_t* clean,
                                Outlier* list) = nullptr;
  void (*add_outliers)(const TileArgs&, std::span<const Outlier>) = nullptr;
  // Rows that it is worth choosing for; it computes fewer, too.
  int rows_min = 1;
  // Gives back what `run` holds of the processor (tile registers); every thread calls it after its
  // last run of a work. nullptr: nothing is held.
  void (*release)() = nullptr;
  // Over a tile's lines. Where a kernel passes more than once, what it touches ahead is the next block, each pass
  // a part of it.
  int passes = 1;
  // Values of K that a tile sums at a time at most; 0: as many as its panels have in L1 (tile_loop.h).
  int block_k = 0;
  // What its sums are aligned to, in bytes, where they are made in the requests' memory.
  int place_alignment = 4;
  // Rows of a strip whose sums may be made in the requests' memory where they lie a multiple of 4 KiB apart, and so compete
  // for the same lines of L1.
  int rows_apart_max = kStripRowsMax;
  // Whether its tiles touch ahead by TileArgs::touch_period, so that the strips of a block share what comes next.
  bool spreads = false;
  // How far ahead of each panel it touches at least, where a weight streams past a single strip.
  int64_t panel_ahead_min = 0;
  // For one-row forms: all scale groups of a panel in one pass, their sums never leaving registers. May be null.
  void (*run_groups)(const GroupArgs&) = nullptr;

  // Whether it heeds TileArgs::column_sums: those do whose sums are always too large, and final.
  bool corrects() const { return operand == Operand::kU8 && !split(); }
  bool split() const { return add_outliers != nullptr; }
  // How far ahead of each panel it touches, of `bytes` for all that stream side by side.
  int64_t PanelAhead(int64_t bytes) const { return std::max(bytes * 16 / nr, panel_ahead_min); }
  bool fits(DataType weight_type, Arithmetic a) const {
    return weight == weight_type && arithmetic == a;
  }
};

}  // namespace qmatmul::cpu
