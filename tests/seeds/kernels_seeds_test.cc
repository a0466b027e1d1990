// Rows of the table of seeds that the kernels library itself must show: one test a row, named by
// it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>
#include <string>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/micro_kernels.h"
#include "kernels/cpu/select.h"
#include "kernels/devices.h"
#include "kernels/half.h"
#include "kernels/reference.h"
#include "kernels/verify.h"
#include "tests/seeds/seed_data.h"
#include "tests/support/product_case.h"
#include "tests/support/reference_call.h"

namespace qmatmul {
namespace {

using test::Fill;
using test::Int8Weight;
using test::ProductCase;
using test::Random;
using test::RunOne;
using test::TestActivations;
using test::TestWeight;

Device* Cpu() {
  static const auto devices =
      OpenDevices({.threads = 0, .team_spin_us_max = 0, .disabled_kernels = ""});
  return devices[0].get();
}

TestActivations Int8Rows(int64_t rows, int64_t k, const std::vector<int8_t>& values) {
  TestActivations a;
  a.dtype = DataType::kInt8;
  a.rows = rows;
  a.k = k;
  std::vector<std::byte> bytes(values.size());
  std::memcpy(bytes.data(), values.data(), values.size());
  a.SetBytes(bytes);
  return a;
}

template <typename T>
std::vector<T> As(const std::vector<std::byte>& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// The product in the plainest loop, independent of the reference.
std::vector<int32_t> PlainProduct(const std::vector<int8_t>& a, const std::vector<int8_t>& w,
                                  int64_t m, int64_t k, int64_t n) {
  std::vector<int32_t> sums(static_cast<size_t>(m * n), 0);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < k; j++)
      for (int64_t c = 0; c < n; c++)
        sums[static_cast<size_t>(i * n + c)] +=
            a[static_cast<size_t>(i * k + j)] * w[static_cast<size_t>(j * n + c)];
  return sums;
}

// One wire tensor to INT32, INT16 and INT8, saturating like clip and wrapping like astype.
TEST(seeds, I1_IntegerOutputsAndOverflow) {
  test::NumpyInt8 numpy(42);
  const std::vector<int8_t> a = numpy.Draw(192 * 384, -4, 5), b = numpy.Draw(384 * 64, -4, 5);
  const std::vector<int32_t> want = PlainProduct(a, b, 192, 384, 64);
  const TestActivations rows = Int8Rows(192, 384, a);
  const TestWeight weight = Int8Weight(Layout::kKN, 384, 64, b);
  EXPECT_EQ(As<int32_t>(RunOne(Cpu(), "", weight, rows, {})), want);
  std::vector<int8_t> clip8, cast8;
  std::vector<int16_t> clip16, cast16;
  int differ = 0;
  int64_t outside = 0;  // 383 saturates and wraps to 127 alike, so more overflow than differ
  for (int32_t v : want) {
    clip8.push_back(static_cast<int8_t>(std::clamp(v, -128, 127)));
    cast8.push_back(static_cast<int8_t>(v));
    clip16.push_back(static_cast<int16_t>(std::clamp(v, -32768, 32767)));
    cast16.push_back(static_cast<int16_t>(v));
    differ += clip8.back() != cast8.back();
    outside += clip8.back() != v;
  }
  EXPECT_EQ(differ, 4060) << "the figure of numerics §3: these are numpy's own numbers";
  Outcome outcome;
  const Epilogue saturate8{.dtype = DataType::kInt8},
      wrap8{.dtype = DataType::kInt8, .overflow = Overflow::kWrap};
  EXPECT_EQ(As<int8_t>(RunOne(Cpu(), "", weight, rows, saturate8, &outcome)), clip8);
  EXPECT_EQ(outcome.overflow_count, outside);
  EXPECT_EQ(As<int8_t>(RunOne(Cpu(), "", weight, rows, wrap8, &outcome)), cast8);
  const Epilogue saturate16{.dtype = DataType::kInt16},
      wrap16{.dtype = DataType::kInt16, .overflow = Overflow::kWrap};
  EXPECT_EQ(As<int16_t>(RunOne(Cpu(), "", weight, rows, saturate16)), clip16);
  EXPECT_EQ(As<int16_t>(RunOne(Cpu(), "", weight, rows, wrap16)), cast16);
}

// Every weight type against every kernel: it fits, or it is refused; numbers never come of a
// misfit.
TEST(seeds, I4_ForeignLayoutsAreRefusedOverAllPairs) {
  Random random(1);
  int refused = 0, fitting = 0;
  for (DataType dtype : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
    for (Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32}) {
      const TestWeight weight =
          MakeWeight(test::MakeSpec(dtype, Layout::kKN, 16, 16), Fill::kRandom, &random);
      std::shared_ptr<const PackedWeight> packed;
      ASSERT_TRUE(Cpu()->Pack(weight.view(), &packed).ok());
      for (const KernelInfo& kernel : Cpu()->Kernels()) {
        if (!kernel.supported) continue;
        const WorkStep step{{&packed, 1}, arithmetic, {}};
        RunReport report;
        const Fault fault = Cpu()->Run({{}, {&step, 1}, kernel.name, 1}, &report);
        const bool fits = kernel.weight == dtype && kernel.arithmetic == arithmetic;
        EXPECT_EQ(fault.reason, fits ? "" : "LAYOUT_MISMATCH")
            << kernel.name << ": " << fault.message;
        EXPECT_EQ(fault.kind, fits ? FaultKind::kNone : FaultKind::kInternal) << kernel.name;
        if (kernel.layout != packed->layout()) {
          EXPECT_FALSE(fault.ok()) << kernel.name << " reads another layout";
        }
        (fits ? fitting : refused)++;
      }
    }
  }
  EXPECT_GT(fitting, 0);
  EXPECT_GT(refused, 0);
}

TEST(seeds, I5_DuplicateKernelNamesAreFound) {
  const auto table = cpu::MicroKernels();
  EXPECT_TRUE(cpu::NamesAreUnique(table));
  std::vector<const cpu::MicroKernel*> doubled(table.begin(), table.end());
  cpu::MicroKernel twin = *table.back();
  doubled.insert(doubled.begin(), &twin);
  EXPECT_FALSE(cpu::NamesAreUnique(doubled));
}

bool Always(const cpu::CpuFeatures&) { return true; }

cpu::MicroKernel FakeKernel(const char* name, int mr, int nr) {
  cpu::MicroKernel kernel = *cpu::MicroKernels().back();
  kernel.name = name;
  kernel.supported = Always;
  kernel.weight = DataType::kInt8;
  kernel.arithmetic = Arithmetic::kW8A8;
  kernel.mr = mr;
  kernel.nr = nr;
  kernel.rank = 7;
  return kernel;
}

// Equal tiles of 64 once tied and the last row won, a matrix-vector kernel for every matrix.
TEST(seeds, T1_SelectionIsATotalOrder) {
  const cpu::MicroKernel vector = FakeKernel("cpu.fake.s8s8s32.1x64x4", 1, 64);
  const cpu::MicroKernel square = FakeKernel("cpu.fake.s8s8s32.8x8x4", 8, 8);
  for (const std::vector<const cpu::MicroKernel*>& table :
       {std::vector<const cpu::MicroKernel*>{&vector, &square}, {&square, &vector}}) {
    const cpu::KernelSelector selector(table, {}, "");  // not measured: the order alone decides
    for (int64_t rows : {2, 3, 8, 64, 100'000})
      EXPECT_EQ(selector.Select({.rows = rows, .k = 64, .n = 64}).kernel, &square) << rows;
    EXPECT_EQ(selector.Select({.rows = 1, .k = 64, .n = 64}).kernel, &vector);
    const auto ranked = selector.Rank({.rows = 5, .k = 64, .n = 64});
    ASSERT_EQ(ranked.size(), 2u);
    EXPECT_EQ(ranked[0].kernel, &square);
    EXPECT_EQ(ranked[1].kernel, &vector);
  }
}

// The rows of the call decide, not those of an earlier one.
TEST(seeds, T2_KernelFollowsTheRows) {
  Random random(2);
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 64, 64), Fill::kRandom, &random);
  std::shared_ptr<const PackedWeight> packed;
  ASSERT_TRUE(Cpu()->Pack(weight.view(), &packed).ok());
  std::vector<std::string> names;
  for (int64_t rows : {1, 128, 1}) {
    const TestActivations a = IntegerActivations(DataType::kInt8, rows, 64, Fill::kRandom, &random);
    const ActivationView view = a.view();
    std::vector<std::byte> out(static_cast<size_t>(rows * 64 * 4));
    SegmentOutput output;
    output.view = {out.data(), 64 * 4};
    RowSegment segment;
    segment.activations = &view;
    segment.rows = rows;
    segment.outputs = {&output, 1};
    const WorkStep step{{&packed, 1}, Arithmetic::kW8A8, {}};
    RunReport report;
    ASSERT_TRUE(Cpu()->Run({{&segment, 1}, {&step, 1}, {}, 0}, &report).ok());
    names.emplace_back(report.kernels[0]);
    const auto explained = Cpu()->Explain(rows, {&packed, 1}, Arithmetic::kW8A8, "");
    EXPECT_TRUE(explained[0].chosen);
    EXPECT_EQ(explained[0].name, names.back());
  }
  EXPECT_EQ(names[0], names[2]);
  // A table with one kernel for all rows (scalar alone) has nothing to follow.
  std::set<std::string> usable;
  for (const KernelInfo& kernel : Cpu()->Kernels())
    if (kernel.supported && !kernel.disabled && kernel.weight == DataType::kInt8 &&
        kernel.arithmetic == Arithmetic::kW8A8)
      usable.insert(kernel.name);
  if (usable.size() > 1) { EXPECT_NE(names[0], names[1]); }
}

// A processor without any extension: listed as not supported, never chosen, refused when forced.
TEST(seeds, T3_UnsupportedKernelsAreNoCandidates) {
  cpu::CpuDevice bare({.threads = 1, .team_spin_us_max = 0, .disabled_kernels = ""},
                      cpu::CpuFeatures{});
  Random random(3);
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 20, 20), Fill::kRandom, &random);
  std::shared_ptr<const PackedWeight> packed;
  ASSERT_TRUE(bare.Pack(weight.view(), &packed).ok());
  int unsupported = 0;
  for (const KernelInfo& kernel : bare.Kernels()) {
    if (kernel.supported) continue;
    unsupported++;
    EXPECT_FALSE(kernel.reason.empty()) << kernel.name;
    const WorkStep step{{&packed, 1}, Arithmetic::kW8A8, {}};
    RunReport report;
    const Fault fault = bare.Run({{}, {&step, 1}, kernel.name, 1}, &report);
    EXPECT_EQ(fault.kind, FaultKind::kFailedPrecondition) << kernel.name;
    EXPECT_EQ(fault.reason, "KERNEL_UNSUPPORTED") << kernel.name;
    for (int64_t rows : {1, 2, 64})
      EXPECT_NE(bare.Explain(rows, {&packed, 1}, Arithmetic::kW8A8, "")[0].name, kernel.name);
  }
  EXPECT_GT(unsupported, 0);
  ProductCase product{.name = "bare processor", .weights = {weight}, .requests = {}};
  product.requests.push_back(
      {.activations = IntegerActivations(DataType::kInt8, 5, 20, Fill::kRandom, &random),
       .epilogues = {{.dtype = DataType::kF32}}});
  CheckProduct(&bare, "", product);
}

