// Rows of the table of seeds about paths: which kernel serves which rows, what falls back and what
// must not, and that every path gives the same numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>

#include "kernels/cpu/cpu_device.h"
#include "tests/seeds/exact_product.h"
#include "tests/support/device_call.h"

namespace qmatmul {
namespace {

using test::CallDevice;
using test::DeviceCall;
using test::ExactProduct;
using test::Fill;
using test::Int8Rows;
using test::Int8Weight;
using test::PackOn;
using test::Random;
using test::RandomInt8;
using test::TestActivations;
using test::TestWeight;

#ifdef QMATMUL_TESTS_QUICK
constexpr bool kQuick = true;
#else
constexpr bool kQuick = false;
#endif

Device* Cpu() {
  static const auto devices = OpenDevices({});
  return devices[0].get();
}

std::vector<std::string> KernelsFor(Device* device, DataType weight, Arithmetic arithmetic) {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : device->Kernels())
    if (kernel.supported && !kernel.disabled && kernel.weight == weight &&
        kernel.arithmetic == arithmetic)
      names.push_back(kernel.name);
  return names;
}

// Elsewhere 84 rows were padded to 88. Here no row is added: each path says its name and what it padded.
TEST(seeds, F2_RowsArePathsAndNeverPadding) {
  Random random(12);
  const int64_t k = kQuick ? 256 : 1024, n = k;
  const std::vector<int8_t> w = RandomInt8(k * n, &random), a = RandomInt8(88 * k, &random);
  const auto weight = PackOn(Cpu(), Int8Weight(Layout::kNK, k, n, w));
  const std::vector<int32_t> exact = ExactProduct(a, w, 88, k, n);
  std::map<int64_t, std::string> kernels;
  for (const int64_t m : {1, 2, 64, 8, 84, 88}) {
    const DeviceCall call = CallDevice(Cpu(), weight, Int8Rows(m, k, a), {});
    ASSERT_TRUE(call.fault.ok()) << call.fault.message;
    EXPECT_EQ(call.report.rows, m);
    EXPECT_EQ(call.report.padded_rows, 0);
    EXPECT_EQ(call.report.fallback, "");
    // The output ends at a page that faults, and nothing before it may change: no pad row leaks.
    EXPECT_TRUE(call.intact) << m;
    EXPECT_EQ(call.As<int32_t>(), std::vector<int32_t>(exact.begin(), exact.begin() + m * n))
        << m << " rows: those of the 88-row run";
    kernels[m] = call.report.kernel;
    EXPECT_EQ(kernels[m], Cpu()->Explain(m, {&weight, 1}, Arithmetic::kW8A8, "")[0].name);
    std::printf("F2: %2d rows by %s, %d padded\n", int(m), kernels[m].c_str(),
                int(call.report.padded_rows));
  }
  if (KernelsFor(Cpu(), DataType::kInt8, Arithmetic::kW8A8).size() > 1) {
    EXPECT_NE(kernels[1], kernels[64]) << "one row has a form of its own";
  }
}

// Elsewhere N % 64 != 0 silently went to an int32 product. Here every K and N is exact and on the path.
TEST(seeds, F3_NoShapeFallsBackSilently) {
  Random random(13);
  for (const int64_t k : {1, 3, 5, 31, 33}) {
    for (const int64_t n : {1, 63, 65, 100}) {
      const std::vector<int8_t> w = RandomInt8(k * n, &random), a = RandomInt8(37 * k, &random);
      const auto weight = PackOn(Cpu(), Int8Weight(Layout::kNK, k, n, w));
      const std::vector<int32_t> exact = ExactProduct(a, w, 37, k, n);
      for (const int64_t m : {1, 5, 37}) {
        const DeviceCall call = CallDevice(Cpu(), weight, Int8Rows(m, k, a), {});
        EXPECT_EQ(call.As<int32_t>(), std::vector<int32_t>(exact.begin(), exact.begin() + m * n))
            << m << " x " << k << " x " << n;
        EXPECT_EQ(call.report.fallback, "");
      }
    }
  }
  // What does fall back says so.
  cpu::CpuDevice device({.threads = 1}, cpu::DetectCpuFeatures());
  const auto weight = PackOn(&device, Int8Weight(Layout::kNK, 5, 3, RandomInt8(15, &random)));
  const TestActivations a = Int8Rows(8, 5, RandomInt8(40, &random));
  device.Quarantine(CallDevice(&device, weight, a, {}).report.kernel, 8, "by hand");
  EXPECT_EQ(CallDevice(&device, weight, a, {}).report.fallback, "quarantine");
}

// One kernel put aside for few rows of one weight type: that call falls back, all others keep it.
TEST(seeds, F6_QuarantineIsNarrowVisibleAndRearmed) {
  cpu::CpuDevice device({.threads = 1}, cpu::DetectCpuFeatures());
  if (KernelsFor(&device, DataType::kInt8, Arithmetic::kW8A8).size() < 2)
    GTEST_SKIP() << "this processor has one kernel of this kind alone: nothing to fall back to";
  Random random(14);
  const int64_t k = 200, n = 100;
  const auto weight = PackOn(&device, Int8Weight(Layout::kKN, k, n, RandomInt8(k * n, &random)));
  const auto int4 = PackOn(&device, MakeWeight(test::MakeSpec(DataType::kInt4, Layout::kKN, k, n),
                                               Fill::kRandom, &random));
  const Epilogue to_f32{.dtype = DataType::kF32};
  const std::vector<int8_t> a = RandomInt8(64 * k, &random);
  const auto call = [&](int64_t rows, const auto& packed) {
    return CallDevice(&device, packed, Int8Rows(rows, k, a), to_f32);
  };
  const DeviceCall before = call(8, weight), one = call(1, weight), many = call(64, weight),
                   other_type = call(8, int4);
  const std::string fast(before.report.kernel);
  device.Quarantine(fast, 8, "injected by a test");

  const DeviceCall during = call(8, weight);
  ASSERT_TRUE(during.fault.ok()) << during.fault.message;
  EXPECT_NE(during.report.kernel, fast);
  EXPECT_EQ(during.report.fallback, "quarantine");
  EXPECT_EQ(during.bytes, before.bytes) << "slower, and the same";
  for (const auto& [now, then] :
       {std::pair{call(1, weight), one}, {call(64, weight), many}, {call(8, int4), other_type}}) {
    EXPECT_EQ(now.report.kernel, then.report.kernel);
    EXPECT_EQ(now.report.fallback, "");
    EXPECT_EQ(now.bytes, then.bytes);
  }

  const std::vector<QuarantineInfo> entries = device.Quarantined();
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_EQ(entries[0].key, fast + "/m2-16");
  EXPECT_EQ(entries[0].reason, "injected by a test");
  EXPECT_GT(entries[0].unix_time_ns, 0);
  for (const KernelChoice& choice : device.Explain(8, {&weight, 1}, Arithmetic::kW8A8, "")) {
    if (choice.name != fast) continue;
    EXPECT_FALSE(choice.eligible);
    EXPECT_EQ(choice.reason, "quarantined for m2-16 rows");
  }
  const DeviceCall forced = CallDevice(&device, weight, Int8Rows(8, k, a), to_f32, fast);
  EXPECT_EQ(forced.fault.kind, FaultKind::kFailedPrecondition);

  EXPECT_FALSE(device.Rearm(fast)) << "the key, not the kernel";
  EXPECT_TRUE(device.Rearm(entries[0].key));
  EXPECT_EQ(call(8, weight).report.kernel, fast);
  EXPECT_EQ(call(8, weight).report.fallback, "");
}

const cpu::MicroKernel* healthy = nullptr;

// Right for one row; for more, the last sum of each tile is off by one.
void RunBroken(const cpu::TileArgs& t) {
  healthy->run(t);
  if (t.rows > 1) static_cast<int32_t*>(t.c)[(t.rows - 1) * t.ldc] += t.accumulate ? 0 : 1;
}

// A kernel that computes wrong sums is found when the device opens, for the rows it fails at.
TEST(seeds, F6_BrokenKernelIsPutAsideAtOpen) {
  const cpu::CpuFeatures features = cpu::DetectCpuFeatures();
  std::vector<const cpu::MicroKernel*> table(cpu::MicroKernels().begin(),
                                             cpu::MicroKernels().end());
  const auto victim = std::find_if(table.begin(), table.end(), [&](const cpu::MicroKernel* kernel) {
    return kernel->supported(features) && kernel->fits(DataType::kInt8, Arithmetic::kW8A8) &&
           kernel->mr > 1 && !kernel->split();
  });
  ASSERT_NE(victim, table.end());
  healthy = *victim;
  cpu::MicroKernel broken = *healthy;
  broken.run = RunBroken;
  *victim = &broken;
  cpu::CpuDevice device({.threads = 1}, features, table);
  std::set<std::string> keys;
  for (const QuarantineInfo& entry : device.Quarantined()) {
    keys.insert(entry.key);
    EXPECT_NE(entry.reason.find("differs from the reference"), std::string::npos) << entry.reason;
  }
  const std::string name = broken.name;
  EXPECT_EQ(keys, (std::set<std::string>{name + "/m2-16", name + "/m17+"}));
  if (KernelsFor(&device, DataType::kInt8, Arithmetic::kW8A8).size() < 2) return;
  Random random(15);
  const std::vector<int8_t> w = RandomInt8(40 * 30, &random), a = RandomInt8(50 * 40, &random);
  const auto weight = PackOn(&device, Int8Weight(Layout::kNK, 40, 30, w));
  const DeviceCall call = CallDevice(&device, weight, Int8Rows(50, 40, a), {});
  EXPECT_EQ(call.As<int32_t>(), ExactProduct(a, w, 50, 40, 30)) << "served by another";
  EXPECT_NE(call.report.kernel, name);
}

TEST(seeds, F7_EveryForcedKernelGivesTheSameBytes) {
  Random random(16);
  const int64_t k = 300, n = 130;
  for (const DataType type : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
    for (const Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32}) {
      const auto weight = PackOn(
          Cpu(), MakeWeight(test::MakeSpec(type, Layout::kKN, k, n, 100), Fill::kRandom, &random));
      const bool is_float = arithmetic == Arithmetic::kW8A32;
      for (const int64_t m : {1, 8, 84}) {
        const TestActivations a =
            FloatActivations(DataType::kF32, m, k, test::FloatRows::kOrdinary,
                             is_float ? Quantization::kNone : Quantization::kDynamic, &random);
        const Epilogue epilogue{.dtype = DataType::kF32};
        const DeviceCall chosen = CallDevice(Cpu(), weight, a, epilogue, "", arithmetic);
        ASSERT_TRUE(chosen.fault.ok()) << chosen.fault.message;
        for (const std::string& kernel : KernelsFor(Cpu(), type, arithmetic)) {
          const DeviceCall forced = CallDevice(Cpu(), weight, a, epilogue, kernel, arithmetic);
          EXPECT_EQ(forced.report.kernel, kernel);
          EXPECT_TRUE(forced.bytes == chosen.bytes)
              << kernel << " and " << chosen.report.kernel << " at " << m << " rows";
        }
      }
    }
  }
}

