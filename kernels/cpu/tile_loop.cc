#include "kernels/cpu/tile_loop.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>

#include "kernels/cpu/activation_packer.h"

namespace qmatmul::cpu {
namespace {

// A panel's k-block and a strip's stay in a 32 KiB L1 beside each other.
constexpr int64_t kBlockLines = 128;
// With one strip nothing is reused but the second pass over half panels.
constexpr int64_t kBlockLinesOneStrip = 256;
// One k-block of packed rows: less than half of a 512 KiB L2.
constexpr int64_t kBlockBytes = int64_t{192} << 10;
// All of a block's packed rows, so that K = 131,071 does not need a huge buffer.
constexpr int64_t kPackedBytesMax = int64_t{8} << 20;
// int32 sums of one column group.
constexpr int64_t kSumsBytes = int64_t{128} << 10;
// Weight bytes to touch ahead when they stream from memory once.
constexpr int64_t kPrefetchBytes = 4096;
// Below this a second thread costs more than it gives.
constexpr int64_t kMacsPerMember = int64_t{1} << 19;

int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

struct MemberScratch {
  ActivationPacker::Scratch pack;
  Arena sums;
  Arena floats;
};

// Counts what one member saw of one output until the segment changes, then adds it once.
class OutcomeTally {
 public:
  OutcomeTally(std::mutex* mutex, size_t weight) : mutex_(mutex), weight_(weight) {}
  ~OutcomeTally() { Flush(); }
  void Add(RowSegment* segment, int64_t row, int64_t column, int64_t count) {
    if (segment != segment_) Flush();
    segment_ = segment;
    seen_.overflow_count += count;
    const bool before = row < seen_.first_overflow_row ||
                        (row == seen_.first_overflow_row && column < seen_.first_overflow_column);
    if (seen_.first_overflow_row >= 0 && !before) return;
    seen_.first_overflow_row = row;
    seen_.first_overflow_column = column;
  }

 private:
  void Flush() {
    if (segment_ == nullptr) return;
    std::lock_guard lock(*mutex_);
    Outcome& all = segment_->outputs[weight_].outcome;
    all.overflow_count += seen_.overflow_count;
    const bool before = seen_.first_overflow_row < all.first_overflow_row ||
                        (seen_.first_overflow_row == all.first_overflow_row &&
                         seen_.first_overflow_column < all.first_overflow_column);
    if (all.first_overflow_row < 0 || before) {
      all.first_overflow_row = seen_.first_overflow_row;
      all.first_overflow_column = seen_.first_overflow_column;
    }
    segment_ = nullptr;
    seen_ = {};
  }

  std::mutex* mutex_;
  size_t weight_;
  RowSegment* segment_ = nullptr;
  Outcome seen_;
};

// One call of RunTileLoop, shared by its members.
class Loop {
 public:
  Loop(const MicroKernel& kernel, std::span<RowSegment> segments,
       std::span<const CpuPackedWeight* const> weights,
       std::span<const std::span<const uint32_t>> checks, int members)
      : kernel_(kernel),
        weights_(weights),
        checks_(checks),
        members_(members),
        packer_(kernel, segments, weights[0]->spec().k),
        barrier_(members) {
    const int64_t line_bytes = 4 * ElementBytes(kernel.operand);
    const int64_t lines = std::min(packer_.lines(), kBlockLines);
    int64_t rows_max =
        std::min(kBlockBytes / (lines * line_bytes), kPackedBytesMax / packer_.row_bytes());
    rows_max = std::max<int64_t>(rows_max / kernel.mr, 1) * kernel.mr;
    blocks_ = (packer_.rows() + rows_max - 1) / rows_max;
    block_rows_max_ = blocks_ == 0 ? 0 : (packer_.rows() + blocks_ - 1) / blocks_;
  }

  int64_t rows() const { return packer_.rows(); }
  int64_t pack_ns() const { return pack_ns_; }