// M = 1, K = N = 4096, scales of shape (4096, 1) in F16, F16 out: what crashed there.
TEST(seeds, B1_ScaledHalfOutputOfOneRow) {
  Random random(4);
  const int64_t k = 4096, n = 4096;
  std::vector<int8_t> a(static_cast<size_t>(k)), w(static_cast<size_t>(k * n));
  for (int8_t& v : a) v = static_cast<int8_t>(random.Between(0, 6));
  for (int8_t& v : w) v = static_cast<int8_t>(random.Between(0, 6));
  TestWeight weight = Int8Weight(Layout::kNK, k, n, w);
  weight.spec = test::WithScales(weight.spec, DataType::kF16, n);
  std::vector<uint16_t> scales;
  for (int64_t i = 0; i < n; i++)
    scales.push_back(FloatToF16(static_cast<float>(random.Between(1, 999)) / 1000));
  weight.scales.resize(scales.size() * 2);
  std::memcpy(weight.scales.data(), scales.data(), weight.scales.size());
  Outcome outcome;
  const auto got = As<uint16_t>(
      RunOne(Cpu(), "", weight, Int8Rows(1, k, a), {.dtype = DataType::kF16}, &outcome));
  ASSERT_EQ(got.size(), static_cast<size_t>(n));
  for (int64_t column = 0; column < n; column++) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; i++)
      sum += a[static_cast<size_t>(i)] * w[static_cast<size_t>(column * k + i)];
    const float y = static_cast<float>(sum) * F16ToFloat(scales[static_cast<size_t>(column)]);
    ASSERT_EQ(got[static_cast<size_t>(column)], FloatToF16(y)) << column;
  }
  EXPECT_EQ(outcome.overflow_count, 0);
}

