// Captured graphs of small products: done again with the rows of now, never in place of something else, and
// bounded.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "kernels/cuda/graph_cache.h"
#include "tests/kernels/cuda_emulated.h"
#include "tests/support/device_call.h"
#include "tests/support/reference_call.h"

namespace qmatmul::cuda {
namespace {

using test::Random;
using test::TestActivations;
using test::TestWeight;

// One product of activations that were never seen before, and its reference; whether it was replayed.
bool IsReplayed(CudaDevice* device, const TestWeight& weight,
                const std::shared_ptr<const PackedWeight>& packed, int64_t rows, Random* random,
                Arithmetic arithmetic = Arithmetic::kW8A8) {
  const bool floats = arithmetic == Arithmetic::kW8A32;
  const TestActivations a =
      test::FloatActivations(DataType::kF32, rows, weight.spec.k, test::FloatRows::kOrdinary,
                             floats ? Quantization::kNone : Quantization::kDynamic, random);
  const Epilogue epilogue{.dtype = DataType::kF16, .activation = Activation::kRelu};
  const int64_t before = device->gpu()->graph_runs();
  const auto call = CallDevice(device, packed, a, epilogue, {}, arithmetic);
  EXPECT_TRUE(call.fault.ok()) << call.fault.message;
  EXPECT_EQ(call.bytes, test::Multiply(weight, a, epilogue, arithmetic).bytes)
      << rows << " rows of n = " << weight.spec.n;
  return device->gpu()->graph_runs() > before;
}

TEST(CudaGraphs, SmallProductsAreReplayedWithTheRowsOfNow) {
  const Emulated emulated = Open({});
  CudaDevice* device = emulated.device.get();
  Random random(80);
  for (DataType dtype : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
    const TestWeight weight = AnyWeight(dtype, 160, 40, 1, &random);
    const auto packed = test::PackOn(device, weight);
    for (Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32})
      for (int64_t rows : {1, 5, 8, 9}) {
        const int64_t before = emulated.runtime->replays();
        EXPECT_FALSE(IsReplayed(device, weight, packed, rows, &random, arithmetic)) << "the first";
        for (int i = 0; i < 3; ++i)
          EXPECT_EQ(IsReplayed(device, weight, packed, rows, &random, arithmetic), rows <= 8);
        EXPECT_EQ(emulated.runtime->replays() - before, rows <= 8 ? 3 : 0);
      }
  }
}

// Memory that moved, and a weight that took another's place: what is done is what was asked.
TEST(CudaGraphs, WhatIsDoneAgainIsWhatWouldBeDone) {
  const Emulated emulated = Open({});
  CudaDevice* device = emulated.device.get();
  Random random(81);
  const TestWeight first = AnyWeight(DataType::kInt8, 96, 40, 1, &random);
  const TestWeight second = AnyWeight(DataType::kInt8, 96, 40, 1, &random);
  const TestWeight large = AnyWeight(DataType::kInt8, 3000, 300, 1, &random);
  auto packed = test::PackOn(device, first);
  EXPECT_FALSE(IsReplayed(device, first, packed, 3, &random));
  EXPECT_TRUE(IsReplayed(device, first, packed, 3, &random));
  // The lane's memory grows, and lies elsewhere then.
  EXPECT_FALSE(IsReplayed(device, large, test::PackOn(device, large), 70, &random));
  IsReplayed(device, first, packed, 3, &random);
  EXPECT_TRUE(IsReplayed(device, first, packed, 3, &random));
  for (int i = 0; i < 4; ++i) {
    packed = nullptr;
    const TestWeight& weight = i % 2 == 0 ? second : first;
    packed = test::PackOn(device, weight);
    IsReplayed(device, weight, packed, 3, &random);
    IsReplayed(device, weight, packed, 3, &random);
    EXPECT_TRUE(IsReplayed(device, weight, packed, 3, &random));
  }
}

TEST(CudaGraphs, AreBounded) {
  const Emulated emulated = Open({});
  Random random(82);
  const TestWeight weight = AnyWeight(DataType::kInt8, 32, 8, 1, &random);
  std::vector<std::shared_ptr<const PackedWeight>> packed;
  for (size_t i = 0; i < 2 * GraphCache::kEntriesMax; ++i) {
    packed.push_back(test::PackOn(emulated.device.get(), weight));
    EXPECT_FALSE(IsReplayed(emulated.device.get(), weight, packed.back(), 1, &random));
    EXPECT_TRUE(IsReplayed(emulated.device.get(), weight, packed.back(), 1, &random));
    // One that is always wanted stays.
    EXPECT_TRUE(IsReplayed(emulated.device.get(), weight, packed[0], 1, &random));
    EXPECT_LE(size_t(emulated.runtime->graphs()), Gpu::kLanes * GraphCache::kEntriesMax);
  }
  EXPECT_GE(size_t(emulated.runtime->graphs()), GraphCache::kEntriesMax);
  EXPECT_FALSE(IsReplayed(emulated.device.get(), weight, packed[1], 1, &random)) << "forgotten";
}

TEST(CudaGraphs, ADriverThatCapturesNothing) {
  const Emulated emulated = Open({});
  emulated.runtime->SetCaptures(false);
  const int before = emulated.runtime->graphs();
  Random random(83);
  const TestWeight weight = AnyWeight(DataType::kInt8, 96, 40, 1, &random);
  const auto packed = test::PackOn(emulated.device.get(), weight);
  for (int i = 0; i < 4; ++i)
    EXPECT_FALSE(IsReplayed(emulated.device.get(), weight, packed, 2, &random));
  EXPECT_EQ(emulated.runtime->graphs(), before);
}

TEST(CudaGraphs, GoWithTheDeviceThatIsLost) {
  const Emulated emulated = Open({});
  Random random(84);
  const TestWeight weight = AnyWeight(DataType::kInt8, 96, 40, 1, &random);
  auto packed = test::PackOn(emulated.device.get(), weight);
  IsReplayed(emulated.device.get(), weight, packed, 2, &random);
  EXPECT_TRUE(IsReplayed(emulated.device.get(), weight, packed, 2, &random));
  const int64_t before = emulated.runtime->replays();
  emulated.runtime->LoseAfter(1);  // in the midst of a replay
  const TestActivations a = test::FloatActivations(
      DataType::kF32, 2, 96, test::FloatRows::kOrdinary, Quantization::kDynamic, &random);
  const Epilogue epilogue{.dtype = DataType::kF16, .activation = Activation::kRelu};
  EXPECT_EQ(CallDevice(emulated.device.get(), packed, a, epilogue).fault.reason, "DEVICE_LOST");
  EXPECT_EQ(emulated.runtime->replays(), before + 1);
  EXPECT_TRUE(emulated.device->Rearm("cuda:0"));
  packed = test::PackOn(emulated.device.get(), weight);
  EXPECT_FALSE(IsReplayed(emulated.device.get(), weight, packed, 2, &random));
  EXPECT_TRUE(IsReplayed(emulated.device.get(), weight, packed, 2, &random));
}

}  // namespace
}  // namespace qmatmul::cuda