// What QMATMUL_DISABLE_KERNELS names is listed, never chosen, refused when forced; the bytes stay.
TEST(seeds, F7_DisabledKernelsAreHonoured) {
  Random random(17);
  const int64_t k = 300, n = 130, m = 64;
  const TestWeight plain =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, k, n), Fill::kRandom, &random);
  const TestActivations a = Int8Rows(m, k, RandomInt8(m * k, &random));
  const DeviceCall all = CallDevice(Cpu(), PackOn(Cpu(), plain), a, {});
  std::string disabled;
  // One after the other, until none but the last is left.
  for (size_t left = KernelsFor(Cpu(), DataType::kInt8, Arithmetic::kW8A8).size(); left > 1;) {
    cpu::CpuDevice now({.threads = 1, .disabled_kernels = disabled}, cpu::DetectCpuFeatures());
    const auto weight = PackOn(&now, plain);
    const std::string best(CallDevice(&now, weight, a, {}).report.kernel);
    disabled += (disabled.empty() ? "" : ",") + best;
    cpu::CpuDevice device({.threads = 1, .disabled_kernels = disabled}, cpu::DetectCpuFeatures());
    const DeviceCall without = CallDevice(&device, PackOn(&device, plain), a, {});
    EXPECT_NE(without.report.kernel, best);
    EXPECT_EQ(without.report.fallback, "") << "configuration is no fault";
    EXPECT_EQ(without.bytes, all.bytes);
    for (const KernelInfo& kernel : device.Kernels()) {
      if (kernel.name != best) continue;
      EXPECT_TRUE(kernel.disabled);
      EXPECT_NE(kernel.reason.find("QMATMUL_DISABLE_KERNELS"), std::string::npos) << kernel.reason;
    }
    const DeviceCall forced = CallDevice(&device, PackOn(&device, plain), a, {}, best);
    EXPECT_EQ(forced.fault.kind, FaultKind::kFailedPrecondition);
    const size_t usable = KernelsFor(&device, DataType::kInt8, Arithmetic::kW8A8).size();
    ASSERT_EQ(usable, left - 1);
    left = usable;
  }
}

