// Rows of the table of seeds about types: fused float in and out, INT4 in groups, weight-only products,
// each against the formula of the numerics page and against float64.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "kernels/devices.h"
#include "kernels/half.h"
#include "kernels/reference.h"
#include "tests/seeds/exact_product.h"
#include "tests/support/device_call.h"
#include "tests/support/reference_call.h"

namespace qmatmul {
namespace {

using test::CallDevice;
using test::DeviceCall;
using test::Fill;
using test::FloatRows;
using test::Int8Rows;
using test::Multiply;
using test::PackOn;
using test::Random;
using test::RandomInt8;
using test::TestActivations;
using test::TestWeight;

#ifdef QMATMUL_TESTS_QUICK
constexpr int64_t kLarge = 1024;
#else
constexpr int64_t kLarge = 4096;
#endif

Device* Cpu() {
  static const auto devices = OpenDevices({});
  return devices[0].get();
}

// Any processor's last resort: all but it disabled, as QMATMUL_DISABLE_KERNELS would.
Device* ScalarAlone() {
  static const auto devices = [] {
    DeviceOptions options{.threads = 1};
    for (const KernelInfo& kernel : Cpu()->Kernels())
      if (!kernel.name.starts_with("cpu.scalar.")) options.disabled_kernels += kernel.name + ",";
    return OpenDevices(options);
  }();
  return devices[0].get();
}

template <typename T>
std::vector<T> ValuesOf(const std::vector<std::byte>& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// x bf16 [1, 4096] times w int8 [4096, 4096] with f32 column scales to bf16, in one call.
TEST(seeds, F9_FusedQuantizationIsTheStatedFormula) {
  Random random(21);
  const int64_t k = kLarge, n = kLarge;
  const TestWeight weight = MakeWeight(
      test::WithScales(test::MakeSpec(DataType::kInt8, Layout::kNK, k, n), DataType::kF32, n),
      Fill::kRandom, &random);
  const TestActivations x = FloatActivations(DataType::kBF16, 1, k, FloatRows::kOrdinary,
                                             Quantization::kDynamic, &random);
  const DeviceCall call = CallDevice(Cpu(), PackOn(Cpu(), weight), x, {.dtype = DataType::kBF16});
  ASSERT_TRUE(call.fault.ok()) << call.fault.message;
  EXPECT_EQ(call.bytes, Multiply(weight, x, {.dtype = DataType::kBF16}).bytes) << "the reference";

  // Numerics §4 and §2 once more in plain steps.
  std::vector<float> values;
  for (const uint16_t v : ValuesOf<uint16_t>(x.bytes())) values.push_back(BF16ToFloat(v));
  float amax = 0;
  for (const float v : values) amax = std::max(amax, std::fabs(v));
  const float sa = amax / 127, inverse = 127 / amax;
  std::vector<int8_t> q;
  for (const float v : values) q.push_back(static_cast<int8_t>(std::nearbyintf(v * inverse)));
  const auto w = ValuesOf<int8_t>(weight.data);
  const auto sw = ValuesOf<float>(weight.scales);
  const std::vector<int32_t> sums = test::ExactProduct(q, w, 1, k, n);
  const auto got = call.As<uint16_t>();
  ASSERT_EQ(got.size(), static_cast<size_t>(n));
  double delta_max = 0, y_max = 0, delta_sum = 0;
  for (int64_t c = 0; c < n; ++c) {
    const auto at = static_cast<size_t>(c);
    const float scaled = static_cast<float>(sums[at]) * sw[at];
    ASSERT_EQ(got[at], FloatToBF16(scaled * sa)) << "column " << c;
    double y = 0;
    for (int64_t i = 0; i < k; ++i)
      y += static_cast<double>(values[static_cast<size_t>(i)]) * w[static_cast<size_t>(c * k + i)];
    y *= sw[at];
    const double delta = std::fabs(y - static_cast<double>(BF16ToFloat(got[at])));
    delta_max = std::max(delta_max, delta);
    delta_sum += delta;
    y_max = std::max(y_max, std::fabs(y));
  }
  std::printf("F9: |delta| to the unquantized product: max %.4g, mean %.4g, largest result %.4g\n",
              delta_max, delta_sum / static_cast<double>(n), y_max);
  EXPECT_LT(delta_max, 0.05 * y_max) << "8 bits of each operand, not an accident";
}

// Sums of one group each, in float64, and the sum of their magnitudes: what numerics §2 bounds errors by.
struct Exact {
  double value = 0;
  double magnitude = 0;
};
Exact ExactGroups(const ReferenceWeight& w, const int8_t* a, int64_t column, double sa) {
  Exact exact;
  const int64_t n = w.spec.n, group = w.spec.group_size;
  for (int64_t g = 0; g < w.spec.groups(); ++g) {
    int32_t sum = 0;
    for (int64_t i = g * group; i < (g + 1) * group; ++i)
      sum += a[i] * w.values[static_cast<size_t>(i * n + column)];
    const double term =
        sum * static_cast<double>(w.scales[static_cast<size_t>(g * n + column)]) * sa;
    exact.value += term;
    exact.magnitude += std::fabs(term);
  }
  return exact;
}

TEST(seeds, B4_Int4InGroupsOf128) {
  Random random(22);
  const int64_t k = kLarge, n = kLarge, m = 3;
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt4, Layout::kKN, k, n, 128), Fill::kRandom, &random);
  const std::vector<int8_t> a = RandomInt8(m * k, &random);
  TestActivations rows = Int8Rows(m, k, a);
  rows.scales = {0.0371f};
  const Epilogue to_f32{.dtype = DataType::kF32};
  const DeviceCall call = CallDevice(Cpu(), PackOn(Cpu(), weight), rows, to_f32);
  ASSERT_TRUE(call.fault.ok()) << call.fault.message;
  ReferenceWeight decoded;
  ASSERT_TRUE(DecodeWeight(weight.view(), &decoded).ok());
  EXPECT_TRUE(call.bytes == Multiply(decoded, rows.view(), Arithmetic::kW8A8, to_f32).bytes);