// The raw sums stay available, and an unscaled F16 says how many of them it could not hold.
TEST(seeds, B2_RawSumsAndCountedInfinities) {
  // 255·127·2 + 255·2 + x, x = 224, 239, 240: 65,504, 65,519 and 65,520.
  const TestWeight weight = Int8Weight(Layout::kKN, 4, 1, {127, 127, 2, 1});
  TestActivations a = Int8Rows(3, 4, {-1, -1, -1, -32, -1, -1, -1, -17, -1, -1, -1, -16});
  a.dtype = DataType::kUint8;  // the same bytes: 255 255 255 and 224, 239, 240
  EXPECT_EQ(As<int32_t>(RunOne(Cpu(), "", weight, a, {})),
            (std::vector<int32_t>{65504, 65519, 65520}));
  Outcome outcome;
  EXPECT_EQ(As<uint16_t>(RunOne(Cpu(), "", weight, a, {.dtype = DataType::kF16}, &outcome)),
            (std::vector<uint16_t>{0x7BFF, 0x7BFF, 0x7C00}));
  EXPECT_EQ(outcome.overflow_count, 1);
  EXPECT_EQ(outcome.first_overflow_row, 2);
}

// [N, K] weights are the same weights.
TEST(seeds, B6_BothLayoutsGiveTheSameBytes) {
  Random random(6);
  const int64_t shapes[][3] = {{192, 384, 64}, {7, 333, 517}, {1, 65, 31}, {33, 1, 100}};
  for (auto [m, k, n] : shapes) {
    std::vector<int8_t> kn(static_cast<size_t>(k * n)), nk(kn.size());
    for (int64_t i = 0; i < k; i++)
      for (int64_t j = 0; j < n; j++)
        nk[static_cast<size_t>(j * k + i)] = kn[static_cast<size_t>(i * n + j)] =
            static_cast<int8_t>(random.Next());
    std::vector<int8_t> a(static_cast<size_t>(m * k));
    for (int8_t& v : a) v = static_cast<int8_t>(random.Next());
    const std::vector<int32_t> want = PlainProduct(a, kn, m, k, n);
    EXPECT_EQ(
        As<int32_t>(RunOne(Cpu(), "", Int8Weight(Layout::kKN, k, n, kn), Int8Rows(m, k, a), {})),
        want);
    EXPECT_EQ(
        As<int32_t>(RunOne(Cpu(), "", Int8Weight(Layout::kNK, k, n, nk), Int8Rows(m, k, a), {})),
        want);
  }
}