// The shapes of the IRON tests against an exact int32 product, every element, both layouts.
void ExpectNoneBad(int64_t m, int64_t k, int64_t n) {
  Random random(static_cast<uint64_t>(m + k + n));
  const std::vector<int8_t> a = RandomInt8(m * k, &random), w = RandomInt8(k * n, &random);
  const std::vector<int32_t> exact = ExactProduct(a, w, m, k, n);
  for (const Layout layout : {Layout::kKN, Layout::kNK}) {
    const auto weight = PackOn(
        Cpu(), Int8Weight(layout, k, n, layout == Layout::kNK ? w : test::Transposed(w, n, k)));
    const std::vector<int32_t> got = CallDevice(Cpu(), weight, Int8Rows(m, k, a), {}).As<int32_t>();
    ASSERT_EQ(got.size(), exact.size());
    int64_t bad = 0;
    for (size_t i = 0; i < got.size(); ++i) bad += got[i] != exact[i];
    EXPECT_EQ(bad, 0) << m << " x " << k << " x " << n << " " << NameOf(layout);
    std::printf("I7: %lld x %lld x %lld %s: %lld/%zu bad\n", static_cast<long long>(m),
                static_cast<long long>(k), static_cast<long long>(n),
                std::string(NameOf(layout)).c_str(), static_cast<long long>(bad), got.size());
  }
}

TEST(seeds, I7_NoElementIsBadInEitherLayout) {
  const int64_t shapes[][3] = {{192, 384, 64},   {1024, 512, 1024}, {384, 1536, 1792},
                               {896, 1792, 640}, {1792, 896, 1152}, {2048, 2048, 2048}};
  for (const auto& [m, k, n] : shapes)
    if (!kQuick || m * k * n <= int64_t{1024} * 512 * 1024) ExpectNoneBad(m, k, n);
  const char* nightly = std::getenv("QMATMUL_NIGHTLY");
  if (!kQuick && nightly != nullptr && nightly == std::string("1")) ExpectNoneBad(4096, 4096, 4096);
}

}  // namespace
}  // namespace qmatmul
