#include "kernels/cpu/tile_loop.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "kernels/cpu/activation_packer.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/row_finisher.h"

namespace qmatmul::cpu {
namespace {

// With one strip nothing is reused but a second pass over half panels.
constexpr int64_t kBlockKOneStrip = 1024;
// Two strips take little longer than memory takes to give the panel: what the first has read must be in L1 for
// the second.
constexpr int64_t kBlockKTwoStrips = 512;
// Blocks are multiples of every kernel's kr.
constexpr int64_t kBlockKUnit = 64;
// All of a block's packed rows, so that K = 131,071 does not need a huge buffer.
constexpr int64_t kPackedBytesMax = int64_t{8} << 20;
// Sums of one column group: a quarter of L2.
int64_t SumsBytes() { return RowBlockBytes() / 2; }
// Panels of one row whose groups' sums are kept at most.
constexpr int64_t kPanelsInOrder = 8;
// Some microseconds of work: what a member takes at a time at least.
constexpr int64_t kStepMacs = int64_t{1} << 18;
// Strips that share what is touched ahead at most.
constexpr int64_t kTouchingStripsMax = 16;
// Less than this is packed sooner than the clock is asked twice.
constexpr int64_t kTimedBytesMin = int64_t{64} << 10;

int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

struct MemberScratch {
  ActivationPacker::Scratch pack;
  int64_t outlier_count = 0;
  Arena clean;     // a k-block of a panel without its outliers
  Arena outliers;  // their list
  Arena sums;      // int32 or float, of one column group
  Arena y;         // float results: of the group where scale groups are added up, else of a row
};

// The panels of one weight that one member takes first, in units of the kernel's width. Who is through with
// his own goes on with another's: cores are not equally fast, least of all those of a virtual machine.
struct alignas(64) Share {
  int64_t next = 0;  // by atomic_ref
  int64_t end = 0;
};

// Rows that are packed at once and then multiplied by every weight of the lot.
struct Block {
  int64_t row_begin = 0;                  // of all
  int64_t slot_begin = 0;                 // where they lie among the packed rows
  size_t strip_begin = 0, strip_end = 0;  // of the loop's strips, which name packed rows
  size_t next_strip = 0;                  // to be packed; by atomic_ref
};

// What a calling thread keeps from one loop to the next, for all members of it.
struct CallScratch {
  Arena packed;  // rows of one block or of two
  std::vector<PackedRow> rows;
  std::vector<int32_t> row_sums;
  std::vector<Block> blocks;
  std::vector<Strip> strips;
  std::vector<int64_t> first_rows;
  std::vector<Share> shares;
};

// One call of RunTileLoop, shared by its members.
class Loop {
 public:
  Loop(std::span<const LotWeight> lot, std::span<RowSegment> segments,
       std::span<const std::span<const uint32_t>> checks, const ThreadTeam& team, int members,
       CallScratch* scratch)
      : first_(*lot[0].kernel),
        lot_(lot),
        team_(team),
        members_(members),
        packer_(first_, segments, lot[0].weight->spec().k, lot[0].weight->group_k(),
                &scratch->first_rows),
        barrier_(members),
        memory_(scratch->packed),
        packed_rows_(scratch->rows),
        row_sums_(scratch->row_sums),
        blocks_(scratch->blocks),
        strips_(scratch->strips),
        shares_(scratch->shares),
        finisher_(is_float(), packer_.groups(), checks, packed_rows_, row_sums_) {
    const int64_t rows_max = std::min(BlockRowsMax(first_, packer_.group_elements()),
                                      kPackedBytesMax / packer_.row_bytes());
    const int64_t block_rows = std::max<int64_t>(rows_max / first_.mr, 1) * first_.mr;
    const int64_t blocks = (packer_.rows() + block_rows - 1) / block_rows;
    blocks_.resize(size_t(blocks));
    slots_ = members > 1 && blocks > 1 ? 2 : 1;
    slot_rows_ = blocks == 0 ? 0 : (packer_.rows() + blocks - 1) / blocks;
  }