// Ones, input scale 0.5, zero point −4: q = 2 − 4 = −2, q − zp = 2, so y = 2·colsum·sw·0.5.
TEST(seeds, E2_AsymmetricInputsAndWeightSums) {
  Random random(7);
  const int64_t k = 128, n = 64;
  TestWeight weight = MakeWeight(
      test::WithScales(test::MakeSpec(DataType::kInt8, Layout::kKN, k, n), DataType::kF32, n),
      Fill::kRandom, &random);
  TestActivations a = test::FloatActivationsOf(DataType::kF32, 4, k,
                                               std::vector<float>(static_cast<size_t>(4 * k), 1.0f),
                                               Quantization::kStatic);
  a.scales = {0.5f};
  a.zero_points = {-4};
  ReferenceWeight plain;
  ASSERT_TRUE(DecodeWeight(weight.view(), &plain).ok());
  std::vector<int32_t> sums(static_cast<size_t>(n), 0);
  for (size_t i = 0; i < plain.values.size(); i++)
    sums[i % static_cast<size_t>(n)] += plain.values[i];
  std::shared_ptr<const PackedWeight> packed;
  ASSERT_TRUE(Cpu()->Pack(weight.view(), &packed).ok());
  EXPECT_EQ(std::vector<int32_t>(packed->column_sums().begin(), packed->column_sums().end()), sums);
  const auto got = As<float>(RunOne(Cpu(), "", weight, a, {.dtype = DataType::kF32}));
  ASSERT_EQ(got.size(), static_cast<size_t>(4 * n));
  for (size_t i = 0; i < got.size(); i++) {
    const size_t column = i % static_cast<size_t>(n);
    EXPECT_EQ(got[i], static_cast<float>(2 * sums[column]) * plain.scales[column] * 0.5f) << i;
  }
}

