// Gathers rows of many requests into the strips a micro-kernel reads, quantizing float rows on the
// way: the one copy that activation bytes see.
//
// A block of R rows is cut into strips of equal height (8 rows for a 6-row kernel are 4 + 4, not 6
// + 2). A strip of r rows takes r * lines * 4 elements: [lines][r][4].
//
// Thread-safety: members pack different strips of one block at the same time, each with its own
// Scratch.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "kernels/cpu/micro_kernel.h"
#include "kernels/device.h"

namespace qmatmul::cpu {

// A 64-byte aligned buffer that only grows; contents are not kept.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();
  void* Reserve(size_t bytes);

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

// What the epilogue has to know of one packed row.
struct PackedRow {
  RowSegment* segment = nullptr;
  int64_t row = 0;         // of the request
  float scale = 1.0f;      // sa; 1 when there is none
  int32_t correction = 0;  // sums are too large by this times the column's sum
};

struct Strip {
  int64_t row_begin = 0;  // within the block
  int rows = 0;
};

// Cuts `rows` rows into the fewest strips of at most `mr`, as equal as can be.
std::vector<Strip> CutStrips(int64_t rows, int mr);

class ActivationPacker {
 public:
  struct Scratch {
    Arena stitched;   // a row whose bytes lie in several spans
    Arena widened;    // a float row
    Arena quantized;  // an int8 row
  };

  ActivationPacker(const MicroKernel& kernel, std::span<RowSegment> segments, int64_t k);

  int64_t rows() const { return rows_; }
  int64_t lines() const { return (k_ + 3) / 4; }
  // Bytes of a packed row.
  int64_t row_bytes() const { return lines() * 4 * ElementBytes(kernel_.operand); }
  // Packs rows [block_begin + strip.row_begin, … + strip.rows) to `strip_data` and describes them
  // in `rows`.
  void PackStrip(int64_t block_begin, const Strip& strip, void* strip_data, PackedRow* rows,
                 Scratch* scratch);

 private:
  void PackRow(RowSegment* segment, int64_t row, const void* bytes, int strip_rows, void* out,
               PackedRow* packed, Scratch* scratch);
  // Quantizes a float row; false when a value is out of range (the segment's fault is then set).
  bool Quantize(RowSegment* segment, int64_t row, const void* bytes, int8_t* q, PackedRow* packed,
                Scratch* scratch);
  void Refuse(RowSegment* segment, int64_t row);

  const MicroKernel& kernel_;
  std::span<RowSegment> segments_;
  int64_t k_;
  int64_t rows_ = 0;
  std::vector<int64_t> first_row_;  // of each segment, within the Work
  std::mutex faults_;
};

}  // namespace qmatmul::cpu