  int64_t rows() const { return packer_.rows(); }
  LoopReport report() const { return {packed_count_.load(std::memory_order_relaxed), pack_ns_}; }

  // On the calling thread, before Run: memory, and, where one strip is all, the packing too, so that
  // nobody waits for anybody.
  void Prepare() {
    const int64_t packed = slots_ * slot_rows_;
    packed_ = static_cast<std::byte*>(memory_.Reserve(size_t(packed * packer_.row_bytes()) + 64));
    if (packed_rows_.size() < size_t(packed)) packed_rows_.resize(size_t(packed));
    row_sums_.clear();
    const auto offset = [](const LotWeight& w) { return OffsetOf(w.kernel->weight) != 0; };
    if (!is_float() && std::any_of(lot_.begin(), lot_.end(), offset))
      row_sums_.resize(size_t(packed * packer_.groups()));
    CutBlocks();
    if (members_ > 1) {
      shares_.resize(size_t(slots_) * lot_.size() * size_t(members_));
      for (int member = 0; member < members_; ++member) DealShares(0, member);
    }
    packed_ahead_ = strips_.size() == 1;
    if (packed_ahead_) PackStrips(&blocks_[0], 0, Scratch());
  }

  // A member that finds nothing left to multiply packs strips of the next block, in the other slot, while
  // the rest of the team is still at this one: who meets here is through with the block before.
  void Run(int member) {
    MemberScratch* scratch = Scratch();
    for (size_t block = 0; block < blocks_.size(); ++block) {
      if (!packed_ahead_) {
        if (members_ > 1 && block > 0) DealShares(block, member);
        PackStrips(&blocks_[block], member, scratch);
        Meet(member);
      }
      for (size_t i = 0; i < lot_.size(); ++i) Multiply(block, i, member, scratch);
    }
    for (const LotWeight& w : lot_)
      if (w.kernel->release != nullptr) w.kernel->release();
  }

 private:
  // What one member sums at a time, and where the sums go.
  struct Part {
    const LotWeight* of;
    int64_t begin, end;  // panels
    size_t strip_begin, strip_end;
    int64_t row_begin, row_end;  // of the packed rows
    int64_t block_k;             // values that a tile sums at a time
    int32_t correction;          // that the tile takes off; 0: the finisher does
    std::byte* place;            // RowFinisher::PlaceForSums
    int64_t place_ldc;
    bool in_place;  // sums are made there; else they are copied
    int64_t ldc;
    int64_t group_bytes;  // from the sums of one scale group to the next's; 0: they take turns
    std::byte* sums;      // [row_end - row_begin][ldc]
  };

  bool group_wise() const { return packer_.groups() > 1; }
  bool is_float() const { return first_.operand == Operand::kF32; }

  static MemberScratch* Scratch() {
    static thread_local MemberScratch scratch;
    return &scratch;
  }

  void CutBlocks() {
    const auto blocks = static_cast<int64_t>(blocks_.size());
    strips_.clear();
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t begin = packer_.rows() * i / blocks, end = packer_.rows() * (i + 1) / blocks;
      const int64_t slot_begin = i % slots_ * slot_rows_;
      const size_t strip_begin = strips_.size();
      CutStrips(slot_begin, end - begin, first_.mr, &strips_);
      blocks_[size_t(i)] = {begin, slot_begin, strip_begin, strips_.size(), strip_begin};
    }
  }

  void PackStrips(Block* block, int member, MemberScratch* scratch) {
    const bool timed = member == 0 && slot_rows_ * packer_.row_bytes() >= kTimedBytesMin;
    const int64_t start = timed ? NowNs() : 0;
    for (;;) {
      const size_t s = std::atomic_ref(block->next_strip).fetch_add(1, std::memory_order_relaxed);
      if (s >= block->strip_end) break;
      packer_.PackStrip(block->row_begin - block->slot_begin, strips_[s],
                        StripData(strips_[s], 0, 0), packed_rows_.data(),
                        row_sums_.empty() ? nullptr : row_sums_.data(), &scratch->pack);
      packed_count_.fetch_add(strips_[s].rows, std::memory_order_relaxed);
    }
    if (timed) pack_ns_ += NowNs() - start;
  }

