// The CUDA device on emulated GPUs: every program in hostile orders, memory to the byte, memory that is short,
// a device that is lost, kernels that are wrong. What all devices have in common is tested by the files that
// are built once more for this one (conformance, all_pairs, chain, top_k, pack).
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/agreement.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/runtime_emulated.h"
#include "kernels/self_test.h"
#include "tests/kernels/cuda_emulated.h"
#include "tests/support/device_call.h"
#include "tests/support/product_case.h"
#include "tests/support/reference_call.h"

namespace qmatmul::cuda {
namespace {

using test::CheckProduct;
using test::Fill;
using test::ProductCase;
using test::ProductRequest;
using test::Random;
using test::TestActivations;
using test::TestWeight;

// One product of `rows` rows with every kernel that fits.
void CheckKernels(Device* device, DataType dtype, int64_t rows, int64_t k, int64_t n,
                  int64_t groups, Random* random) {
  for (const KernelInfo& kernel : device->Kernels()) {
    if (kernel.weight != dtype || !kernel.supported) continue;
    const bool floats = kernel.arithmetic == Arithmetic::kW8A32;
    ProductCase product{.name = std::to_string(rows) + " rows of " + std::to_string(k) + ", n " +
                                std::to_string(n) + ", groups " + std::to_string(groups),
                        .weights = {AnyWeight(dtype, k, n, groups, random)},
                        .requests = {},
                        .arithmetic = kernel.arithmetic,
                        .row_checks = !floats};
    constexpr DataType outputs[] = {DataType::kF32, DataType::kF16, DataType::kInt8};
    const DataType output = random->Pick<DataType>(outputs);
    ProductRequest request{
        .activations =
            test::FloatActivations(DataType::kF32, rows, k, test::FloatRows::kOrdinary,
                                   floats ? Quantization::kNone : Quantization::kDynamic, random),
        .epilogues = {{.dtype = output, .scaled = output == DataType::kInt8, .scale = 0.5f}}};
    product.requests = {std::move(request)};
    CheckProduct(device, kernel.name, product);
  }
}

struct OrderRow {
  const char* name;
  simt::Order order;
  uint64_t seed;
};
class CudaOrders : public testing::TestWithParam<OrderRow> {};

// Blocks and threads have no order; and no program goes untested, slices of K included.
TEST_P(CudaOrders, EveryProgramGivesTheReferencesBytes) {
  EmulatedOptions options;
  options.order = GetParam().order;
  options.seed = GetParam().seed;
  const Emulated emulated = Open(options);
  std::array<int64_t, kKernelCount> before;
  for (size_t id = 0; id < kKernelCount; ++id)
    before[id] = emulated.runtime->launches(KernelId(id));
  Random random(GetParam().seed);
  for (DataType dtype : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
    // Rows of each program; few columns and much k are cut into slices, many columns are not.
    for (int64_t rows : {1, 2, 3, 7, 13, 29, 61}) {
      CheckKernels(emulated.device.get(), dtype, rows, 4160, 9, 1, &random);
      CheckKernels(emulated.device.get(), dtype, rows, 70, 300, 1, &random);
      if (dtype == DataType::kInt4)
        CheckKernels(emulated.device.get(), dtype, rows, 40 * 70, 9, 70, &random);
    }
    CheckKernels(emulated.device.get(), dtype, 131, 70, 300, 1, &random);
  }
  std::vector<int8_t> unpacked(70);
  const TestWeight weight = AnyWeight(DataType::kInt8, 7, 10, 1, &random);
  const auto packed = test::PackOn(emulated.device.get(), weight);
  ASSERT_TRUE(emulated.device->Unpack(*packed, 0, 7, unpacked).ok());
  for (size_t id = 0; id < kKernelCount; ++id) {
    if (KernelId(id) == KernelId::kWgmma8) continue;
    EXPECT_GT(emulated.runtime->launches(KernelId(id)), before[id]) << "program " << id;
  }
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaOrders,
                         testing::Values(OrderRow{"Forward", simt::Order::kForward, 1},
                                         OrderRow{"Reversed", simt::Order::kReversed, 2},
                                         OrderRow{"Random", simt::Order::kRandom, 3}),
                         [](const testing::TestParamInfo<OrderRow>& row) {
                           return std::string(row.param.name);
                         });

TEST(CudaMemory, WeightsReportTheirBytesAndGiveThemBack) {
  for (int64_t piece : {int64_t{0}, int64_t{1} << 20}) {
    EmulatedOptions options;
    options.arena_piece_bytes = piece;
    Emulated emulated = Open(options);
    Arena& arena = emulated.device->gpu()->arena();
    Random random(20);
    // What lanes keep for staging has its greatest size after this.
    (void)test::PackOn(emulated.device.get(), AnyWeight(DataType::kInt8, 3000, 200, 1, &random));
    const int64_t before = arena.used_bytes();
    std::vector<std::shared_ptr<const PackedWeight>> held;
    int64_t reported = 0;
    for (int i = 0; i < 30; ++i) {
      held.push_back(test::PackOn(
          emulated.device.get(),
          AnyWeight(DataType::kInt8, random.Between(1, 3000), random.Between(1, 200), 1, &random)));
      reported += held.back()->bytes();
      EXPECT_EQ(arena.used_bytes() - before, reported);
      if (!random.Chance(40)) continue;
      const auto victim = held.begin() + random.Between(0, int64_t(held.size()) - 1);
      reported -= (*victim)->bytes();
      held.erase(victim);
      EXPECT_EQ(arena.used_bytes() - before, reported);
    }
    EXPECT_LE(arena.used_bytes(), arena.held_bytes());
    EXPECT_EQ(arena.held_bytes(), emulated.runtime->allocated_bytes());
    // Weights may outlive the device.
    emulated.device = nullptr;
    held.clear();
  }
}

TEST(CudaMemory, TooLittleIsAFaultAndNothingIsLost) {
  Emulated emulated = Open({});
  Device* device = emulated.device.get();
  Random random(21);
  const TestWeight weight = AnyWeight(DataType::kInt8, 512, 512, 1, &random);
  auto packed = test::PackOn(device, weight);
  const int64_t held = emulated.runtime->allocated_bytes();
  emulated.runtime->SetMemoryBytes(held + 1000);
  std::shared_ptr<const PackedWeight> second;
  Fault fault = device->Pack(weight.view(), &second);
  EXPECT_EQ(fault.kind, FaultKind::kResourceExhausted);
  EXPECT_EQ(fault.reason, "WEIGHT_MEMORY");
  EXPECT_NE(fault.message.find("k = 512, n = 512"), std::string::npos) << fault.message;
  EXPECT_EQ(second, nullptr);
  EXPECT_EQ(emulated.runtime->allocated_bytes(), held);

  const TestActivations activations =
      IntegerActivations(DataType::kInt8, 3000, 512, Fill::kRandom, &random);
  fault = CallDevice(device, packed, activations, {}).fault;
  EXPECT_EQ(fault.kind, FaultKind::kResourceExhausted);
  EXPECT_EQ(fault.reason, "SCRATCH_MEMORY");
  EXPECT_NE(fault.message.find("3000 rows"), std::string::npos) << fault.message;

  emulated.runtime->SetMemoryBytes(int64_t{1} << 30);
  EXPECT_TRUE(CallDevice(device, packed, activations, {}).fault.ok());
  EXPECT_TRUE(device->Pack(weight.view(), &second).ok());
}

// A device of 8 MiB cuts rows into tiles of a quarter of a MiB.
TEST(CudaMemory, RowsInTiles) {
  EmulatedOptions options;
  options.memory_bytes = 8 << 20;
  const Emulated emulated = Open(options);
  Random random(22);
  ProductCase product{.name = "tiles",
                      .weights = {AnyWeight(DataType::kInt8, 100, 300, 1, &random),
                                  AnyWeight(DataType::kInt4, 100, 70, 2, &random)},
                      .requests = {},
                      .row_checks = true};
  for (int64_t rows : {90, 0, 250}) {
    ProductRequest request{
        .activations = test::FloatActivations(DataType::kBF16, rows, 100, test::FloatRows::kCorners,
                                              Quantization::kDynamic, &random),
        .epilogues = {{.dtype = DataType::kInt16}, {.dtype = DataType::kF16}}};
    request.epilogues[0].skip_bias = true;
    if (rows == 250) request.segments = {{100, 150}, {1, 80}};
    product.requests.push_back(std::move(request));
  }
  CheckProduct(emulated.device.get(), "", product);
}

TEST(CudaLoss, EverythingSaysSoAndNothingHangs) {
  Random random(23);
  const TestWeight weight = AnyWeight(DataType::kInt8, 300, 40, 1, &random);
  const TestActivations activations =
      IntegerActivations(DataType::kInt8, 5, 300, Fill::kRandom, &random);
  for (int64_t after : {0, 1}) {  // while rows are prepared, and in the product
    Emulated emulated = Open({});
    Device* device = emulated.device.get();
    const auto packed = test::PackOn(device, weight);
    ASSERT_TRUE(CallDevice(device, packed, activations, {.skip_bias = true}).fault.ok());
    emulated.runtime->LoseAfter(after);
    const Fault fault = CallDevice(device, packed, activations, {.skip_bias = true}).fault;
    EXPECT_EQ(fault.kind, FaultKind::kDeviceLost);
    EXPECT_EQ(fault.reason, "DEVICE_LOST");
    EXPECT_NE(fault.message.find("cuda:0"), std::string::npos) << fault.message;
    EXPECT_EQ(CallDevice(device, packed, activations, {}).fault.kind, FaultKind::kDeviceLost);
    std::shared_ptr<const PackedWeight> second;
    EXPECT_EQ(device->Pack(weight.view(), &second).kind, FaultKind::kDeviceLost);
    std::vector<int8_t> rows(40);
    EXPECT_EQ(device->Unpack(*packed, 0, 1, rows).kind, FaultKind::kDeviceLost);
  }
}

TEST(CudaLoss, WhileAWeightIsPacked) {
  Random random(24);
  const TestWeight weight = AnyWeight(DataType::kInt8, 300, 40, 1, &random);
  Emulated emulated = Open({});
  emulated.runtime->LoseAfter(1);  // the sums of the columns
  std::shared_ptr<const PackedWeight> packed;
  EXPECT_EQ(emulated.device->Pack(weight.view(), &packed).reason, "DEVICE_LOST");
}

// Closed, reset and made anew; what was on it before is lost and touches nothing of what is there now.
TEST(CudaLoss, TheDeviceIsOpenedAnewAndServesAgain) {
  for (int64_t piece : {int64_t{0}, int64_t{1} << 20}) {
    EmulatedOptions options;
    options.arena_piece_bytes = piece;
    Emulated emulated = Open(options);
    Device* device = emulated.device.get();
    Random random(60);
    const TestWeight weight = AnyWeight(DataType::kInt8, 300, 40, 1, &random);
    const TestActivations a = IntegerActivations(DataType::kInt8, 5, 300, Fill::kRandom, &random);
    const Epilogue raw{.skip_bias = true};
    auto before = test::PackOn(device, weight);
    EXPECT_FALSE(device->Rearm("cuda:0")) << "it is not lost";
    EXPECT_FALSE(before->is_lost());
    emulated.runtime->LoseAfter(0);
    EXPECT_EQ(CallDevice(device, before, a, raw).fault.reason, "DEVICE_LOST");
    EXPECT_TRUE(before->is_lost());
    ASSERT_EQ(device->Quarantined().size(), device->Kernels().size());
    EXPECT_EQ(device->Quarantined()[0].key, "cuda:0");
    EXPECT_GT(device->Quarantined()[0].unix_time_ns, 0);

    emulated.runtime->SetFailingResets(2);
    for (int i = 0; i < 2; ++i) {
      EXPECT_FALSE(device->Rearm("cuda:0")) << "it has not come back";
      std::shared_ptr<const PackedWeight> none;
      EXPECT_EQ(device->Pack(weight.view(), &none).reason, "DEVICE_LOST");
    }
    EXPECT_TRUE(device->Rearm("cuda:0"));
    EXPECT_EQ(emulated.runtime->resets(), 1);
    EXPECT_TRUE(device->Quarantined().empty());
    EXPECT_TRUE(before->is_lost());
    EXPECT_EQ(CallDevice(device, before, a, raw).fault.reason, "DEVICE_LOST");
    std::vector<int8_t> rows(40);
    EXPECT_EQ(device->Unpack(*before, 0, 1, rows).reason, "DEVICE_LOST");

    Arena& arena = emulated.device->gpu()->arena();
    const auto after = test::PackOn(device, weight);
    const int64_t used = arena.used_bytes();
    before = nullptr;
    EXPECT_EQ(arena.used_bytes(), used);
    EXPECT_EQ(arena.held_bytes(), emulated.runtime->allocated_bytes());
    for (DataType dtype : {DataType::kInt8, DataType::kInt4, DataType::kInt2})
      for (int64_t m : {1, 13, 70}) CheckKernels(device, dtype, m, 96, 40, 1, &random);
    EXPECT_TRUE(CallDevice(device, after, a, raw).fault.ok());
  }
}

// Loses the device whenever it runs one program, as long as a test says so.
class MoodyRuntime final : public EmulatedRuntime {
 public:
  using EmulatedRuntime::EmulatedRuntime;
  Error Launch(Stream stream, const KernelLaunch& launch) override {
    if (is_deadly && launch.id == KernelId::kMma8R64) LoseAfter(0);
    return EmulatedRuntime::Launch(stream, launch);
  }
  std::atomic<bool> is_deadly = false;
};

// What packing a weight says, which a lost device notices.
Fault PackFault(const Emulated& emulated, const TestWeight& weight) {
  std::shared_ptr<const PackedWeight> packed;
  return emulated.device->Pack(weight.view(), &packed);
}

TEST(CudaLoss, LostAgainWhileItProvesItself) {
  const Emulated emulated = Open<MoodyRuntime>({});
  auto& runtime = static_cast<MoodyRuntime&>(*emulated.runtime);
  Random random(61);
  const TestWeight weight = AnyWeight(DataType::kInt8, 64, 20, 1, &random);
  emulated.runtime->LoseAfter(0);
  EXPECT_EQ(PackFault(emulated, weight).reason, "DEVICE_LOST");
  runtime.is_deadly = true;
  EXPECT_FALSE(emulated.device->Rearm("cuda:0"));
  EXPECT_EQ(runtime.resets(), 1);
  EXPECT_EQ(PackFault(emulated, weight).reason, "DEVICE_LOST");
  runtime.is_deadly = false;
  EXPECT_TRUE(emulated.device->Rearm("cuda:0"));
  // No kernel is put aside for what was the device's fault.
  EXPECT_TRUE(emulated.device->Quarantined().empty());
  CheckKernels(emulated.device.get(), DataType::kInt8, 61, 70, 40, 1, &random);
}

// Those who pack and compute while it is lost and opened anew get exact bytes or DEVICE_LOST, nothing else.
TEST(CudaLoss, WhileOthersAreAtWork) {
  const Emulated emulated = Open({});
  std::atomic<bool> done = false;
  std::atomic<int> exact = 0, lost = 0, wrong = 0;
  const auto work = [&](uint64_t seed) {
    Random random(seed);
    const TestWeight weight = AnyWeight(DataType::kInt8, 64, 20, 1, &random);
    const TestActivations a = IntegerActivations(DataType::kInt8, 3, 64, Fill::kRandom, &random);
    // The device may be lost before this thread's first product.
    const auto sums = test::Multiply(weight, a, {.skip_bias = true});
    std::shared_ptr<const PackedWeight> packed;
    while (!done) {
      if (packed == nullptr || packed->is_lost()) {
        const Fault fault = emulated.device->Pack(weight.view(), &packed);
        if (!fault.ok()) packed = nullptr;
        wrong += !fault.ok() && fault.kind != FaultKind::kDeviceLost;
        continue;
      }
      const auto call = CallDevice(emulated.device.get(), packed, a, {.skip_bias = true});
      if (call.fault.ok()) call.bytes == sums.bytes ? ++exact : ++wrong;
      else call.fault.kind == FaultKind::kDeviceLost ? ++lost : ++wrong;
    }
  };
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) threads.emplace_back(work, 70 + t);
  for (int round = 1; round <= 3; ++round) {
    const int before = exact;
    while (exact < before + 8) std::this_thread::yield();
    emulated.runtime->LoseAfter(5);
    while (emulated.device->Quarantined().empty()) std::this_thread::yield();
    while (!emulated.device->Rearm("cuda:0")) {}
    EXPECT_EQ(emulated.runtime->resets(), round);
  }
  const int before = exact;
  while (exact < before + 8) std::this_thread::yield();
  done = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(lost, 0);
}

// Has no memory left once it has computed something, as long as a test says so.
class StingyRuntime final : public EmulatedRuntime {
 public:
  using EmulatedRuntime::EmulatedRuntime;
  Error Allocate(int64_t bytes, std::byte** memory) override {
    if (is_stingy && launches() > launches_before) return {ErrorKind::kOutOfMemory, "taken"};
    return EmulatedRuntime::Allocate(bytes, memory);
  }
  std::atomic<bool> is_stingy = false;
  std::atomic<int64_t> launches_before = 0;
};

TEST(CudaLoss, MemoryIsShortWhileItProvesItself) {
  const Emulated emulated = Open<StingyRuntime>({.arena_piece_bytes = 1});
  auto& runtime = static_cast<StingyRuntime&>(*emulated.runtime);
  Random random(62);
  const TestWeight weight = AnyWeight(DataType::kInt8, 64, 20, 1, &random);
  emulated.runtime->LoseAfter(0);
  EXPECT_EQ(PackFault(emulated, weight).reason, "DEVICE_LOST");
  for (int attempt = 1; attempt <= 2; ++attempt) {
    runtime.launches_before = runtime.launches();
    runtime.is_stingy = true;
    EXPECT_FALSE(emulated.device->Rearm("cuda:0"));
    EXPECT_GT(runtime.launches(), runtime.launches_before) << "its proof had begun";
    EXPECT_EQ(runtime.resets(), attempt);
    const Fault fault = PackFault(emulated, weight);
    EXPECT_EQ(fault.reason, "DEVICE_LOST");
    EXPECT_NE(fault.message.find("taken"), std::string::npos) << fault.message;
  }
  runtime.is_stingy = false;
  EXPECT_TRUE(emulated.device->Rearm("cuda:0"));
  EXPECT_TRUE(emulated.device->Quarantined().empty());
  CheckKernels(emulated.device.get(), DataType::kInt8, 61, 70, 40, 1, &random);
}

// Does not run one program: its results stay rubbish.
template <KernelId kBroken>
class BrokenRuntime final : public EmulatedRuntime {
 public:
  using EmulatedRuntime::EmulatedRuntime;
  Error Launch(Stream stream, const KernelLaunch& launch) override {
    if (launch.id == kBroken) return {};
    return EmulatedRuntime::Launch(stream, launch);
  }
};

TEST(CudaSelfTest, AWrongKernelIsPutAsideForItsRowsAndOthersServe) {
  const Emulated emulated = Open<BrokenRuntime<KernelId::kGemv8R1>>({});
  Device* device = emulated.device.get();
  const std::vector<QuarantineInfo> quarantined = device->Quarantined();
  ASSERT_EQ(quarantined.size(), 1u);
  EXPECT_EQ(quarantined[0].key, "cuda.dp4a.s8s8s32.8x4x16/m1-8");
  EXPECT_NE(quarantined[0].reason.find("differs from the reference"), std::string::npos);
  Random random(25);
  const auto packed = test::PackOn(device, AnyWeight(DataType::kInt8, 64, 20, 1, &random));
  const TestActivations one = IntegerActivations(DataType::kInt8, 1, 64, Fill::kRandom, &random);
  const Epilogue raw{.skip_bias = true};
  test::DeviceCall call = CallDevice(device, packed, one, raw);
  EXPECT_TRUE(call.fault.ok());
  EXPECT_EQ(call.report.kernel, "cuda.mma.s8s8s32.128x128x32");
  EXPECT_EQ(call.report.fallback, "quarantine");
  EXPECT_EQ(CallDevice(device, packed, one, raw, "cuda.dp4a.s8s8s32.8x4x16").fault.reason,
            "KERNEL_UNSUPPORTED");
  // It stays aside, once, when the device is lost and opened anew.
  emulated.runtime->LoseAfter(0);
  EXPECT_EQ(CallDevice(device, packed, one, raw).fault.reason, "DEVICE_LOST");
  EXPECT_TRUE(device->Rearm("cuda:0"));
  ASSERT_EQ(device->Quarantined().size(), 1u);
  EXPECT_EQ(device->Quarantined()[0].key, "cuda.dp4a.s8s8s32.8x4x16/m1-8");
  EXPECT_FALSE(device->Rearm("cuda.dp4a.s8s8s32.8x4x16/m9-64"));
  EXPECT_TRUE(device->Rearm("cuda.dp4a.s8s8s32.8x4x16/m1-8"));
  EXPECT_TRUE(device->Quarantined().empty());
}

// A call's costs are measured with a kernel that serves, whichever stands first in the table.
TEST(CudaSelfTest, AKernelThatIsPutAsideDoesNotSpoilTheCosts) {
  const Emulated emulated = Open<BrokenRuntime<KernelId::kMma8R16>>({});
  Device* device = emulated.device.get();
  EXPECT_FALSE(device->Quarantined().empty());
  Random random(29);
  const auto tiny = test::PackOn(device, AnyWeight(DataType::kInt8, 1, 1, 1, &random));
  const TestActivations one = IntegerActivations(DataType::kInt8, 1, 1, Fill::kRandom, &random);
  const test::DeviceCall call = CallDevice(device, tiny, one, {.skip_bias = true});
  EXPECT_TRUE(call.fault.ok());
  EXPECT_EQ(call.report.kernel, "cuda.dp4a.s8s8s32.8x4x16");
  EXPECT_GT(device->PredictNs(1, *tiny, Arithmetic::kW8A8, 0), 1000) << "a copy each way, at least";
}

// Loses the device whenever it runs one program.
template <KernelId kDeadly>
class DeadlyRuntime final : public EmulatedRuntime {
 public:
  using EmulatedRuntime::EmulatedRuntime;
  Error Launch(Stream stream, const KernelLaunch& launch) override {
    if (launch.id == kDeadly) LoseAfter(0);
    return EmulatedRuntime::Launch(stream, launch);
  }
};

TEST(CudaSelfTest, AKernelThatLosesTheDeviceIsNotOfferedAndTheDeviceIsMadeAnew) {
  const Emulated emulated = Open<DeadlyRuntime<KernelId::kMma8R64>>({});
  ASSERT_NE(emulated.device, nullptr);
  for (const KernelInfo& kernel : emulated.device->Kernels()) {
    if (kernel.name.starts_with("cuda.wgmma")) continue;  // never emulated
    EXPECT_EQ(kernel.supported, kernel.name != "cuda.mma.s8s8s32.128x128x32") << kernel.reason;
    EXPECT_EQ(kernel.reason, kernel.supported ? "" : "it lost the device in its self-test");
  }
  Random random(28);
  const auto packed =
      test::PackOn(emulated.device.get(), AnyWeight(DataType::kInt8, 64, 20, 1, &random));
  const TestActivations many = IntegerActivations(DataType::kInt8, 70, 64, Fill::kRandom, &random);
  const test::DeviceCall call =
      CallDevice(emulated.device.get(), packed, many, {.skip_bias = true});
  EXPECT_TRUE(call.fault.ok()) << call.fault.message;
  EXPECT_EQ(call.report.kernel, "cuda.dp4a.s8s8s32.8x4x16");
}

// What wgmma must show on a GPU, shown on kernels that are emulated.
TEST(CudaSelfTest, KernelsAreComparedOnLargeProducts) {
  const std::string_view gemv = "cuda.dp4a.s8s8s32.8x4x16", mma = "cuda.mma.s8s8s32.128x128x32";
  const Emulated sound = Open({});
  EXPECT_TRUE(CompareKernels(sound.device.get(), 4, gemv, mma).ok());
  // A program that self-tests of 77 rows do not meet on a device of four multiprocessors.
  const Emulated broken = Open<BrokenRuntime<KernelId::kMma8R128>>({});
  EXPECT_TRUE(broken.device->Quarantined().empty());
  const Fault fault = CompareKernels(broken.device.get(), 4, mma, gemv);
  EXPECT_EQ(fault.reason, kSelfTestFailed);
  EXPECT_NE(fault.message.find("differs from"), std::string::npos);
}

TEST(CudaChoice, ForcedUnknownForeignAndMismatched) {
  const Emulated emulated = Open({}, "cuda.mma.s8s8s32");
  EmulatedOptions other_options;
  other_options.index = 1;
  const Emulated other = Open(other_options);
  Device* device = emulated.device.get();
  Random random(26);
  const TestWeight weight = AnyWeight(DataType::kInt8, 64, 20, 1, &random);
  const auto packed = test::PackOn(device, weight);
  const TestActivations a = IntegerActivations(DataType::kInt8, 2, 64, Fill::kRandom, &random);
  const Epilogue raw{.skip_bias = true};
  const auto reason_of = [&](std::string_view kernel) {
    return CallDevice(device, packed, a, raw, kernel).fault.reason;
  };
  EXPECT_EQ(reason_of(""), "");
  EXPECT_EQ(reason_of("cuda.dp4a.s8s8s32.8x4x16"), "");
  EXPECT_EQ(reason_of("cuda.none"), "KERNEL_UNKNOWN");
  EXPECT_EQ(reason_of("cuda.mma.s8s8s32.128x128x32"), "KERNEL_UNSUPPORTED");
  EXPECT_EQ(reason_of("cuda.dp4a.s8s4s32.8x4x32"), "LAYOUT_MISMATCH");
  EXPECT_EQ(CallDevice(other.device.get(), packed, a, raw).fault.reason, "LAYOUT_MISMATCH");
}

TEST(CudaChoice, PredictionsAreMeasuredAndExplained) {
  const Emulated emulated = Open({});
  Device* device = emulated.device.get();
  EXPECT_EQ(device->info().id, "cuda:0");
  EXPECT_EQ(device->info().kind, "cuda");
  EXPECT_EQ(device->info().lanes, 3);
  Random random(27);
  const auto large = test::PackOn(device, AnyWeight(DataType::kInt8, 512, 512, 1, &random));
  const int64_t one_row = device->PredictNs(1, *large, Arithmetic::kW8A8, 0);
  EXPECT_GT(one_row, 0);
  EXPECT_GT(device->PredictNs(65536, *large, Arithmetic::kW8A8, 0), 10 * one_row);
  const auto packed = test::PackOn(device, AnyWeight(DataType::kInt8, 64, 20, 1, &random));
  const auto choices = device->Explain(3, {&packed, 1}, Arithmetic::kW8A8, "");
  ASSERT_EQ(choices.size(), 3u);
  EXPECT_TRUE(choices[0].chosen);
  EXPECT_FALSE(choices[1].chosen);
  EXPECT_EQ(choices[2].reason, "wgmma is not emulated: it needs an sm_90a GPU");
  for (const KernelChoice& choice : {choices[0], choices[1]}) {
    EXPECT_TRUE(choice.eligible);
    EXPECT_TRUE(choice.predicted_ns.has_value());
    EXPECT_NE(choice.reason, "");
  }
  EXPECT_LE(*choices[0].predicted_ns, *choices[1].predicted_ns);
  const auto forced = device->Explain(3, {&packed, 1}, Arithmetic::kW8A8, choices[1].name);
  EXPECT_EQ(forced[0].name, choices[1].name);
  EXPECT_EQ(forced[0].reason, "forced by the request");
}

TEST(CudaChoice, ADeviceThatIsNotWantedIsNotOpened) {
  std::string why_not;
  EXPECT_EQ(CudaDevice::Open(std::make_unique<EmulatedRuntime>(EmulatedOptions()),
                             {.disabled_kernels = "cpu.avx2, cuda"}, &why_not),
            nullptr);
  EXPECT_NE(why_not.find("disabled by configuration"), std::string::npos) << why_not;
  // Nothing is missed where nothing was asked for.
  std::string why_none = "what was said before";
  EXPECT_TRUE(OpenCudaDevices({.disabled_kernels = "cuda"}, &why_none).empty());
  EXPECT_EQ(why_none, "");
}

// More callers than lanes.
TEST(CudaLanes, ManyThreadsAtOnce) {
  const Emulated emulated = Open({});
  std::vector<std::thread> callers;
  for (uint64_t t = 0; t < 6; ++t)
    callers.emplace_back([&emulated, t] {
      Random random(30 + t);
      for (int i = 0; i < 4; ++i)
        CheckKernels(emulated.device.get(), DataType::kInt4, random.Between(1, 20), 96, 40, 3,
                     &random);
    });
  for (std::thread& caller : callers) caller.join();
}

// The emulation itself finds what it is there to find.
struct Probe {
  int* out;
};
void HalfOfThemWait(const void*) {
  if (simt::Thread() < 16) simt::SyncThreads();
}
void PastTheEnd(const void*) { simt::Shared()[128 + simt::Thread()] = 1; }
void NotWaitedFor(const void* args) {
  alignas(16) static const unsigned char sixteen[16] = {7};
  if (simt::Thread() != 0) return;
  simt::CopyAsync(simt::Shared(), sixteen, true);
  simt::CommitCopies();
  const int early = simt::Shared()[0];
  simt::WaitCopies<0>();
  *static_cast<const Probe*>(args)->out = early == 7 ? -1 : simt::Shared()[0];
}

TEST(CudaEmulationDeathTest, FindsWhatItIsThereFor) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const simt::EmulatedLaunch launch{.grid = {1, 1, 1}, .threads = 32, .shared_bytes = 128};
  EXPECT_DEATH(simt::Emulate(launch, HalfOfThemWait, nullptr), "barrier that others never reach");
  EXPECT_DEATH(simt::Emulate(launch, PastTheEnd, nullptr), "");
  int out = 0;
  const Probe probe{&out};
  simt::Emulate(launch, NotWaitedFor, &probe);
  EXPECT_EQ(out, 7) << "a copy arrived before it was waited for";
}

}  // namespace
}  // namespace qmatmul::cuda
