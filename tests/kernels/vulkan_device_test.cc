// The Vulkan device itself, on lavapipe under the validation layer: which GPUs are opened, what it does
// where a GPU lacks something, weights in parts, memory that does not suffice, its cache, its loss.
//
// That its kernels are exact is said by the conformance and all-pairs tests, built once more for it.
#include "kernels/vulkan/vulkan_device.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/reference.h"
#include "kernels/vulkan/vulkan_api.h"
#include "tests/support/device_call.h"
#include "tests/support/product_case.h"
#include "tests/support/test_devices.h"

namespace qmatmul {
namespace {

using test::CallDevice;
using test::DeviceCall;
using test::Fill;
using test::PackOn;
using test::ProductCase;
using test::Random;
using test::TestActivations;
using test::TestWeight;
using vulkan::VulkanSettings;

constexpr int kErrorOutOfDeviceMemory = -2, kErrorDeviceLost = -4;  // VkResult
constexpr int64_t kMiB = int64_t{1} << 20;

std::unique_ptr<Device> Open(VulkanSettings settings = {}, DeviceOptions options = {}) {
  settings.on_message = test::FailOnMessage;
  options.vulkan_devices = "all";
  auto devices = vulkan::OpenVulkanDevices(options, {}, settings);
  return devices.empty() ? nullptr : std::move(devices.front());
}

ProductCase Product(DataType dtype, Arithmetic arithmetic, int64_t k, int64_t n, int64_t groups,
                    Random* random) {
  ProductCase product{.name = "product", .weights = {}, .requests = {}, .arithmetic = arithmetic};
  for (const Layout layout : {Layout::kKN, Layout::kNK}) {
    WeightSpec spec = test::MakeSpec(dtype, layout, k, n, k / groups);
    if (dtype != DataType::kInt4) spec = test::WithScales(spec, DataType::kF32, n);
    product.weights.push_back(MakeWeight(test::WithBias(spec), Fill::kRandom, random));
  }
  const bool is_float = arithmetic == Arithmetic::kW8A32;
  for (const int64_t rows : {1, 11}) {
    test::ProductRequest request{.activations = {}, .epilogues = {}};
    request.activations =
        is_float ? FloatActivations(DataType::kF32, rows, k, test::FloatRows::kOrdinary,
                                    Quantization::kNone, random)
                 : IntegerActivations(DataType::kInt8, rows, k, Fill::kRandom, random);
    request.epilogues.assign(2, {.dtype = DataType::kF32});
    product.requests.push_back(std::move(request));
  }
  return product;
}

// Every weight type and arithmetic, by the device's own choice.
void CheckAllKinds(Device* device, int64_t k, int64_t n) {
  Random random(71);
  for (const DataType dtype : {DataType::kInt8, DataType::kInt4, DataType::kInt2})
    for (const Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32})
      CheckProduct(device, "",
                   Product(dtype, arithmetic, k, n, dtype == DataType::kInt4 ? 3 : 1, &random));
}

const KernelInfo* FindKernel(const std::vector<KernelInfo>& kernels, std::string_view prefix) {
  for (const KernelInfo& kernel : kernels)
    if (kernel.name.starts_with(prefix)) return &kernel;
  return nullptr;
}

TEST(VulkanDevice, OpensWhatTheOptionAdmits) {
  DeviceOptions options;
  const auto open = [&](const char* which) {
    options.vulkan_devices = which;
    return vulkan::OpenVulkanDevices(options);
  };
  EXPECT_TRUE(open("off").empty());
  EXPECT_TRUE(open("auto").empty()) << "lavapipe computes on the CPU: never by default";
  const auto all = open("all");
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all[0]->info().id, "vulkan:0");
  EXPECT_EQ(all[0]->info().kind, "vulkan");
  EXPECT_NE(all[0]->info().description, "");
  EXPECT_GT(all[0]->info().memory_bytes, 0);
  EXPECT_GE(all[0]->info().lanes, 2);
  for (const KernelInfo& kernel : all[0]->Kernels())
    EXPECT_TRUE(kernel.supported && kernel.name.starts_with("vulkan.")) << kernel.reason;
}