  const auto got = call.As<float>();
  double share_max = 0;  // of the bound
  const double groups = static_cast<double>(k / 128);
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t c = 0; c < n; c += 7) {
      const Exact exact = ExactGroups(decoded, a.data() + r * k, c, rows.scales[0]);
      const double bound = (groups + 2) * 0x1p-24 * exact.magnitude;
      const double error = std::fabs(got[static_cast<size_t>(r * n + c)] - exact.value);
      ASSERT_LE(error, bound) << "[" << r << ", " << c << "]";
      share_max = std::max(share_max, error / std::max(bound, 0x1p-126));
    }
  }
  std::printf("B4: the largest error is %.3f of the stated bound\n", share_max);
}

// One group is the per-column formula: the INT8 weight of the same values and scales gives the bytes.
TEST(seeds, B4_OneGroupIsPerColumn) {
  Random random(23);
  const int64_t k = kLarge, n = kLarge;
  const TestWeight int4 =
      MakeWeight(test::MakeSpec(DataType::kInt4, Layout::kKN, k, n), Fill::kRandom, &random);
  ReferenceWeight decoded;
  ASSERT_TRUE(DecodeWeight(int4.view(), &decoded).ok());
  TestWeight int8 = test::Int8Weight(Layout::kKN, k, n, decoded.values);
  int8.spec = test::WithScales(int8.spec, DataType::kF32, n);
  int8.scales = int4.scales;
  const auto packed4 = PackOn(Cpu(), int4), packed8 = PackOn(Cpu(), int8);
  EXPECT_LT(packed4->bytes(), packed8->bytes() * 6 / 10) << "INT4 is not expanded in memory";
  for (const int64_t m : {1, 5, 40}) {
    const TestActivations x = FloatActivations(DataType::kF32, m, k, FloatRows::kOrdinary,
                                               Quantization::kDynamic, &random);
    const Epilogue to_f32{.dtype = DataType::kF32};
    EXPECT_TRUE(CallDevice(Cpu(), packed4, x, to_f32).bytes ==
                CallDevice(Cpu(), packed8, x, to_f32).bytes)
        << m << " rows";
  }
}

