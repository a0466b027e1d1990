#include "kernels/vulkan/product.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <string>

namespace qmatmul::vulkan {
namespace {

// The block that numerics §5 sums W8A32 in, where the groups are not the blocks.
constexpr int64_t kFloatBlock = 512;
// Groups of a dispatch that every device takes.
constexpr int64_t kGroupCountMax = 65'535;
constexpr int64_t kBlockRowsMax = 1024;

// As the push constants of sums.comp and float_sums.comp.
struct SumsArguments {
  uint32_t rows, quads, quad_begin, part_quads, steps, group_begin, group_dwords, row_dwords, block;
};
static_assert(sizeof(SumsArguments) <= Pipelines::kArgumentBytes);

uint32_t U32(int64_t value) { return static_cast<uint32_t>(value); }
int64_t Divide(int64_t value, int64_t by) { return (value + by - 1) / by; }
int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

}  // namespace

Fault Lane::Prepare() {
  for (Slot& slot : slots_)
    if (slot.commands == nullptr)
      if (Fault f = Commands::Make(gpu_, pipelines_, &slot.commands); !f.ok()) return f;
  return {};
}

Fault Lane::Reserve(int64_t bytes, Place place, Shared* shared) {
  if (shared->bytes >= bytes) return {};
  *shared = {};
  // Sizes double, so that a lane's memory settles soon.
  int64_t size = int64_t{64} << 10;
  while (size < bytes) size *= 2;
  if (Fault f = gpu_->Allocate(size, place, &shared->host); !f.ok()) return f;
  if (!gpu_->traits().is_unified)
    if (Fault f = gpu_->Allocate(size, Place::kDevice, &shared->device); !f.ok()) return f;
  shared->bytes = size;
  return {};
}

Fault Lane::Multiply(std::span<const ChosenWeight> weights, std::span<RowSegment> segments,
                     const WorkStep& step, LaneReport* report) try {
  const VulkanWeight& first = *weights[0].weight;
  HostRows packed(segments, first.spec().k, first.groups(), step.arithmetic, step.check_vectors);
  const int64_t all = packed.rows();
  if (all == 0) return {};
  if (Fault f = Prepare(); !f.ok()) return f;
  const int64_t rows_max =
      std::clamp<int64_t>(kActivationBytes / packed.row_bytes(), 1, kBlockRowsMax);
  const int64_t blocks = Divide(all, rows_max);
  const int64_t block_bytes = Divide(all, blocks) * packed.row_bytes();
  if (Fault f = Reserve(block_bytes, Place::kUpload, &activations_); !f.ok()) return f;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = all * block / blocks, rows = all * (block + 1) / blocks - begin;
    const int64_t start_ns = NowNs();
    if (Fault f = packed.Pack(begin, rows, activations_.host->data()); !f.ok()) return f;
    report->pack_ns += NowNs() - start_ns;
    report->packed_rows += rows;
    is_uploaded_ = false;
    for (const ChosenWeight& w : weights) {
      if (Fault f = MultiplyBlock(w, rows, &packed); !f.ok()) {
        Abandon();
        return f;
      }
    }
    report->padded_rows += Divide(rows, weights[0].kernel->rows) * weights[0].kernel->rows - rows;
  }
  return {};
} catch (const std::bad_alloc&) {
  Abandon();
  return {FaultKind::kResourceExhausted, "SCRATCH_MEMORY",
          "no host memory to finish a product; send fewer rows at a time, or free memory"};
}

// The buffers of what is under way are not touched before it is done.
void Lane::Abandon() {
  for (Slot& slot : slots_)
    if (slot.commands != nullptr) (void)slot.commands->Wait();
}

std::vector<Lane::Piece> Lane::CutPieces(const VulkanWeight& weight, int64_t rows) const {
  const int64_t bytes_max = std::min(kSumsBytes, gpu_->traits().range_bytes);
  const int64_t quads_max = std::max<int64_t>(bytes_max / (16 * rows), 1);
  std::vector<Piece> pieces;
  for (const WeightPart& part : weight.parts()) {
    const int64_t quads = part.stride / 4, runs = Divide(quads, quads_max);
    for (int64_t i = 0; i < runs; ++i) {
      Piece piece{&part, quads * i / runs, 0, 0, 0};
      piece.quads = quads * (i + 1) / runs - piece.quad_begin;
      const int64_t groups_max =
          std::clamp<int64_t>(bytes_max / (16 * rows * piece.quads), 1, kGroupCountMax);
      for (int64_t g = 0; g < weight.groups(); g += groups_max) {
        piece.group_begin = g;
        piece.groups = std::min(groups_max, weight.groups() - g);
        pieces.push_back(piece);
      }
    }
  }
  return pieces;
}