// The oracle shares no code with what it judges.
TEST(seeds, E3_OracleIncludesNoKernelCode) {
  for (const char* file : {"kernels/reference.h", "kernels/reference.cc"}) {
    std::ifstream source(std::string(QMATMUL_SOURCE_DIR) + "/" + file);
    ASSERT_TRUE(source.good()) << file;
    for (std::string line; std::getline(source, line);) {
      if (line.rfind("#include \"", 0) != 0) continue;
      EXPECT_TRUE(line == "#include \"kernels/matmul.h\"" ||
                  line == "#include \"kernels/reference.h\"")
          << file << " has " << line;
    }
  }
}

// The rows of torch._int_mm's users against one 4096 x 4096 weight, exact in every element: all of
// them by Freivalds' check of the INT32 output, the first and last rows by a plain loop.
TEST(seeds, F1_EveryRowCountIsExact) {
  Random random(8);
  const int64_t k = 4096, n = 4096, rows_max = 88;
  const TestWeight weight =
      MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, k, n), Fill::kRandom, &random);
  std::vector<int8_t> plain(weight.data.size());
  std::memcpy(plain.data(), weight.data.data(), plain.size());
  CheckVectors vectors(k, n);
  vectors.AddRows(0, plain);
  vectors.Seal();
  std::vector<int8_t> a(static_cast<size_t>(rows_max * k));
  for (int8_t& v : a) v = static_cast<int8_t>(random.Next());
  for (int64_t m : {1, 2, 3, 7, 8, 63, 64, 65, 84, 88}) {
    const std::vector<int8_t> rows(a.begin(), a.begin() + m * k);
    const auto got = As<int32_t>(RunOne(Cpu(), "", weight, Int8Rows(m, k, rows), {}));
    ASSERT_EQ(got.size(), static_cast<size_t>(m * n));
    QuantizedActivations quantized{.rows = m,
                                   .k = k,
                                   .values = {rows.begin(), rows.end()},
                                   .zero_points = std::vector<int32_t>(static_cast<size_t>(m), 0),
                                   .scales = {}};
    std::vector<uint64_t> checks(static_cast<size_t>(m), 0);
    for (size_t i = 0; i < got.size(); i++)
      checks[i / static_cast<size_t>(n)] +=
          static_cast<uint64_t>(int64_t{got[i]}) * vectors.r()[i % static_cast<size_t>(n)];
    EXPECT_EQ(FirstWrongRow(vectors, quantized, checks), std::nullopt) << m << " rows";
    const std::vector<int8_t> last(rows.end() - k, rows.end());
    EXPECT_EQ(std::vector<int32_t>(got.end() - n, got.end()), PlainProduct(last, plain, 1, k, n))
        << m << " rows";
  }
}

}  // namespace
}  // namespace qmatmul