// "Is w4a8 the same as times 16, int8, then divided by 16?" It is, to the byte.
TEST(seeds, B5_Int4IsItsInt8AndSixteenTimesIt) {
  Random random(24);
  const int64_t side = kLarge / 4;
  const TestWeight int4 =
      MakeWeight(test::MakeSpec(DataType::kInt4, Layout::kNK, side, side), Fill::kRandom, &random);
  ReferenceWeight decoded;
  ASSERT_TRUE(DecodeWeight(int4.view(), &decoded).ok());
  EXPECT_EQ(decoded.values[0], static_cast<int>(int4.data[0] & std::byte{15}) - 8)
      << "low nibble first, value = nibble - 8";
  TestWeight int8 = test::Int8Weight(Layout::kKN, side, side, decoded.values);
  int8.spec = test::WithScales(int8.spec, DataType::kF32, side);
  int8.scales = int4.scales;
  std::vector<int8_t> sixteenfold;
  for (const int8_t v : decoded.values) sixteenfold.push_back(static_cast<int8_t>(v * 16));
  TestWeight times16 = test::Int8Weight(Layout::kKN, side, side, sixteenfold);
  times16.spec = int8.spec;
  std::vector<float> scales = ValuesOf<float>(int4.scales);
  for (float& s : scales) s /= 16;
  times16.scales.resize(int4.scales.size());
  std::memcpy(times16.scales.data(), scales.data(), int4.scales.size());

  const TestActivations a = Int8Rows(side, side, RandomInt8(side * side, &random));
  const auto run = [&a](const TestWeight& weight, DataType out) {
    return CallDevice(Cpu(), PackOn(Cpu(), weight), a, {.dtype = out});
  };
  const DeviceCall want = run(int4, DataType::kF32);
  ASSERT_TRUE(want.fault.ok()) << want.fault.message;
  EXPECT_TRUE(run(int8, DataType::kF32).bytes == want.bytes);
  EXPECT_TRUE(run(times16, DataType::kF32).bytes == want.bytes);
  auto sums = run(int4, DataType::kInt32).As<int32_t>();
  for (int32_t& sum : sums) sum *= 16;
  EXPECT_TRUE(run(times16, DataType::kInt32).As<int32_t>() == sums);
}

TestActivations FloatRowsFor(Arithmetic arithmetic, int64_t m, int64_t k, Random* random) {
  return FloatActivations(
      DataType::kF32, m, k, FloatRows::kOrdinary,
      arithmetic == Arithmetic::kW8A32 ? Quantization::kNone : Quantization::kDynamic, random);
}

// Numerics §5: |error| against exact arithmetic.
void ExpectWithinBound(const TestWeight& weight, const TestActivations& a,
                       const std::vector<float>& got) {
  const auto x = ValuesOf<float>(a.bytes());
  const auto w = ValuesOf<int8_t>(weight.data);  // [n, k]
  const auto sw = ValuesOf<float>(weight.scales);
  const int64_t k = weight.spec.k, n = weight.spec.n;
  const double blocks = std::ceil(static_cast<double>(k) / 512);
  const double steps = static_cast<double>(std::min<int64_t>(k, 512)) + blocks;
  for (int64_t m = 0; m < a.rows; ++m) {
    for (int64_t c = 0; c < n; ++c) {
      double exact = 0, magnitude = 0;
      for (int64_t i = 0; i < k; ++i) {
        const double term = static_cast<double>(x[static_cast<size_t>(m * k + i)]) *
                            w[static_cast<size_t>(c * k + i)] * sw[static_cast<size_t>(c)];
        exact += term;
        magnitude += std::fabs(term);
      }
      const double y = got[static_cast<size_t>(m * n + c)];
      const double half_ulp = 0x1p-24 * std::fabs(y) + 0x1p-150;
      EXPECT_LE(std::fabs(y - exact), steps * 0x1p-24 * magnitude + 0x1p-149 * blocks + half_ulp)
          << "[" << m << ", " << c << "]";
    }
  }
}

