// Which CUDA kernel is chosen, by costs of the test's own choosing; and that asking costs no allocation. Needs no
// device, emulated or not.
#include "kernels/cuda/kernel_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/support/allocations.h"
#include "tests/support/random.h"

namespace qmatmul::cuda {
namespace {

using test::Random;

constexpr int64_t kRows[] = {0, 1, 2, 7, 8, 9, 16, 17, 64, 65, 128, 500, 32'768};

// Products of every kind, size and number of rows.
std::vector<ProductSize> Sizes() {
  std::vector<ProductSize> sizes;
  for (const DataType weight : {DataType::kInt8, DataType::kInt4, DataType::kInt2})
    for (const Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32})
      for (const int64_t side : {1, 64, 4096})
        for (const int64_t rows : kRows)
          sizes.push_back({rows, side, 2 * side, weight, arithmetic});
  return sizes;
}

TEST(CudaChoice, WithoutMeasurementsTheDeviceIsTheLastToBeAsked) {
  const std::vector<std::string> runs(CudaKernels().size());
  KernelChoices choices(runs, "");
  EXPECT_GE(choices.CallNs({1, 64, 64}), 1e12);
  const auto form_of = [&](int64_t rows) { return choices.Select({rows, 64, 64}).kernel->form; };
  EXPECT_EQ(form_of(1), Form::kGemv);
  EXPECT_EQ(form_of(8), Form::kGemv);
  EXPECT_EQ(form_of(9), Form::kMma);
  EXPECT_EQ(form_of(64), Form::kMma);
  EXPECT_EQ(form_of(65), Form::kWgmma);
  // With rates, the least time: twice the rows at a rate of one is not worth a kernel of half the speed.
  for (size_t i = 0; i < runs.size(); ++i) choices.SetRates(i, {1.0, 1.0});
  choices.SetCosts({100.0, 1.0, 1.0});
  EXPECT_EQ(form_of(1), Form::kGemv);  // mma computes sixteen rows
  EXPECT_EQ(choices.CallNs({1, 64, 64}), 100.0 + 64 + 64 * 4 + 64 * 64);
  EXPECT_FALSE(choices.Select({1, 64, 64}).fell_back);
  // A part of the measurements is none.
  choices.SetCosts({100.0, 1.0, 0.0});
  EXPECT_GE(choices.CallNs({1, 64, 64}), 1e12);
  choices.SetCosts({100.0, 0.0, 1.0});
  EXPECT_GE(choices.CallNs({1, 64, 64}), 1e12);
  choices.SetCosts({100.0, 1.0, 1.0});
  const auto ranked = choices.Rank({1, 64, 64});
  choices.SetRates(ranked.front().index, {1.0, 0.0});
  for (const auto& r : choices.Rank({1, 64, 64}))
    EXPECT_EQ(r.kernel_ns == 0, r.index == ranked.front().index);
}

TEST(CudaChoice, ADeviceWithoutAKernelIsTheLastToBeAskedToo) {
  KernelChoices choices(std::vector<std::string>(CudaKernels().size(), "lacks"), "");
  for (size_t i = 0; i < CudaKernels().size(); ++i) choices.SetRates(i, {1.0, 1.0});
  choices.SetCosts({100.0, 1.0, 1.0});
  EXPECT_EQ(choices.Select({1, 64, 64}).kernel, nullptr);
  EXPECT_GE(choices.CallNs({1, 64, 64}), 1e12);
}

// Kernels that lack something, are disabled or put aside, with equal costs, other costs or none.
TEST(CudaChoice, TheScanChoosesWhatTheSortedListBeginsWith) {
  Random random(31);
  const auto table = CudaKernels();
  int chosen = 0, none = 0, fallbacks = 0;
  for (int i = 0; i < 200; ++i) {
    std::vector<std::string> why_not(table.size());
    std::string disabled;
    for (size_t k = 0; k < table.size(); ++k) {
      if (random.Chance(20)) why_not[k] = "lacks";
      if (random.Chance(20)) disabled += std::string(table[k].name) + ",";
    }
    KernelChoices choices(why_not, disabled);
    const int unmeasured_percent = random.Chance(50) ? 0 : 10;
    for (size_t k = 0; k < table.size(); ++k) {
      if (random.Chance(unmeasured_percent)) continue;
      choices.SetRates(k, {double(random.Between(1, 3)), double(random.Between(1, 3) * 100)});
    }
    const KernelList& list = choices.list();
    for (const CudaKernel& kernel : table)
      for (const int64_t rows : {1, 9, 65})
        if (random.Chance(15)) choices.list().Quarantine(kernel.name, rows, "x");
    for (const ProductSize& size : Sizes()) {
      const auto ranked = choices.Rank(size);
      const KernelChoices::Choice choice = choices.Select(size);
      const bool any = !ranked.empty() && list.IsUsable(ranked[0].index);
      EXPECT_EQ(choice.kernel, any ? ranked[0].kernel : nullptr);
      const bool aside = std::any_of(ranked.begin(), ranked.end(), [&](const auto& r) {
        return list.IsUsable(r.index) && list.IsQuarantined(r.index, size.rows);
      });
      EXPECT_EQ(choice.fell_back, aside);
      (any ? chosen : none)++;
      fallbacks += aside;
    }
  }
  EXPECT_GT(chosen, 1000);
  EXPECT_GT(none, 100);
  EXPECT_GT(fallbacks, 1000);
}

// The sorted list itself: what may not serve last, then what was put aside, then by time.
TEST(CudaChoice, TheListIsSortedByWhatServesAndByTime) {
  const auto table = CudaKernels();
  std::vector<std::string> why_not(table.size());
  for (size_t k = 0; k < table.size(); ++k)
    if (table[k].form == Form::kWgmma) why_not[k] = "lacks";
  KernelChoices choices(why_not, "");
  const auto forms_of = [&](int64_t rows) {
    std::vector<Form> forms;
    for (const auto& r : choices.Rank({rows, 64, 64})) forms.push_back(r.kernel->form);
    return forms;
  };
  for (size_t k = 0; k < table.size(); ++k)
    choices.SetRates(k, {1.0, table[k].form == Form::kGemv ? 100.0 : 200.0});
  EXPECT_EQ(forms_of(500), (std::vector{Form::kMma, Form::kGemv, Form::kWgmma}));
  for (size_t k = 0; k < table.size(); ++k)
    choices.SetRates(k, {1.0, table[k].form == Form::kGemv ? 1e6 : 1.0});
  EXPECT_EQ(forms_of(500), (std::vector{Form::kGemv, Form::kMma, Form::kWgmma}));
  for (const CudaKernel& kernel : table)
    if (kernel.form == Form::kGemv) choices.list().Quarantine(kernel.name, 500, "x");
  EXPECT_EQ(forms_of(500), (std::vector{Form::kMma, Form::kGemv, Form::kWgmma}));
}

TEST(CudaChoice, ChoosingAndPredictingAllocateNothing) {
  KernelChoices choices(std::vector<std::string>(CudaKernels().size()), "");
  for (size_t i = 0; i < CudaKernels().size(); ++i) choices.SetRates(i, {1.0, 100.0});
  choices.SetCosts({100.0, 1.0, 1.0});
  const std::vector<ProductSize> sizes = Sizes();
  double ns = 0;
  int64_t chosen = 0;
  const int64_t before = test::Allocations();
  for (const ProductSize& size : sizes) {
    chosen += choices.Select(size).kernel != nullptr;
    ns += choices.CallNs(size);
  }
  EXPECT_EQ(test::Allocations(), before);
  EXPECT_EQ(chosen, int64_t(sizes.size()));
  EXPECT_GT(ns, 0);
  EXPECT_FALSE(choices.Rank(sizes[0]).empty());
  EXPECT_GT(test::Allocations(), before) << "and the count counts";
}

}  // namespace
}  // namespace qmatmul::cuda