// What makes every silence of the layer mean something.
TEST(VulkanDevice, TheValidationLayerIsHeard) {
  std::atomic<int> messages = 0;
  const auto instance = vulkan::Instance::Open([&](std::string_view) { ++messages; });
  ASSERT_NE(instance, nullptr);
  const auto devices = instance->PhysicalDevices();
  ASSERT_FALSE(devices.empty());
  EXPECT_EQ(messages, 0);
  VkPhysicalDeviceProperties2 unnamed{};  // its sType says nothing
  instance->vk.GetPhysicalDeviceProperties2(devices[0], &unnamed);
  EXPECT_GT(messages, 0);
}

TEST(VulkanDevice, WithoutTheDotProductShiftsServe) {
  const auto device = Open({.without_dot = true});
  ASSERT_NE(device, nullptr);
  const auto kernels = device->Kernels();
  const KernelInfo* dot = FindKernel(kernels, "vulkan.dot.s8s8s32");
  ASSERT_NE(dot, nullptr);
  EXPECT_FALSE(dot->supported);
  EXPECT_NE(dot->reason.find("VK_KHR_shader_integer_dot_product"), std::string::npos);
  CheckAllKinds(device.get(), 120, 37);
  Random random(1);
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 40, 9), Fill::kRandom, &random);
  const auto packed = PackOn(device.get(), weight);
  const TestActivations a = IntegerActivations(DataType::kInt8, 3, 40, Fill::kRandom, &random);
  EXPECT_TRUE(CallDevice(device.get(), packed, a, {}).report.kernel.starts_with("vulkan.shift."));
  const DeviceCall forced = CallDevice(device.get(), packed, a, {}, dot->name);
  EXPECT_EQ(forced.fault.reason, "KERNEL_UNSUPPORTED");
  EXPECT_EQ(forced.fault.kind, FaultKind::kFailedPrecondition);
  EXPECT_EQ(CallDevice(device.get(), packed, a, {}, "vulkan.no.such").fault.reason,
            "KERNEL_UNKNOWN");
}

TEST(VulkanDevice, WithoutExactFloatsIntegersServe) {
  const auto device = Open({.without_float = true});
  ASSERT_NE(device, nullptr);
  const auto kernels = device->Kernels();
  EXPECT_FALSE(FindKernel(kernels, "vulkan.float.")->supported);
  CheckAllKinds(device.get(), 120, 37);
  Random random(2);
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 40, 9), Fill::kRandom, &random);
  const auto packed = PackOn(device.get(), weight);
  const TestActivations a = FloatActivations(DataType::kF32, 3, 40, test::FloatRows::kCorners,
                                             Quantization::kNone, &random);
  const Epilogue f32{.dtype = DataType::kF32};
  const DeviceCall call = CallDevice(device.get(), packed, a, f32, "", Arithmetic::kW8A32);
  EXPECT_TRUE(call.report.kernel.starts_with("vulkan.soft."));
  EXPECT_EQ(call.report.fallback, "float_controls");
}

TEST(VulkanDevice, DisabledKernelsButTheLastOfAKind) {
  const auto device =
      Open({}, {.disabled_kernels = "vulkan.dot,vulkan.shift,vulkan.float,vulkan.soft"});
  ASSERT_NE(device, nullptr);
  for (const KernelInfo& kernel : device->Kernels()) {
    const bool is_last =
        kernel.name.starts_with("vulkan.shift") || kernel.name.starts_with("vulkan.soft");
    EXPECT_EQ(kernel.disabled, !is_last) << kernel.name;
  }
  CheckAllKinds(device.get(), 60, 20);
}

TEST(VulkanDevice, AKernelThatIsPutAsideServesAgainWhenRearmed) {
  const auto device = Open();
  ASSERT_NE(device, nullptr);
  Random random(11);
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 40, 9), Fill::kRandom, &random);
  const auto packed = PackOn(device.get(), weight);
  const TestActivations a = IntegerActivations(DataType::kInt8, 3, 40, Fill::kRandom, &random);
  const DeviceCall before = CallDevice(device.get(), packed, a, {});
  const std::string best(before.report.kernel);
  EXPECT_EQ(before.report.fallback, "");
  device->Quarantine(best, 3, "wrong sum");
  const DeviceCall aside = CallDevice(device.get(), packed, a, {});
  EXPECT_NE(aside.report.kernel, best);
  EXPECT_EQ(aside.report.fallback, "quarantine");
  EXPECT_EQ(aside.bytes, before.bytes);
  EXPECT_EQ(CallDevice(device.get(), packed, a, {}, best).fault.reason, "KERNEL_UNSUPPORTED");
  for (const KernelChoice& choice : device->Explain(3, {&packed, 1}, Arithmetic::kW8A8, ""))
    EXPECT_EQ(choice.reason == "quarantined for m3-8 rows", choice.name == best) << choice.reason;
  ASSERT_EQ(device->Quarantined().size(), 1u);
  EXPECT_EQ(device->Quarantined()[0].reason, "wrong sum");
  EXPECT_FALSE(device->Rearm(device->info().id)) << "the device is not lost";
  EXPECT_TRUE(device->Rearm(best + "/m3-8"));
  EXPECT_EQ(CallDevice(device.get(), packed, a, {}).report.kernel, best);
}