  void Meet(int member) {
    if (members_ > 1) barrier_.Wait(!team_.SharesProcessor(member, members_));
  }

  // The strip's elements from value k of a group on.
  std::byte* StripData(const Strip& strip, int64_t group, int64_t k) const {
    const int64_t element = group * packer_.group_elements() + k;
    return packed_ + strip.row_begin * packer_.row_bytes() +
           element * strip.rows * ElementBytes(first_.operand);
  }

  static int64_t UnitsOf(const LotWeight& w) {
    const int64_t unit = w.kernel->nr / kPanelColumns;
    return (w.weight->panels() + unit - 1) / unit;
  }

  // The members' shares of one weight's panels.
  Share* SharesOf(size_t block, size_t index) {
    const size_t slot = block % size_t(slots_);
    return &shares_[(slot * lot_.size() + index) * size_t(members_)];
  }

  void DealShares(size_t block, int member) {
    for (size_t i = 0; i < lot_.size(); ++i) {
      const int64_t units = UnitsOf(lot_[i]);
      SharesOf(block, i)[member] = {units * member / members_, units * (member + 1) / members_};
    }
  }

  void Multiply(size_t block, size_t index, int member, MemberScratch* scratch) {
    const LotWeight& w = lot_[index];
    if (UnitsOf(w) < members_) return MultiplyByRows(blocks_[block], w, member, scratch);
    const int64_t unit = w.kernel->nr / kPanelColumns, panels = w.weight->panels();
    const Part part = PartOf(w, blocks_[block].strip_begin, blocks_[block].strip_end);
    if (members_ == 1) return MultiplyPart(part, 0, panels, scratch);
    Share* const shares = SharesOf(block, index);
    // Not so small that a step's own cost shows.
    const int64_t panel_macs = (part.row_end - part.row_begin) * w.weight->spec().k * kPanelColumns;
    const int64_t least_panels = std::max(kStepMacs / panel_macs, int64_t{4});
    const int64_t least = (least_panels + unit - 1) / unit;
    for (int i = 0; i < members_; ++i) {
      Share& share = shares[(member + i) % members_];
      int64_t begin = 0, end = 0;
      while (TakeStep(&share, least, &begin, &end))
        MultiplyPart(part, begin * unit, std::min(end * unit, panels), scratch);
    }
  }

  // A quarter of what is left: large steps first, and at the end, where members wait for each other, small ones.
  static bool TakeStep(Share* share, int64_t least, int64_t* begin, int64_t* end) {
    const std::atomic_ref next(share->next);
    *begin = next.load(std::memory_order_relaxed);
    do {
      if (*begin >= share->end) return false;
      *end = std::min(*begin + std::max((share->end - *begin) / 4, least), share->end);
    } while (!next.compare_exchange_weak(*begin, *end, std::memory_order_relaxed));
    return true;
  }

  // Where panels are fewer than members, they share the strips too.
  void MultiplyByRows(const Block& block, const LotWeight& w, int member, MemberScratch* scratch) {
    const int64_t units = UnitsOf(w), unit = w.kernel->nr / kPanelColumns;
    const int64_t down = members_ / units, x = member % units, y = member / units;
    if (y >= down) return;
    const auto strips = static_cast<int64_t>(block.strip_end - block.strip_begin);
    const size_t begin = block.strip_begin + size_t(strips * y / down);
    const size_t end = block.strip_begin + size_t(strips * (y + 1) / down);
    if (begin == end) return;
    MultiplyPart(PartOf(w, begin, end), x * unit, std::min((x + 1) * unit, w.weight->panels()),
                 scratch);
  }

