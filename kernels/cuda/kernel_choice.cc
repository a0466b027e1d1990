#include "kernels/cuda/kernel_choice.h"

#include <algorithm>

#include "kernels/cuda/packed_weight.h"

namespace qmatmul::cuda {
namespace {

// Few rows by dp4a, a small tile, full ones: each takes programs of its own.
constexpr RowClasses kRowClasses = {8, 64};

// A device that was not measured gets no work while another can do it.
constexpr double kUnmeasuredNs = 1e12;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::vector<KernelInfo> InfosOf(const std::vector<std::string>& why_not) {
  std::vector<KernelInfo> infos;
  for (const CudaKernel& kernel : CudaKernels()) {
    const std::string& reason = why_not[infos.size()];
    infos.push_back({std::string(kernel.name), reason.empty(), false, reason,
                     std::string(LayoutOf(kernel.weight)), kernel.weight, kernel.arithmetic});
  }
  return infos;
}

}  // namespace

KernelChoices::KernelChoices(const std::vector<std::string>& why_not, std::string_view disabled)
    : list_(InfosOf(why_not), disabled, kRowClasses), rates_(CudaKernels().size()) {}

double KernelChoices::KernelNs(size_t index, const ProductSize& size) const {
  const KernelRates& rates = rates_[index];
  if (rates.bytes_per_ns <= 0 || rates.products_per_ns <= 0) return 0;
  const CudaKernel& kernel = CudaKernels()[index];
  const int64_t rows = std::max<int64_t>(size.rows, 1);
  const bool tiles = kernel.form == Form::kMma || kernel.form == Form::kWgmma;
  const int64_t pass_rows = tiles ? rows : kernel.mr;
  const int64_t passes = RoundUp(rows, pass_rows) / pass_rows;
  // A tile of 16 rows is the least that mma computes, one of 128 what wgmma does.
  const int64_t padded = tiles ? RoundUp(rows, kernel.form == Form::kMma ? 16 : kernel.mr) : rows;
  const double values = double(size.k) * double(size.n);
  const double read_ns = double(passes) * values * BitsOf(size.weight) / 8 / rates.bytes_per_ns;
  return std::max(read_ns, values * double(padded) / rates.products_per_ns);
}

double KernelChoices::CallNs(const ProductSize& size) const {
  const CudaKernel* kernel = Select(size).kernel;
  if (kernel == nullptr || costs_.up_bytes_per_ns <= 0 || costs_.down_bytes_per_ns <= 0)
    return kUnmeasuredNs;
  return costs_.call_ns + double(size.rows) * double(size.k) / costs_.up_bytes_per_ns +
         double(size.rows) * double(size.n) * 4 / costs_.down_bytes_per_ns +
         KernelNs(size_t(kernel - CudaKernels().data()), size);
}

bool KernelChoices::IsMeasured(const ProductSize& size) const {
  for (size_t i = 0; i < rates_.size(); ++i)
    if (CudaKernels()[i].fits(size.weight, size.arithmetic) && list_.IsEligible(i, size.rows) &&
        KernelNs(i, size) <= 0)
      return false;
  return true;
}

bool KernelChoices::Merit::Beats(const Merit& other) const {
  if (usable != other.usable) return usable;
  if (sound != other.sound) return sound;
  return cost < other.cost;
}

KernelChoices::Merit KernelChoices::MeritOf(size_t index, const ProductSize& size,
                                            bool measured) const {
  // Before anything was measured: few rows by dp4a, many by the first of the table.
  const Form wanted = size.rows <= 8 ? Form::kGemv : size.rows <= 64 ? Form::kMma : Form::kWgmma;
  const double unmeasured = CudaKernels()[index].form == wanted ? 0 : 1;
  return {list_.IsUsable(index), !list_.IsQuarantined(index, size.rows),
          measured ? KernelNs(index, size) : unmeasured};
}

std::vector<KernelChoices::Ranked> KernelChoices::Rank(const ProductSize& size) const {
  const bool measured = IsMeasured(size);
  std::vector<Ranked> ranked;
  for (size_t i = 0; i < rates_.size(); ++i)
    if (const CudaKernel& kernel = CudaKernels()[i]; kernel.fits(size.weight, size.arithmetic))
      ranked.push_back({i, &kernel, KernelNs(i, size)});
  std::stable_sort(ranked.begin(), ranked.end(), [&](const Ranked& a, const Ranked& b) {
    return MeritOf(a.index, size, measured).Beats(MeritOf(b.index, size, measured));
  });
  return ranked;
}

KernelChoices::Choice KernelChoices::Select(const ProductSize& size) const {
  const bool measured = IsMeasured(size);
  Choice choice;
  Merit best{};
  for (size_t i = 0; i < rates_.size(); ++i) {
    const CudaKernel& kernel = CudaKernels()[i];
    if (!kernel.fits(size.weight, size.arithmetic) || !list_.IsUsable(i)) continue;
    const Merit merit = MeritOf(i, size, measured);
    choice.fell_back |= !merit.sound;
    if (choice.kernel != nullptr && !merit.Beats(best)) continue;
    choice.kernel = &kernel;
    best = merit;
  }
  return choice;
}

}  // namespace qmatmul::cuda