TEST(VulkanDevice, WeightsInManyParts) {
  const auto device = Open({.range_bytes_max = 64 << 10});
  ASSERT_NE(device, nullptr);
  Random random(3);
  CheckAllKinds(device.get(), 516, 517);
  // So many groups that their sums come in several pieces.
  for (const Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32})
    CheckProduct(device.get(), "", Product(DataType::kInt4, arithmetic, 512, 517, 64, &random));
  // So wide a part that its columns come in several.
  for (const Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32})
    CheckProduct(device.get(), "", Product(DataType::kInt8, arithmetic, 5, 5001, 1, &random));
  for (const DataType dtype : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
    for (const Layout layout : {Layout::kKN, Layout::kNK}) {
      const TestWeight weight =
          MakeWeight(test::MakeSpec(dtype, layout, 519, 701, 173), Fill::kRandom, &random);
      const auto packed = PackOn(device.get(), weight);
      ASSERT_NE(packed, nullptr);
      ReferenceWeight plain;
      ASSERT_TRUE(DecodeWeight(weight.view(), &plain).ok());
      for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 519}, {7, 8}, {171, 350}}) {
        std::vector<int8_t> rows(size_t((end - begin) * 701));
        ASSERT_TRUE(device->Unpack(*packed, begin, end, rows).ok());
        EXPECT_TRUE(std::equal(rows.begin(), rows.end(), plain.values.begin() + begin * 701));
      }
    }
  }
}

// As on a GPU whose memory the host cannot reach.
TEST(VulkanDevice, ThroughStagingBuffers) {
  const auto device = Open({.staged = true});
  ASSERT_NE(device, nullptr);
  CheckAllKinds(device.get(), 516, 301);
  Random random(4);  // several blocks of rows, several pieces of sums
  ProductCase product = Product(DataType::kInt8, Arithmetic::kW8A8, 64, 2300, 1, &random);
  product.requests.resize(1);
  product.requests[0].activations =
      IntegerActivations(DataType::kUint8, 2500, 64, Fill::kRandom, &random);
  CheckProduct(device.get(), "", product);
}

// Larger than the 128 MiB that lavapipe lets a shader see; K and N multiples of nothing.
TEST(VulkanDevice, AWeightOverTheStorageRange) {
  const auto cpu = OpenDevices({.threads = 2});
  const auto device = Open();
  ASSERT_NE(device, nullptr);
  Random random(5);
  const int64_t k = 4099, n = 33'333;
  TestWeight weight;
  weight.spec = test::MakeSpec(DataType::kInt8, Layout::kNK, k, n);
  weight.data.resize(size_t(k * n));
  uint32_t state = 1;
  for (std::byte& b : weight.data) b = std::byte((state = state * 1664525 + 1013904223) >> 24);
  ASSERT_GT(weight.spec.data_bytes(), 130 * kMiB);
  const auto packed = PackOn(device.get(), weight);
  ASSERT_NE(packed, nullptr);
  EXPECT_GE(packed->bytes(), weight.spec.data_bytes());
  const TestActivations a = IntegerActivations(DataType::kInt8, 2, k, Fill::kRandom, &random);
  const DeviceCall call = CallDevice(device.get(), packed, a, {});
  ASSERT_TRUE(call.fault.ok()) << call.fault.message;
  EXPECT_TRUE(call.bytes == CallDevice(cpu[0].get(), PackOn(cpu[0].get(), weight), a, {}).bytes);
}