// Both arithmetics at the shapes of the issue, with every kernel and with the plain one alone.
TEST(seeds, E1_BothArithmeticsAtTheListedShapes) {
  Random random(25);
  const int64_t shapes[][3] = {{1, 64, 32},  {1, 128, 64},  {1, 256, 128},
                               {32, 64, 32}, {32, 128, 64}, {32, 256, 128}};
  for (const auto& [m, k, n] : shapes) {
    const TestWeight weight = MakeWeight(
        test::WithScales(test::MakeSpec(DataType::kInt8, Layout::kNK, k, n), DataType::kF32, n),
        Fill::kRandom, &random);
    const auto packed = PackOn(Cpu(), weight), bare = PackOn(ScalarAlone(), weight);
    for (const Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32}) {
      SCOPED_TRACE(std::string(NameOf(arithmetic)) + " K=" + std::to_string(k));
      const TestActivations a = FloatRowsFor(arithmetic, m, k, &random);
      const Epilogue to_f32{.dtype = DataType::kF32};
      const DeviceCall fast = CallDevice(Cpu(), packed, a, to_f32, "", arithmetic);
      const DeviceCall slow = CallDevice(ScalarAlone(), bare, a, to_f32, "", arithmetic);
      ASSERT_TRUE(fast.fault.ok() && slow.fault.ok()) << fast.fault.message << slow.fault.message;
      EXPECT_TRUE(slow.report.kernel.starts_with("cpu.scalar.")) << slow.report.kernel;
      EXPECT_EQ(fast.bytes, Multiply(weight, a, to_f32, arithmetic).bytes);
      EXPECT_EQ(slow.bytes, fast.bytes);
      if (arithmetic == Arithmetic::kW8A32) ExpectWithinBound(weight, a, fast.As<float>());
    }
  }
}

// "Did we benchmark this?"
TEST(seeds, E1_LargeShapesTimed) {
  Random random(26);
  const int64_t k = kLarge / 2, n = kLarge / 2;
  const TestWeight weight = MakeWeight(
      test::WithScales(test::MakeSpec(DataType::kInt8, Layout::kNK, k, n), DataType::kF32, n),
      Fill::kRandom, &random);
  const auto packed = PackOn(Cpu(), weight);
  for (const int64_t m : {kLarge / 16, kLarge / 8, kLarge / 4}) {
    for (const Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32}) {
      const TestActivations a = FloatRowsFor(arithmetic, m, k, &random);
      int64_t least_ns = INT64_MAX;
      for (int i = 0; i < 3; ++i) {
        const DeviceCall call =
            CallDevice(Cpu(), packed, a, {.dtype = DataType::kF32}, "", arithmetic);
        ASSERT_TRUE(call.fault.ok()) << call.fault.message;
        least_ns = std::min(least_ns, call.report.compute_ns);
      }
      const double gops = 2.0 * static_cast<double>(m * k * n) / static_cast<double>(least_ns);
      std::printf("E1: %lld x %lld x %lld %s: %.2f ms, %.1f GOPS\n", static_cast<long long>(m),
                  static_cast<long long>(k), static_cast<long long>(n),
                  std::string(NameOf(arithmetic)).c_str(), static_cast<double>(least_ns) * 1e-6,
                  gops);
      EXPECT_GT(gops, 0.1) << "not computed by hand";
    }
  }
}

}  // namespace
}  // namespace qmatmul
