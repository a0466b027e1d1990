// What one call may not do beside its arithmetic: allocate, pack the same activations twice, or choose
// otherwise than the ranking says.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cpu/cpu_device.h"
#include "tests/support/allocations.h"
#include "tests/support/device_call.h"

namespace qmatmul::cpu {
namespace {

using test::Fill;
using test::Random;
using test::TestActivations;

CpuDevice* Cpu() {
  static CpuDevice device({.threads = 2}, DetectCpuFeatures());
  return &device;
}

// Weights of one K in one call, their outputs and all that a Run of them takes.
struct Call {
  Call(int64_t rows, int64_t k, const std::vector<DataType>& types, int64_t group_size = 0) {
    Random random(61);
    for (const DataType type : types) {
      const int64_t n = 20 + 16 * static_cast<int64_t>(weights.size());
      weights.push_back(test::PackOn(
          Cpu(),
          MakeWeight(test::MakeSpec(type, Layout::kKN, k, n, group_size), Fill::kRandom, &random)));
      results.emplace_back(static_cast<size_t>(rows * n));
      outputs.emplace_back();
      outputs.back().epilogue.dtype = DataType::kF32;
      outputs.back().view = {reinterpret_cast<std::byte*>(results.back().data()), n * 4};
    }
    activations = IntegerActivations(DataType::kInt8, rows, k, Fill::kRandom, &random);
    view = activations.view();
    segment.activations = &view;
    segment.rows = rows;
    segment.outputs = outputs;
    step.weights = weights;
  }
  Fault Run(int threads_max) {
    return Cpu()->Run({{&segment, 1}, {&step, 1}, {}, threads_max}, &report);
  }

  std::vector<std::shared_ptr<const PackedWeight>> weights;
  std::vector<std::vector<float>> results;
  std::vector<SegmentOutput> outputs;
  TestActivations activations;
  ActivationView view;
  RowSegment segment;
  WorkStep step;
  RunReport report;
};

const MicroKernel& KernelNamed(std::string_view name) {
  for (const MicroKernel* kernel : MicroKernels())
    if (name == kernel->name) return *kernel;
  ADD_FAILURE() << "no kernel " << name;
  return *MicroKernels()[0];
}

// The packed forms that a call's kernels read. Where kernels of two forms compete for a shape the choice is
// by their measured costs, and may differ by N.
using Forms = std::set<std::tuple<Operand, int, int>>;
Forms FormsOf(std::span<const std::string_view> kernels) {
  Forms forms;
  for (const std::string_view name : kernels) {
    const MicroKernel& kernel = KernelNamed(name);
    forms.insert({kernel.operand, kernel.kr, kernel.mr});
  }
  return forms;
}

TEST(HotPath, RunAndPredictAllocateNothing) {
  Call one(1, 64, {DataType::kInt8});
  Call many(3, 64, std::vector(kWeightsPerCallMax, DataType::kInt8));
  for (Call* call : {&one, &many}) ASSERT_TRUE(call->Run(1).ok());  // buffers grow once
  const int64_t before = test::Allocations();
  for (int i = 0; i < 10; ++i)
    for (Call* call : {&one, &many}) ASSERT_TRUE(call->Run(1).ok());
  EXPECT_EQ(test::Allocations(), before) << "allocations by Run";
  int64_t ns = 0;
  for (int64_t rows = 1; rows < 100; ++rows)
    ns += Cpu()->PredictNs(rows, *one.weights[0], Arithmetic::kW8A8, 0);
  EXPECT_GT(ns, 0);
  EXPECT_EQ(test::Allocations(), before) << "allocations by PredictNs";
}

TEST(HotPath, SixteenWeightsPackTheirRowsOnce) {
  // 700 rows are several blocks, each packed by both members.
  for (const int64_t rows : {1, 7, 16, 700}) {
    Call call(rows, 300, std::vector(kWeightsPerCallMax, DataType::kInt8));
    for (const int threads_max : {1, 0}) {
      ASSERT_TRUE(call.Run(threads_max).ok());
      const size_t forms = FormsOf(call.report.kernels).size();
      EXPECT_EQ(call.report.packed_rows, rows * static_cast<int64_t>(forms)) << rows;
    }
  }
}

TEST(HotPath, WeightsOfOtherTypesShareRowsOfOneForm) {
  bool seen_shared = false;
  for (const int64_t rows : {1, 5, 40}) {
    Call call(rows, 64, {DataType::kInt4, DataType::kInt4, DataType::kInt2, DataType::kInt2});
    ASSERT_TRUE(call.Run(0).ok());
    const std::span kernels = std::span(call.report.kernels).first(call.weights.size());
    ASSERT_NE(KernelNamed(kernels.front()).weight, KernelNamed(kernels.back()).weight);
    const size_t forms = FormsOf(kernels).size();
    EXPECT_EQ(call.report.packed_rows, rows * static_cast<int64_t>(forms)) << rows;
    seen_shared =
        seen_shared || forms < FormsOf(kernels.first(2)).size() + FormsOf(kernels.last(2)).size();
  }
  EXPECT_TRUE(seen_shared) << "no form is read by kernels of both types";
  // In groups K is cut otherwise, so that the rows are another packed form.
  Call grouped(5, 64, {DataType::kInt4, DataType::kInt2}, 32);
  ASSERT_TRUE(grouped.Run(0).ok());
  EXPECT_EQ(grouped.report.packed_rows, 10);
}

TEST(HotPath, AChainPacksEveryStepOnce) {
  Call first(6, 40, {DataType::kInt8}), second(6, 20, {DataType::kInt8});
  const std::array<WorkStep, 2> steps = {first.step, second.step};
  const Epilogue intermediate{.dtype = DataType::kF32};
  first.segment.intermediates = {&intermediate, 1};
  first.segment.outputs = second.outputs;
  RunReport report;
  const Fault fault = Cpu()->Run({{&first.segment, 1}, steps, {}, 0}, &report);
  ASSERT_TRUE(fault.ok()) << fault.message;
  EXPECT_EQ(report.packed_rows, 12);
}

TEST(HotPath, PredictionIsTheBestOfTheRankingForItsTypes) {
  const KernelSelector& selector = Cpu()->selector();
  for (const int64_t k : {64, 1024}) {
    const Call call(1, k, {DataType::kInt8, DataType::kInt4}, 32);
    for (const Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32})
      for (const auto& weight : call.weights)
        for (const int64_t rows : {1, 2, 16, 31, 32, 64, 500}) {
          const auto& packed = static_cast<const CpuPackedWeight&>(*weight);
          double best = 0;
          for (int members = 1; members <= 2; ++members) {
            KernelQuery query{.rows = rows, .k = k, .n = weight->spec().n};
            query.weight_bytes = packed.panels() * packed.panel_bytes();
            query.weight = weight->spec().dtype;
            query.arithmetic = arithmetic;
            query.outlier_share = packed.outlier_share();
            query.members = members;
            const double ns = selector.Rank(query)[0].predicted_ns.value();
            if (members == 1 || ns < best) best = ns;
          }
          EXPECT_EQ(Cpu()->PredictNs(rows, *weight, arithmetic, 0), static_cast<int64_t>(best));
        }
  }
}

}  // namespace
}  // namespace qmatmul::cpu