TEST(VulkanDevice, MemoryThatDoesNotSufficeIsAFault) {
  const auto device = Open({.memory_bytes_max = 24 * kMiB});
  ASSERT_NE(device, nullptr);
  Random random(6);
  const WeightSpec large = test::MakeSpec(DataType::kInt8, Layout::kKN, 4096, 8192);
  std::unique_ptr<Packer> packer;
  const Fault fault = device->StartPack(large, &packer);
  EXPECT_EQ(fault.kind, FaultKind::kResourceExhausted);
  EXPECT_EQ(fault.reason, "DEVICE_MEMORY");
  EXPECT_NE(fault.message.find(std::to_string(24 * kMiB)), std::string::npos) << fault.message;
  // As many as fit; each that goes makes room for one, again and again: bytes() is all that is held.
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 1024, 2048), Fill::kRandom, &random);
  std::vector<std::shared_ptr<const PackedWeight>> held;
  std::shared_ptr<const PackedWeight> packed;
  while (device->Pack(weight.view(), &packed).ok()) held.push_back(std::move(packed));
  EXPECT_GE(held.size(), 8u);
  for (int i = 0; i < 20; ++i) {
    held.pop_back();
    const Fault again = device->Pack(weight.view(), &packed);
    ASSERT_TRUE(again.ok()) << i << ": " << again.message;
    held.push_back(std::move(packed));
  }
  held.clear();
  CheckAllKinds(device.get(), 60, 20);
}

TEST(VulkanDevice, ADriverOutOfMemoryIsAFault) {
  std::atomic<bool> refuse = false;
  const auto device = Open({.inject = [&](std::string_view call) {
    return refuse && call == "allocate" ? kErrorOutOfDeviceMemory : 0;
  }});
  ASSERT_NE(device, nullptr);
  Random random(7);
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 512, 3000), Fill::kRandom, &random);
  const auto packed = PackOn(device.get(), weight);
  const TestActivations a = IntegerActivations(DataType::kInt8, 600, 512, Fill::kRandom, &random);
  refuse = true;
  std::shared_ptr<const PackedWeight> none;
  EXPECT_EQ(device->Pack(weight.view(), &none).kind, FaultKind::kResourceExhausted);
  // A Run whose scratch does not fit; the lane is as good as before.
  EXPECT_EQ(CallDevice(device.get(), packed, a, {}).fault.kind, FaultKind::kResourceExhausted);
  refuse = false;
  EXPECT_TRUE(CallDevice(device.get(), packed, a, {}).fault.ok());
  EXPECT_TRUE(device->Pack(weight.view(), &none).ok());
}

TEST(VulkanDevice, ALostDeviceSaysSoAtOnce) {
  for (const std::string_view where : {"submit", "wait"}) {
    std::atomic<int> lose = 0;
    const auto device = Open({.inject = [&](std::string_view call) {
      return call == where && lose > 0 && lose-- == 1 ? kErrorDeviceLost : 0;
    }});
    ASSERT_NE(device, nullptr);
    Random random(8);
    const TestWeight weight = MakeWeight(test::MakeSpec(DataType::kInt4, Layout::kKN, 64, 40, 16),
                                         Fill::kRandom, &random);
    const auto packed = PackOn(device.get(), weight);
    const TestActivations a = IntegerActivations(DataType::kInt8, 5, 64, Fill::kRandom, &random);
    const Epilogue f32{.dtype = DataType::kF32};
    EXPECT_TRUE(CallDevice(device.get(), packed, a, f32).fault.ok());
    lose = 1;
    for (int i = 0; i < 2; ++i) {  // the second: nothing is injected, it stays lost
      const DeviceCall call = CallDevice(device.get(), packed, a, f32);
      EXPECT_EQ(call.fault.kind, FaultKind::kDeviceLost) << where << call.fault.message;
      EXPECT_EQ(call.fault.reason, "DEVICE_LOST");
    }
    std::shared_ptr<const PackedWeight> none;
    EXPECT_EQ(device->Pack(weight.view(), &none).kind, FaultKind::kDeviceLost);
  }
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Missing, cut short, changed by a byte, another's text, of another driver: all are rebuilt.
TEST(VulkanDevice, PipelineCacheOnDisk) {
  const std::string path = testing::TempDir() + "pipelines." + std::to_string(getpid());
  const auto opens_from_cache = [&] {
    const auto device = Open({}, {.pipeline_cache_file = path});
    if (device == nullptr) return false;
    CheckAllKinds(device.get(), 42, 8);
    for (const std::string& feature : device->info().features)
      if (feature == "pipelines_from_cache") return true;
    return false;
  };
  EXPECT_FALSE(opens_from_cache());
  const std::string good = ReadFile(path);
  ASSERT_GT(good.size(), 60u);
  EXPECT_TRUE(opens_from_cache());
  std::string changed = good;
  changed.back() = char(changed.back() ^ 1);
  std::string other_driver = good;
  other_driver[good.find(' ') + 1] ^= 1;
  for (const std::string& bad : {std::string(), std::string("no cache\n"), changed, other_driver,
                                 good.substr(0, good.size() - 5)}) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bad;
    EXPECT_FALSE(opens_from_cache());
    EXPECT_EQ(ReadFile(path), good) << "written anew";
  }
  unlink(path.c_str());
  EXPECT_TRUE(Open({}, {.pipeline_cache_file = "/no/such/folder/file"}) != nullptr);
}