  Part PartOf(const LotWeight& w, size_t strip_begin, size_t strip_end) const {
    Part part{};
    part.of = &w;
    part.strip_begin = strip_begin;
    part.strip_end = strip_end;
    part.block_k = BlockK(*w.kernel);
    part.row_begin = strips_[strip_begin].row_begin;
    part.row_end = strips_[strip_end - 1].row_begin + strips_[strip_end - 1].rows;
    part.correction = w.kernel->corrects() ? CommonCorrection(part) : 0;
    part.place = finisher_.PlaceForSums(BlockOf(part, 0), &part.place_ldc);
    const auto alignment = static_cast<uintptr_t>(w.kernel->place_alignment);
    const int64_t height = std::min<int64_t>(w.kernel->mr, part.row_end - part.row_begin);
    part.in_place = part.place != nullptr &&
                    (height <= w.kernel->rows_apart_max || part.place_ldc * 4 % 4096 != 0) &&
                    reinterpret_cast<uintptr_t>(part.place) % alignment == 0 &&
                    static_cast<uintptr_t>(part.place_ldc) * 4 % alignment == 0;
    return part;
  }

  // What all rows are to be corrected by; 0 where they differ.
  int32_t CommonCorrection(const Part& part) const {
    const int32_t common = packed_rows_[size_t(part.row_begin)].correction;
    for (int64_t r = part.row_begin + 1; r < part.row_end; ++r)
      if (packed_rows_[size_t(r)].correction != common) return 0;
    return common;
  }

  void MultiplyPart(Part part, int64_t begin, int64_t end, MemberScratch* scratch) {
    const int64_t unit = part.of->kernel->nr / kPanelColumns;
    const int64_t row_sums = (part.row_end - part.row_begin) * kPanelColumns * 4;
    const bool is_one_row = part.row_end - part.row_begin == 1;
    const bool whole_groups = group_wise() && is_one_row &&
                              part.of->kernel->run_groups != nullptr &&
                              !finisher_.NeedsSums(BlockOf(part, 0));
    // One row reads the weight once, so it reads it in the order in which it lies in memory: panel by panel,
    // with the sums of all scale groups kept.
    const bool in_order =
        group_wise() && is_one_row && 2 * packer_.groups() * row_sums <= SumsBytes();
    const int64_t panel_sums = in_order ? packer_.groups() * row_sums : row_sums;
    const int64_t width_max = in_order ? kPanelsInOrder : 32;
    const int64_t width = std::clamp<int64_t>(SumsBytes() / panel_sums, 2, width_max) / unit * unit;
    auto* const sums = static_cast<std::byte*>(scratch->sums.Reserve(size_t(width * panel_sums)));
    const int64_t y_bytes = group_wise() ? width * row_sums : width * kPanelColumns * 4;
    auto* y = static_cast<float*>(scratch->y.Reserve(size_t(y_bytes)));
    // A tile writes whole panels.
    const int64_t place_end =
        part.in_place ? std::min(end, part.of->weight->spec().n / kPanelColumns) : begin;
    for (int64_t p = begin; p < end; p = part.end) {
      part.begin = p;
      part.end = std::min(p + width, p < place_end ? place_end : end);
      if (p < place_end) {
        part.sums = part.place + p * kPanelColumns * 4;
        part.ldc = part.place_ldc;
        SumGroup(part, 0, scratch);
        continue;
      }
      part.sums = sums;
      part.ldc = (part.end - part.begin) * kPanelColumns;
      part.group_bytes = in_order ? part.ldc * 4 : 0;
      if (whole_groups) AddUpGroups(part, y);
      else if (group_wise()) AddUpGroups(part, in_order, y, scratch);
      else SumGroup(part, 0, scratch);
      if (part.place != nullptr) CopySums(part);
      else finisher_.Finish(*part.of->kernel->ops, BlockOf(part, 0), y);
    }
  }