  void Run(int member) {
    static thread_local MemberScratch scratch;
    if (member == 0) Prepare();
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t begin = packer_.rows() * block / blocks_,
                    end = packer_.rows() * (block + 1) / blocks_;
      const int64_t pack_start = member == 0 ? NowNs() : 0;
      if (member == 0) strips_ = CutStrips(end - begin, kernel_.mr);
      Meet();
      for (size_t s = size_t(member); s < strips_.size(); s += size_t(members_))
        packer_.PackStrip(begin, strips_[s], StripData(strips_[s], 0), packed_rows_.data(),
                          &scratch.pack);
      Meet();
      if (member == 0) pack_ns_ += NowNs() - pack_start;
      for (size_t w = 0; w < weights_.size(); ++w) Multiply(w, member, &scratch);
      Meet();  // the next block overwrites this one
    }
  }

 private:
  void Prepare() {
    static thread_local Arena arena;
    packed_ =
        static_cast<std::byte*>(arena.Reserve(size_t(block_rows_max_ * packer_.row_bytes()) + 64));
    packed_rows_.resize(size_t(block_rows_max_));
  }

  void Meet() {
    if (members_ > 1) barrier_.Wait();
  }

  // The strip's elements from line `line` on.
  std::byte* StripData(const Strip& strip, int64_t line) const {
    return packed_ + strip.row_begin * packer_.row_bytes() +
           line * strip.rows * 4 * ElementBytes(kernel_.operand);
  }

  void Multiply(size_t w, int member, MemberScratch* scratch) {
    const CpuPackedWeight& weight = *weights_[w];
    const int64_t unit = kernel_.nr / kPanelColumns;
    const int64_t units = (weight.panels() + unit - 1) / unit;
    const int64_t begin = units * member / members_ * unit;
    const int64_t end = std::min(units * (member + 1) / members_ * unit, weight.panels());
    const int64_t rows = strips_.back().row_begin + strips_.back().rows;
    const int64_t row_bytes = rows * kPanelColumns * 4;
    const int64_t group = std::clamp<int64_t>(kSumsBytes / row_bytes, 2, 32) / unit * unit;
    auto* sums = static_cast<int32_t*>(scratch->sums.Reserve(size_t(group * row_bytes)));
    for (int64_t p = begin; p < end; p += group) {
      const int64_t p_end = std::min(p + group, end);
      const int64_t ldc = (p_end - p) * kPanelColumns;
      if (strips_.size() == 1) SumOneStrip(weight, p, p_end, sums, ldc);
      else SumStrips(weight, p, p_end, sums, ldc);
      FinishRows(w, p, p_end, sums, ldc, scratch);
    }
  }

  // Few rows: the weight passes once, in the order it lies in memory.
  void SumOneStrip(const CpuPackedWeight& weight, int64_t p_begin, int64_t p_end, int32_t* sums,
                   int64_t ldc) {
    const int64_t unit = kernel_.nr / kPanelColumns;
    const int64_t block = kernel_.mr == 1 ? weight.lines() : kBlockLinesOneStrip;
    for (int64_t p = p_begin; p < p_end; p += unit)
      for (int64_t line = 0; line < weight.lines(); line += block) {
        TileArgs t = Tile(weight, strips_[0], p, p_end, p_begin, line, block, sums, ldc);
        t.prefetch = t.panel + kPrefetchBytes;
        kernel_.run(t);
      }
  }

  // Many rows: every k-block of a panel meets all strips while it is in L1.
  void SumStrips(const CpuPackedWeight& weight, int64_t p_begin, int64_t p_end, int32_t* sums,
                 int64_t ldc) {
    const int64_t unit = kernel_.nr / kPanelColumns;
    for (int64_t line = 0; line < weight.lines(); line += kBlockLines)
      for (int64_t p = p_begin; p < p_end; p += unit)
        for (size_t s = 0; s < strips_.size(); ++s) {
          TileArgs t = Tile(weight, strips_[s], p, p_end, p_begin, line, kBlockLines, sums, ldc);
          // The first strip touches what comes next; the others find it in L1.
          t.prefetch = s == 0 ? t.panel + unit * weight.panel_bytes() : t.panel;
          kernel_.run(t);
        }
  }