TEST(VulkanDevice, ManyThreads) {
  const auto device = Open();
  ASSERT_NE(device, nullptr);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (unsigned t = 0; t < 6; ++t)
    threads.emplace_back([&, t] {
      Random random(100 + t);
      for (int i = 0; i < 8; ++i) {
        const int64_t k = random.Between(1, 200), n = random.Between(1, 200);
        const TestWeight weight =
            MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, k, n), Fill::kRandom, &random);
        const TestActivations a =
            IntegerActivations(DataType::kInt8, random.Between(0, 20), k, Fill::kRandom, &random);
        std::shared_ptr<const PackedWeight> packed;
        if (!device->Pack(weight.view(), &packed).ok()) ++wrong;
        ReferenceWeight plain;
        ReferenceDetails details;
        std::vector<std::byte> want(size_t(a.rows * n * 4));
        if (!DecodeWeight(weight.view(), &plain).ok() ||
            !ReferenceMatMul(plain, a.view(), Arithmetic::kW8A8, {}, {want.data(), n * 4}, &details)
                 .ok())
          ++wrong;
        wrong += CallDevice(device.get(), packed, a, {}).bytes != want;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(VulkanDevice, WeightsOfOthersAreRefused) {
  const auto cpu = OpenDevices({.threads = 1});
  const auto device = Open();
  auto other = Open();
  ASSERT_TRUE(device != nullptr && other != nullptr);
  Random random(9);
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 40, 9), Fill::kRandom, &random);
  const TestActivations a = IntegerActivations(DataType::kInt8, 3, 40, Fill::kRandom, &random);
  const auto of_cpu = PackOn(cpu[0].get(), weight), of_other = PackOn(other.get(), weight);
  EXPECT_EQ(CallDevice(device.get(), of_cpu, a, {}).fault.reason, "LAYOUT_MISMATCH");
  EXPECT_EQ(CallDevice(device.get(), of_other, a, {}).fault.reason, "LAYOUT_MISMATCH");
  EXPECT_EQ(CallDevice(cpu[0].get(), of_other, a, {}).fault.reason, "LAYOUT_MISMATCH");
  other.reset();  // its weight holds what it needs to be freed
}

TEST(VulkanDevice, ExplainsAndPredicts) {
  const auto device = Open();
  ASSERT_NE(device, nullptr);
  Random random(10);
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 64, 64), Fill::kRandom, &random);
  const auto packed = PackOn(device.get(), weight);
  for (const auto& [rows, form] :
       {std::pair<int64_t, const char*>{1, ".1x64x4"}, {9, ".8x128x4"}}) {
    const auto choices = device->Explain(rows, {&packed, 1}, Arithmetic::kW8A8, "");
    ASSERT_EQ(choices.size(), 3u);
    EXPECT_TRUE(choices[0].chosen && choices[0].eligible);
    EXPECT_TRUE(choices[0].name.ends_with(form)) << choices[0].name;
    EXPECT_GT(choices[0].predicted_ns.value_or(0), 0);
    const TestActivations a = IntegerActivations(DataType::kInt8, rows, 64, Fill::kRandom, &random);
    EXPECT_EQ(CallDevice(device.get(), packed, a, {}).report.kernel, choices[0].name);
  }
  const auto large = PackOn(
      device.get(),
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 2048, 2048), Fill::kRandom, &random));
  const auto predict = [&](int64_t rows, const auto& of) {
    return device->PredictNs(rows, *of, Arithmetic::kW8A8, 0);
  };
  EXPECT_GT(predict(512, large), predict(1, large));
  EXPECT_GT(predict(1, large), predict(1, packed));
}

}  // namespace
}  // namespace qmatmul