  // y of all scale groups, by a kernel that goes through them by itself.
  void AddUpGroups(const Part& x, float* y) const {
    const CpuPackedWeight& weight = *x.of->weight;
    GroupArgs t;
    t.strip = StripData(strips_[x.strip_begin], 0, 0);
    t.groups = packer_.groups();
    t.group_lines = weight.group_lines();
    t.row_sums = &row_sums_[size_t(x.row_begin * packer_.groups())];
    t.offset = weight.columns().offset;
    t.stride = weight.columns().stride;
    t.correction = packed_rows_[size_t(x.row_begin)].correction;
    t.ahead_bytes = x.of->ahead_bytes;
    t.panel_stride = weight.panel_bytes();
    for (int64_t p = x.begin; p < x.end; p += t.panels) {
      t.panels = p + 1 < x.end ? 2 : 1;
      t.panel = weight.panel(p);
      t.scales = weight.columns().scales + p * kPanelColumns;
      t.column_sums = weight.columns().group_sums + p * kPanelColumns;
      t.y = y + (p - x.begin) * kPanelColumns;
      // Those of all panels at once, which lie side by side: L2 has them for the others.
      t.scales_ahead = p == x.begin ? (x.end - x.begin) * kPanelColumns : 0;
      x.of->kernel->run_groups(t);
    }
  }

  // y of all scale groups, each summed and then added.
  void AddUpGroups(const Part& x, bool in_order, float* y, MemberScratch* scratch) {
    if (in_order) SumInOrder(x, scratch);
    for (int64_t g = 0; g < packer_.groups(); ++g) {
      if (!in_order) SumGroup(x, g, scratch);
      finisher_.AddGroup(*x.of->kernel->ops, BlockOf(x, g), g, y);
    }
  }

  static void CopySums(const Part& x) {
    const int64_t end = std::min(x.end * kPanelColumns, x.of->weight->spec().n);
    const int64_t columns = end - x.begin * kPanelColumns;
    auto* to = reinterpret_cast<int32_t*>(x.place) + x.begin * kPanelColumns;
    const auto* from = reinterpret_cast<const int32_t*>(x.sums);
    for (int64_t r = x.row_begin; r < x.row_end; ++r, to += x.place_ldc, from += x.ldc)
      std::memcpy(to, from, size_t(columns) * 4);
  }

  // The sums of all scale groups of one strip.
  void SumInOrder(const Part& x, MemberScratch* scratch) {
    const MicroKernel& kernel = *x.of->kernel;
    const int64_t unit = kernel.nr / kPanelColumns;
    for (int64_t p = x.begin; p < x.end; p += unit)
      for (int64_t g = 0; g < packer_.groups(); ++g) {
        TileArgs t = Tile(x, strips_[x.strip_begin], p, g, 0);
        t.prefetch += kernel.PanelAhead(x.of->ahead_bytes);
        RunTile(kernel, t, true, scratch);
      }
  }

  // The sums of one scale group (of all K, where there is only one): a span of it at a time, of which L2 has every
  // strip while the panels pass.
  void SumGroup(const Part& x, int64_t group, MemberScratch* scratch) {
    const int64_t unit = x.of->kernel->nr / kPanelColumns, group_k = packer_.group_elements();
    const int64_t span = SpanOf(x);
    for (int64_t begin = 0; begin < group_k; begin += span) {
      const int64_t end = std::min(begin + span, group_k);
      for (int64_t p = x.begin; p < x.end; p += unit)
        for (int64_t k = begin; k < end; k += x.block_k)
          SumBlock(x, p, group, k, AheadOf(x, begin, k, end), scratch);
    }
  }

  // In whole blocks. One strip reads each block once, whatever the order.
  int64_t SpanOf(const Part& x) const {
    if (x.strip_end - x.strip_begin == 1) return packer_.group_elements();
    const int64_t column_bytes = (x.row_end - x.row_begin) * ElementBytes(x.of->kernel->operand);
    return std::max<int64_t>(RowBlockBytes() / (column_bytes * x.block_k), 1) * x.block_k;
  }