  TileArgs Tile(const CpuPackedWeight& weight, const Strip& strip, int64_t p, int64_t p_end,
                int64_t p_origin, int64_t line, int64_t block, int32_t* sums, int64_t ldc) const {
    TileArgs t;
    t.strip = StripData(strip, line);
    t.panel = weight.panel(p) + line * kLineBytes;
    t.panel_stride = weight.panel_bytes();
    t.k_steps = std::min(block, weight.lines() - line);
    t.c = sums + strip.row_begin * ldc + (p - p_origin) * kPanelColumns;
    t.ldc = ldc;
    t.rows = strip.rows;
    t.panels = static_cast<int>(std::min<int64_t>(kernel_.nr / kPanelColumns, p_end - p));
    t.accumulate = line > 0;
    t.prefetch = t.panel;
    return t;
  }

  void FinishRows(size_t w, int64_t p_begin, int64_t p_end, int32_t* sums, int64_t ldc,
                  MemberScratch* scratch) {
    const CpuPackedWeight& weight = *weights_[w];
    const int64_t column = p_begin * kPanelColumns;
    const int64_t columns = std::min(p_end * kPanelColumns, weight.spec().n) - column;
    auto* floats = static_cast<float*>(scratch->floats.Reserve(size_t(columns) * 4));
    const int64_t rows = strips_.back().row_begin + strips_.back().rows;
    OutcomeTally tally(&outcomes_, w);
    for (int64_t r = 0; r < rows; ++r) {
      const PackedRow& packed = packed_rows_[size_t(r)];
      SegmentOutput& output = packed.segment->outputs[w];
      const Epilogue& e = output.epilogue;
      EpilogueRow row{};
      row.acc = sums + r * ldc;
      row.column_sums = weight.padded_sums() + column;
      row.correction = packed.correction;
      row.weight_scales = weight.scales() + column;
      row.activation_scale = packed.scale;
      row.bias = weight.bias() != nullptr && !e.skip_bias ? weight.bias() + column : nullptr;
      row.epilogue = &e;
      row.inverse_scale = 1.0f / e.scale;
      row.out =
          output.view.data + packed.row * output.view.row_bytes + column * (BitsOf(e.dtype) / 8);
      row.n = columns;
      row.scratch = floats;
      kernel_.ops->correct(&row);
      if (!output.row_checks.empty()) AddCheck(w, column, packed, &output, row);
      kernel_.ops->finish(&row);
      if (row.overflow_count > 0)
        tally.Add(packed.segment, packed.row, column + row.first_overflow, row.overflow_count);
    }
  }

  void AddCheck(size_t w, int64_t column, const PackedRow& packed, SegmentOutput* output,
                const EpilogueRow& row) {
    const uint64_t sum = kernel_.ops->check(row.acc, checks_[w].data() + column, row.n);
    std::atomic_ref(output->row_checks[size_t(packed.row)])
        .fetch_add(sum, std::memory_order_relaxed);
  }

  const MicroKernel& kernel_;
  std::span<const CpuPackedWeight* const> weights_;
  std::span<const std::span<const uint32_t>> checks_;
  const int members_;
  ActivationPacker packer_;
  TeamBarrier barrier_;
  std::mutex outcomes_;
  int64_t blocks_ = 0;
  int64_t block_rows_max_ = 0;
  std::byte* packed_ = nullptr;
  std::vector<PackedRow> packed_rows_;
  std::vector<Strip> strips_;
  int64_t pack_ns_ = 0;
};

}  // namespace

int MembersFor(int64_t rows, int64_t k, int64_t columns, int available) {
  const int64_t macs = rows * k * columns;
  return static_cast<int>(std::clamp<int64_t>(macs / kMacsPerMember, 1, available));
}

void RunTileLoop(const MicroKernel& kernel, std::span<RowSegment> segments,
                 std::span<const CpuPackedWeight* const> weights,
                 std::span<const std::span<const uint32_t>> check_vectors, ThreadTeam* team,
                 int members, TileLoopReport* report) {
  Loop loop(kernel, segments, weights, check_vectors, members);
  if (loop.rows() > 0) team->Run(members, [&loop](int member) { loop.Run(member); });
  report->rows = loop.rows();
  report->pack_ns = loop.pack_ns();
}

}  // namespace qmatmul::cpu
