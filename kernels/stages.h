// Work whose results are not all written straight to the caller: a chain, whose intermediate results
// feed the next product, and top_k, which keeps a few of each finished row. Both become plain dense
// products on tiles of rows, with what lies between them in scratch.
//
// Why here: the two are the same on every device whose products end in host memory, so a device gives
// its dense product and has both.
//
// Chains (numerics §6): each intermediate result is F32 and becomes the activations of the next step,
// quantized per row when that step is W8A8, taken as it is when it is W8A32. So a chain gives the bytes
// of separate calls, the first with F32 output, the second with dynamic quantization.
//
// Thread-safety: a Stages belongs to the thread that makes it. Ownership: it borrows the Work, and owns
// its scratch, which is at most kScratchBytes, or one row's where that takes more.
//
// Invariants
//   1. Every row of every segment is in exactly one tile; tiles are as equal as can be.
//   2. A segment's faults and outcomes are those of its own rows, whatever shares the tile. Of several
//      rows beyond range the lowest is named, whatever the tiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/device.h"

namespace qmatmul {

class Stages {
 public:
  static constexpr int64_t kScratchBytes = int64_t{8} << 20;
  // Computes the dense outputs of one step for segments of its own. They carry no top_k and no
  // intermediates; what they refuse lands in their fault, and outcomes are added to.
  using Multiply = std::function<Fault(size_t step, std::span<RowSegment> segments)>;

  // True for a chain and where any segment asks for top_k.
  static bool Needed(const Work& work);

  explicit Stages(const Work& work);
  // Rows that one call of Multiply sees at most: what kernels are chosen for.
  int64_t tile_rows() const { return tile_rows_; }
  // All tiles, all steps. Faults: RESOURCE_EXHAUSTED SCRATCH_MEMORY, and what `multiply` returns.
  Fault Run(const Multiply& multiply);

 private:
  // The rows of one segment that lie in the tile at hand.
  struct Part {
    size_t segment = 0;
    int64_t row_begin = 0;  // of the request
    int64_t rows = 0;
    int64_t tile_row = 0;  // of its first row
    ActivationView view;   // the intermediate result, from the second step on
    ByteSpan bytes;        // what `view` looks at
  };

  void CutTile(int64_t begin, int64_t end);
  Fault RunTile(const Multiply& multiply);
  // What part `p` gives to `multiply` for this step.
  void Stage(size_t step, size_t p);
  SegmentOutput StageLast(size_t step, const Part& part, size_t weight, std::byte* finished) const;
  // Takes what `multiply` said of part `p` to its segment.
  void Settle(size_t step, size_t p);
  void NameRangeFault(size_t step, const Part& part);
  void Select(const Part& part, size_t weight, const OutputView& finished);
  // The result of a step that is not the last, at a row of the tile.
  std::byte* Intermediate(size_t step, int64_t tile_row) const;
  int64_t ColumnsOf(size_t step, size_t weight = 0) const;
  size_t weights() const { return work_.steps.back().weights.size(); }
  bool IsLast(size_t step) const { return step + 1 == work_.steps.size(); }

  const Work& work_;
  int64_t rows_ = 0;
  int64_t tiles_ = 0;
  int64_t tile_rows_ = 0;
  int64_t intermediate_bytes_[2] = {0, 0};  // a row's, of even and of odd steps
  int64_t finished_bytes_ = 0;              // a row's, of all outputs that top_k selects from
  std::unique_ptr<std::byte[]> scratch_;
  std::vector<Part> parts_;
  std::vector<RowSegment> staged_;      // by part
  std::vector<SegmentOutput> outputs_;  // by part and weight
  std::vector<int64_t>
      refused_rows_;  // by segment: the row its fault names, -1 for its own input's
  std::vector<uint64_t> candidates_;
};

}  // namespace qmatmul