Fault Lane::MultiplyBlock(const ChosenWeight& w, int64_t rows, HostRows* packed) {
  const std::vector<Piece> pieces = CutPieces(*w.weight, rows);
  for (size_t i = 0; i <= pieces.size(); ++i) {
    if (i < pieces.size())
      if (Fault f = Start(w, rows, *packed, pieces[i], &slots_[i % 2]); !f.ok()) return f;
    if (i > 0)
      if (Fault f = Finish(w, rows, packed, &slots_[(i - 1) % 2]); !f.ok()) return f;
  }
  return {};
}

Fault Lane::Start(const ChosenWeight& w, int64_t rows, const HostRows& packed, const Piece& piece,
                  Slot* slot) {
  const VulkanWeight& weight = *w.weight;
  const int64_t sums_bytes = piece.groups * rows * piece.quads * 16;
  if (Fault f = Reserve(sums_bytes, Place::kDownload, &slot->sums); !f.ok()) return f;
  Commands& commands = *slot->commands;
  if (Fault f = commands.Begin(); !f.ok()) return f;
  if (activations_.device != nullptr && !is_uploaded_) {
    const VkBufferCopy region{0, 0, VkDeviceSize(rows * packed.row_bytes())};
    commands.Copy(*activations_.host, *activations_.device, {&region, 1});
    commands.Barrier();
    is_uploaded_ = true;
  }
  const int64_t block = weight.groups() > 1 ? weight.steps() : kFloatBlock / weight.values();
  const int64_t element_bytes = w.kernel->arithmetic == Arithmetic::kW8A32 ? 4 : 1;
  SumsArguments at{};
  at.rows = U32(rows);
  at.quads = U32(piece.quads);
  at.quad_begin = U32(piece.quad_begin);
  at.part_quads = U32(piece.part->stride / 4);
  at.steps = U32(weight.steps());
  at.group_begin = U32(piece.group_begin);
  at.group_dwords = U32(packed.group_elements() * element_bytes / 4);
  at.row_dwords = U32(packed.row_bytes() / 4);
  at.block = U32(block);
  if (Fault f = commands.Dispatch(
          w.kernel->shader,
          {&activations_.shader_side(), piece.part->buffer.get(), &slot->sums.shader_side()},
          std::as_bytes(std::span(&at, 1)), U32(Divide(piece.quads * 4, w.kernel->columns)),
          U32(Divide(rows, w.kernel->rows)), U32(piece.groups));
      !f.ok())
    return f;
  if (slot->sums.device != nullptr) {
    commands.Barrier();
    const VkBufferCopy region{0, 0, VkDeviceSize(sums_bytes)};
    commands.Copy(*slot->sums.device, *slot->sums.host, {&region, 1});
  }
  slot->piece = piece;
  return commands.Submit();
}

Fault Lane::Finish(const ChosenWeight& w, int64_t rows, HostRows* packed, Slot* slot) {
  if (Fault f = slot->commands->Wait(); !f.ok()) return f;
  const Piece& piece = slot->piece;
  const WeightPart& part = *piece.part;
  const bool group_wise = w.weight->groups() > 1;
  HostRows::Sums sums;
  sums.index = w.index;
  sums.weight = &w.weight->columns();
  sums.column_begin = part.column_begin + piece.quad_begin * 4;
  sums.columns = std::min(piece.quads * 4, part.columns - piece.quad_begin * 4);
  sums.stride = piece.quads * 4;
  sums.data = slot->sums.host->data();
  const auto wanted = size_t(group_wise ? rows * sums.stride : sums.columns);
  if (y_.size() < wanted) y_.resize(wanted);
  if (!group_wise) {
    packed->Finish(sums, y_.data());
    return {};
  }
  for (int64_t g = 0; g < piece.groups; ++g) {
    packed->AddGroup(sums, piece.group_begin + g, y_.data());
    sums.data = static_cast<std::byte*>(sums.data) + rows * sums.stride * 4;
  }
  if (piece.group_begin + piece.groups == w.weight->groups()) packed->Finish(sums, y_.data());
  return {};
}

}  // namespace qmatmul::vulkan
