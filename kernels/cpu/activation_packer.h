// Gathers rows of many requests into the strips a micro-kernel reads, quantizing float rows on the
// way: the one copy that activation bytes see.
//
// A block of R rows is cut into strips of equal height (8 rows for a 6-row kernel are 4 + 4, not
// 6 + 2). A strip of r rows holds [groups][steps][r][kr] elements: K in the weight's scale groups
// (one for most weights), each padded with zeros to whole steps of kr.
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
  int64_t row_begin = 0;  // of the packed rows
  int rows = 0;
};

// Adds to `strips` packed rows first … first + rows - 1, cut into the fewest strips of at most `mr`, as equal
// as can be.
void CutStrips(int64_t first, int64_t rows, int mr, std::vector<Strip>* strips);

class ActivationPacker {
 public:
  struct Scratch {
    Arena stitched;  // a row whose bytes lie in several spans, until it is quantized or widened
    Arena widened;   // a float row, until it is quantized
    Arena values;  // the strip's rows as they are interleaved, where they are not so in the request
  };

  // `group_k` divides k. `first_rows` is memory for this packer alone, kept from one to the next.
  ActivationPacker(const MicroKernel& kernel, std::span<RowSegment> segments, int64_t k,
                   int64_t group_k, std::vector<int64_t>* first_rows);

  int64_t rows() const { return rows_; }
  int64_t groups() const { return groups_; }
  // Elements of one group of a packed row.
  int64_t group_elements() const { return group_elements_; }
  // Bytes of a packed row.
  int64_t row_bytes() const { return row_bytes_; }
  // Packs a strip's rows, those of the Work that lie `shift` after its packed rows, to `strip_data` and
  // describes them in rows[row]. With `sums`, sums[row * groups() + group] receives Σ of the operand's
  // values there, for kernels whose weights are offset.
  void PackStrip(int64_t shift, const Strip& strip, void* strip_data, PackedRow* rows,
                 int32_t* sums, Scratch* scratch);

 private:
  // The values of row `row` of the segment, as they are interleaved: where they lie, or made in `room`.
  SourceRow TakeRow(RowSegment* segment, int64_t row, std::byte* room, PackedRow* packed,
                    Scratch* scratch);
  // The row as floats, where they lie or in `room`; zeros there when a value is out of range (the segment's fault
  // is then set).
  const float* Widen(RowSegment* segment, int64_t row, const void* bytes, float* room,
                     uint32_t* magnitude);
  void Quantize(RowSegment* segment, int64_t row, const void* bytes, PackedRow* packed, int8_t* q,
                Scratch* scratch);
  void Refuse(RowSegment* segment, int64_t row);

  const MicroKernel& kernel_;
  std::span<RowSegment> segments_;
  int64_t k_;
  int64_t group_k_;
  int64_t groups_;
  int64_t group_elements_;
  int64_t row_bytes_;
  int64_t rows_ = 0;
  std::vector<int64_t>& first_row_;  // of each segment, within the Work
  std::mutex faults_;
};

}  // namespace qmatmul::cpu
