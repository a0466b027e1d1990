#include "kernels/host_rows.h"

#include <new>
#include <string>
#include <vector>

#include "kernels/cpu/activation_packer.h"
#include "kernels/cpu/micro_kernels.h"
#include "kernels/cpu/row_finisher.h"

namespace qmatmul {
namespace {

// The row work of the best instruction set here.
const cpu::RowOps& BestRowOps() {
  static const cpu::RowOps* const best = [] {
    const cpu::CpuFeatures features = cpu::DetectCpuFeatures();
    for (const cpu::MicroKernel* kernel : cpu::MicroKernels())
      if (kernel->supported(features)) return kernel->ops;
    return cpu::ScalarKernels().front().ops;
  }();
  return *best;
}

// What the activation packer takes for the kernel that it packs for: strips of one row are plain rows.
cpu::MicroKernel PlainRows(Arithmetic arithmetic) {
  cpu::MicroKernel kernel{};
  kernel.arithmetic = arithmetic;
  kernel.operand = arithmetic == Arithmetic::kW8A32 ? cpu::Operand::kF32 : cpu::Operand::kS8;
  kernel.mr = 1;
  kernel.kr = static_cast<int>(HostRows::kRowStep);
  kernel.ops = &BestRowOps();
  return kernel;
}

}  // namespace

struct HostRows::State {
  State(std::span<RowSegment> segments, int64_t k, int64_t groups, Arithmetic arithmetic,
        std::span<const std::span<const uint32_t>> check_vectors)
      : kernel(PlainRows(arithmetic)),
        packer(kernel, segments, k, k / groups, &first_rows),
        finisher(arithmetic == Arithmetic::kW8A32, groups, check_vectors, rows, row_sums) {}

  cpu::SumsBlock BlockOf(const Sums& sums) const {
    return {sums.index,
            sums.weight,
            sums.column_begin,
            sums.columns,
            0,
            static_cast<int64_t>(rows.size()),
            static_cast<std::byte*>(sums.data),
            sums.stride};
  }

  const cpu::MicroKernel kernel;
  std::vector<int64_t> first_rows;
  cpu::ActivationPacker packer;
  cpu::ActivationPacker::Scratch scratch;
  std::vector<cpu::PackedRow> rows;
  std::vector<int32_t> row_sums;
  cpu::RowFinisher finisher;
};

HostRows::HostRows(std::span<RowSegment> segments, int64_t k, int64_t groups, Arithmetic arithmetic,
                   std::span<const std::span<const uint32_t>> check_vectors)
    : state_(std::make_unique<State>(segments, k, groups, arithmetic, check_vectors)) {}
HostRows::~HostRows() = default;

int64_t HostRows::rows() const { return state_->packer.rows(); }
int64_t HostRows::group_elements() const { return state_->packer.group_elements(); }
int64_t HostRows::row_bytes() const { return state_->packer.row_bytes(); }

Fault HostRows::Pack(int64_t begin, int64_t count, void* out) {
  State& s = *state_;
  try {
    s.rows.resize(static_cast<size_t>(count));
    s.row_sums.clear();
    if (s.kernel.operand != cpu::Operand::kF32)
      s.row_sums.resize(static_cast<size_t>(count * s.packer.groups()));
    for (int64_t r = 0; r < count; ++r)
      s.packer.PackStrip(begin, {r, 1}, static_cast<std::byte*>(out) + r * row_bytes(),
                         s.rows.data(), s.row_sums.empty() ? nullptr : s.row_sums.data(),
                         &s.scratch);
  } catch (const std::bad_alloc&) {
    return {FaultKind::kResourceExhausted, "SCRATCH_MEMORY",
            "no memory to gather " + std::to_string(count) + " rows of " +
                std::to_string(row_bytes()) + " bytes; send fewer rows at a time, or free memory"};
  }
  return {};
}

void HostRows::AddGroup(const Sums& sums, int64_t group, float* y) {
  state_->finisher.AddGroup(*state_->kernel.ops, state_->BlockOf(sums), group, y);
}

void HostRows::Finish(const Sums& sums, float* y) {
  state_->finisher.Finish(*state_->kernel.ops, state_->BlockOf(sums), y);
}

}  // namespace qmatmul