  // From the block at `k`, of a span, to the bytes that are wanted next.
  int64_t AheadOf(const Part& x, int64_t span_begin, int64_t k, int64_t span_end) const {
    const MicroKernel& kernel = *x.of->kernel;
    const int64_t unit = kernel.nr / kPanelColumns;
    const int64_t next_panel = unit * x.of->weight->panel_bytes();
    // Scale groups are taken across the panels: what comes next is the next panel's.
    if (group_wise()) return next_panel;
    if (x.strip_end - x.strip_begin == 1 && kernel.passes == 1)
      return kernel.PanelAhead(x.of->ahead_bytes);
    // What L2 holds is there soon enough.
    const int64_t weight_bytes = x.of->weight->panels() * x.of->weight->panel_bytes();
    if (kernel.spreads && weight_bytes <= L2CacheBytes() / 4 * 3) return 0;
    const int64_t line_bytes = x.of->weight->line_bytes();
    if (k + x.block_k < span_end) return x.block_k / kLineK * line_bytes;
    return next_panel - (k - span_begin) / kLineK * line_bytes;
  }

  // All strips pass over one block of a panel while it is in L1. What lies `ahead` of it is touched by the first, or
  // by several, each a part; where a kernel passes twice, the second strip takes half of it.
  void SumBlock(const Part& x, int64_t p, int64_t group, int64_t k, int64_t ahead,
                MemberScratch* scratch) {
    const MicroKernel& kernel = *x.of->kernel;
    const auto strips = static_cast<int64_t>(x.strip_end - x.strip_begin);
    const bool halved = kernel.passes > 1 && strips > 1;
    TileArgs t = Tile(x, strips_[x.strip_begin], p, group, k);
    const uint8_t* const panel = t.panel;
    auto* const c = static_cast<std::byte*>(t.c);
    const int64_t line_bytes = x.of->weight->line_bytes();
    const int64_t touching =
        kernel.spreads && ahead != 0 ? std::min(strips, kTouchingStripsMax) : 1;
    t.touch_every_other = halved;
    t.touch_period = touching;
    t.prefetch = panel + ahead;
    RunTile(kernel, t, true, scratch);
    const int64_t share_bytes = (t.lines / 2 + touching - 1) / touching * 2 * line_bytes;
    for (int64_t i = 1; i < strips; ++i) {  // of which little else differs
      const Strip& strip = strips_[x.strip_begin + size_t(i)];
      t.strip = StripData(strip, group, k);
      t.c = c + (strip.row_begin - x.row_begin) * x.ldc * 4;
      t.rows = strip.rows;
      t.prefetch = panel;
      if (i < touching) t.prefetch += ahead + i * share_bytes;
      if (halved && i == 1) t.prefetch += ahead + line_bytes;
      RunTile(kernel, t, false, scratch);
    }
  }

  // One tile; a kernel that must not see outliers gets the lines cleaned, once for all strips.
  static void RunTile(const MicroKernel& kernel, TileArgs& t, bool first_strip,
                      MemberScratch* scratch) {
    if (!kernel.split()) return kernel.run(t);
    const auto lines = static_cast<size_t>(t.lines);
    auto* clean = static_cast<uint8_t*>(scratch->clean.Reserve(lines * kLineValues));
    auto* list =
        static_cast<Outlier*>(scratch->outliers.Reserve(lines * kLineValues / 2 * sizeof(Outlier)));
    if (first_strip)
      scratch->outlier_count = kernel.set_outliers_aside(t.panel, t.lines, clean, list);
    t.panel = clean;
    kernel.run(t);
    if (scratch->outlier_count > 0)
      kernel.add_outliers(t, {list, static_cast<size_t>(scratch->outlier_count)});
  }

  int64_t BlockK(const MicroKernel& kernel) const {
    const int64_t k = packer_.group_elements();
    if (group_wise()) return k;  // the block that numerics §5 names, too
    if (is_float()) return BlockKMax(kernel);
    if (strips_.size() == 1) return kernel.passes == 1 && !kernel.split() ? k : kBlockKOneStrip;
    int64_t block_k = BlockKMax(kernel);
    if (strips_.size() == 2 && kernel.block_k == 0) block_k = kBlockKTwoStrips;
    const int64_t blocks = (k + block_k - 1) / block_k;
    const int64_t units = (k + kBlockKUnit - 1) / kBlockKUnit;
    return (units + blocks - 1) / blocks * kBlockKUnit;  // none much shorter than the others
  }

  TileArgs Tile(const Part& x, const Strip& strip, int64_t p, int64_t group, int64_t k) const {
    const CpuPackedWeight& weight = *x.of->weight;
    const int64_t line = k / kLineK;
    TileArgs t;
    t.strip = StripData(strip, group, k);
    t.panel = weight.panel(p) + (group * weight.group_lines() + line) * weight.line_bytes();
    t.panel_stride = weight.panel_bytes();
    t.lines = std::min(x.block_k / kLineK, weight.group_lines() - line);
    t.c = x.sums + group * x.group_bytes +
          ((strip.row_begin - x.row_begin) * x.ldc + (p - x.begin) * kPanelColumns) * 4;
    t.ldc = x.ldc;
    t.rows = strip.rows;
    t.panels = static_cast<int>(std::min<int64_t>(x.of->kernel->nr / kPanelColumns, x.end - p));
    t.accumulate = k > 0;
    t.correction = x.correction;
    t.column_sums =
        x.correction == 0 || k > 0 ? nullptr : weight.group_sums(group) + p * kPanelColumns;
    t.prefetch = t.panel;
    t.touch_every_other = false;
    return t;
  }

  SumsBlock BlockOf(const Part& x, int64_t group) const {
    const int64_t column = x.begin * kPanelColumns;
    const int64_t end = std::min(x.end * kPanelColumns, x.of->weight->spec().n);
    return {x.of->index, &x.of->weight->columns(),       column, end - column,     x.row_begin,
            x.row_end,   x.sums + group * x.group_bytes, x.ldc,  x.correction != 0};
  }

  const MicroKernel& first_;  // whose operand, kr and mr are everybody's
  std::span<const LotWeight> lot_;
  const ThreadTeam& team_;
  const int members_;
  ActivationPacker packer_;
  TeamBarrier barrier_;
  int64_t slots_ = 1;      // of packed rows: the next block's are packed while this one's are read
  int64_t slot_rows_ = 0;  // the most that a block has
  Arena& memory_;
  std::byte* packed_ = nullptr;  // in memory_
  std::vector<PackedRow>& packed_rows_;
  std::vector<int32_t>& row_sums_;  // [rows][groups], for weights with an offset
  std::vector<Block>& blocks_;
  std::vector<Strip>& strips_;
  std::vector<Share>& shares_;  // [slots][lot][members]
  RowFinisher finisher_;
  bool packed_ahead_ = false;
  int64_t pack_ns_ = 0;
  std::atomic<int64_t> packed_count_{0};
};

}  // namespace

int64_t RowBlockBytes() {
  static const int64_t bytes = std::clamp(L2CacheBytes() / 2, int64_t{256} << 10, int64_t{1} << 20);
  return bytes;
}

LoopReport RunTileLoop(std::span<const LotWeight> lot, std::span<RowSegment> segments,
                       std::span<const std::span<const uint32_t>> check_vectors, ThreadTeam* team,
                       int members) {
  static thread_local CallScratch scratch;
  Loop loop(lot, segments, check_vectors, *team, members, &scratch);
  if (loop.rows() == 0) return {};
  loop.Prepare();
  team->Run(members, [&loop](int member) { loop.Run(member); });
  return loop.report();
}

}  // namespace qmatmul::cpu
