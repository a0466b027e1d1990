// Measured costs: what their file survives, and whether the model built on them tells the truth.
#include "kernels/cpu/calibration.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/micro_kernels.h"
#include "tests/support/calibration_text.h"
#include "tests/support/device_call.h"

namespace qmatmul::cpu {
namespace {

using test::CalibrationHead;
using test::CalibrationLine;
using test::WithChecksum;

// Unoptimised code spends its time elsewhere than the model thinks.
#ifdef QMATMUL_TESTS_QUICK
constexpr double kFactor = 30;
#else
constexpr double kFactor = 3;
#endif

std::vector<const MicroKernel*> UsableKernels() {
  std::vector<const MicroKernel*> usable;
  const CpuFeatures features = DetectCpuFeatures();
  for (const MicroKernel* kernel : MicroKernels())
    if (kernel->supported(features)) usable.push_back(kernel);
  return usable;
}

// Measured once: it takes a while under a sanitizer.
const Calibration& Measured() {
  static const Calibration calibration = [] {
    ThreadTeam team(2, 0);
    return Calibration::Measure(UsableKernels(), &team);
  }();
  return calibration;
}

class CalibrationFile : public testing::Test {
 protected:
  CalibrationFile() {
    folder_ = testing::TempDir() + "qmatmul-calibration-" + std::to_string(getpid());
    std::filesystem::create_directories(folder_);
    path_ = folder_ + "/costs";
  }
  ~CalibrationFile() override { std::filesystem::remove_all(folder_); }

  std::string Read() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void Write(const std::string& text) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << text;
  }

  std::string folder_;
  std::string path_;
  ThreadTeam team_{1, 0};
  // One kernel is enough to see a file come and go.
  std::vector<const MicroKernel*> kernels_{MicroKernels().back()};
};

TEST(Calibration, EveryKernelHasPositiveCosts) {
  for (const MicroKernel* kernel : UsableKernels()) {
    const KernelCost* cost = Measured().find(*kernel);
    ASSERT_NE(cost, nullptr) << kernel->name;
    for (int height = 1; height <= kernel->mr; ++height)
      EXPECT_GT(cost->line_ns[size_t(height)], 0) << kernel->name << " height " << height;
    EXPECT_GT(cost->pack_ns, 0) << kernel->name;
    EXPECT_EQ(cost->llc_line_ns > 0, cost->l2_line_ns > 0) << kernel->name;
    EXPECT_TRUE(cost->llc_line_ns == 0 || kernel->mr == 1) << kernel->name;
    EXPECT_GE(cost->ahead_bytes, 0) << kernel->name;
    EXPECT_EQ(cost->clean_ns > 0, kernel->split()) << kernel->name;
    EXPECT_EQ(cost->add_ns > 0, kernel->split()) << kernel->name;
    EXPECT_EQ(cost->add_call_ns > 0, kernel->split()) << kernel->name;
  }
  const MachineCost& machine = Measured().machine();
  EXPECT_GT(machine.call_ns, 0);
  EXPECT_GT(machine.hand_over_ns, 0);
  EXPECT_GT(machine.read_l2_gbps, 0);
  EXPECT_GT(machine.read_llc_gbps, 0);
  EXPECT_GT(machine.read_dram_gbps, 0);
}

TEST(Calibration, ATeamOfOneHandsNothingOver) {
  ThreadTeam team(1, 0);
  const std::vector<const MicroKernel*> kernels{MicroKernels().back()};
  EXPECT_EQ(Calibration::Measure(kernels, &team).machine().hand_over_ns, 0);
}

TEST(Calibration, PrintedAndParsedIsTheSame) {
  const std::string text = Measured().Print("a key");
  const auto parsed = Calibration::Parse(text, "a key");
  ASSERT_TRUE(parsed.has_value());
  EXPECT_EQ(parsed->Print("a key"), text) << "to the last digit";
  const KernelQuery query{.rows = 7, .k = 100, .n = 90, .weight_bytes = 9000, .members = 2};
  for (const MicroKernel* kernel : UsableKernels())
    EXPECT_EQ(parsed->ProductNs(*kernel, query), Measured().ProductNs(*kernel, query))
        << kernel->name;
}

TEST(Calibration, AnythingElseIsRefused) {
  const std::string text = WithChecksum(CalibrationHead("key") + CalibrationLine("a", 1.5));
  ASSERT_TRUE(Calibration::Parse(text, "key").has_value());
  EXPECT_FALSE(Calibration::Parse(text, "another key").has_value());
  EXPECT_FALSE(Calibration::Parse(text, "").has_value());
  for (size_t i = 0; i < text.size(); ++i) {
    std::string spoiled = text;
    spoiled[i] = static_cast<char>(spoiled[i] ^ 1);
    EXPECT_FALSE(Calibration::Parse(spoiled, "key").has_value()) << "byte " << i;
    EXPECT_FALSE(Calibration::Parse(text.substr(0, i), "key").has_value()) << "first " << i;
  }
  EXPECT_FALSE(Calibration::Parse(text + "\n", "key").has_value());
  // Whole files with a right checksum, written by something else.
  const struct {
    std::string body;
    const char* why;
  } rows[] = {
      {"", "nothing at all"},
      {"qmatmul-calibration/2\nkey\nmachine 1 1 1 1 1 1\n", "another format"},
      {"qmatmul-calibration/3\n", "no key"},
      {"qmatmul-calibration/3\nkey\n", "no machine"},
      {"qmatmul-calibration/3\nkey\nmachine 1 1 1 1 1\n", "a machine's cost is missing"},
      {"qmatmul-calibration/3\nkey\nengine 1 1 1 1 1 1\n", "another word"},
      {CalibrationHead("key") + "a 1 2\n", "a kernel without times"},
      {CalibrationHead("key") + "a 1 2 x" + CalibrationLine("", 1).substr(10), "not a number"},
  };
  for (const auto& row : rows)
    EXPECT_FALSE(Calibration::Parse(WithChecksum(row.body), "key").has_value()) << row.why;
}

TEST(Calibration, KeysTellKernelTablesApart) {
  const auto table = MicroKernels();
  EXPECT_EQ(Calibration::Key(table), Calibration::Key(table));
  EXPECT_NE(Calibration::Key(table), Calibration::Key(table.subspan(1)));
  EXPECT_NE(Calibration::Key(table).find(CpuModelName()), std::string::npos);
  EXPECT_EQ(Calibration::Key(table).find('\n'), std::string::npos) << "it is one line of the file";
}

TEST_F(CalibrationFile, IsWrittenOnceAndReadAgain) {
  EXPECT_FALSE(Calibration::Load(path_, kernels_, &team_).from_file());
  const std::string text = Read();
  ASSERT_FALSE(text.empty());
  const Calibration again = Calibration::Load(path_, kernels_, &team_);
  EXPECT_TRUE(again.from_file());
  EXPECT_EQ(again.Print(Calibration::Key(kernels_)), text);
  EXPECT_EQ(Read(), text) << "reading changes nothing";
  // Nothing is left beside it.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
}

TEST_F(CalibrationFile, DeletedCorruptOrForeignIsMeasuredAgain) {
  (void)Calibration::Load(path_, kernels_, &team_);
  const std::string text = Read();
  const std::string foreign = text.substr(0, 22) + "another machine\n";
  for (const std::string& spoiled : {std::string(), std::string("rubbish"), text.substr(0, 60),
                                     text + "more", WithChecksum(foreign)}) {
    Write(spoiled);
    EXPECT_FALSE(Calibration::Load(path_, kernels_, &team_).from_file()) << spoiled;
    EXPECT_TRUE(Calibration::Load(path_, kernels_, &team_).from_file()) << "it was mended";
  }
  std::filesystem::remove(path_);
  EXPECT_FALSE(Calibration::Load(path_, kernels_, &team_).from_file());
}

TEST_F(CalibrationFile, AnotherKernelTableIsMeasuredAgain) {
  (void)Calibration::Load(path_, kernels_, &team_);
  const std::vector<const MicroKernel*> other{MicroKernels()[MicroKernels().size() - 2],
                                              MicroKernels().back()};
  const Calibration both = Calibration::Load(path_, other, &team_);
  EXPECT_FALSE(both.from_file());
  EXPECT_NE(both.find(*other[0]), nullptr);
}

TEST_F(CalibrationFile, APlaceThatCannotBeWrittenCostsNothingElse) {
  const std::string nowhere = folder_ + "/no such folder/costs";
  const Calibration measured = Calibration::Load(nowhere, kernels_, &team_);
  EXPECT_FALSE(measured.from_file());
  EXPECT_NE(measured.find(*kernels_[0]), nullptr);
  // A folder in its place: the rename fails, and what was written beside it goes.
  std::filesystem::create_directories(path_ + "/inside");
  EXPECT_FALSE(Calibration::Load(path_, kernels_, &team_).from_file());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
}

TEST_F(CalibrationFile, NoPathMeansNoFile) {
  EXPECT_FALSE(Calibration::Load("", kernels_, &team_).from_file());
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

// The parts of the model, one at a time, on costs that make each of them visible.
TEST(Calibration, ModelAddsWhatItNames) {
  MicroKernel kernel = *MicroKernels().back();
  kernel.name = "fake";
  kernel.mr = 4;
  kernel.set_outliers_aside = nullptr;
  kernel.add_outliers = nullptr;
  const std::string head = "qmatmul-calibration/3\nkey\nmachine 10 0.5 7 1 2 4\n";
  std::string line = "fake 0.25 6 9 0 3 2 5 8";
  for (int height = 0; height <= kStripRowsMax; ++height) line += " " + std::to_string(height);
  const auto c = Calibration::Parse(WithChecksum(head + line + "\n"), "key");
  ASSERT_TRUE(c.has_value());
  const auto ns = [&](const KernelQuery& query) { return c->ProductNs(kernel, query).value(); };
  // 5 rows of mr 4: strips of 2 and 3 rows; K = 9: 3 lines; N = 17: 2 panels.
  const double finish = 0.5 * 5 * 17, pack = 0.25 * 5 * 9;
  EXPECT_DOUBLE_EQ(ns({.rows = 5, .k = 9, .n = 17}), 10 + (2 + 3) * 3 * 2 + pack + finish);
  EXPECT_DOUBLE_EQ(ns({.rows = 0, .k = 9, .n = 17}), 10);
  EXPECT_DOUBLE_EQ(ns({.rows = 5, .k = 9, .n = 17, .members = 2}),
                   10 + 7 + ((2 + 3) * 3 * 2 + pack + finish) / 2);
  // Reading the weight takes longer than computing, an eighth of which shows: by its size, at 1, 2 and 4 bytes a ns.
  for (const auto& [bytes, rate] :
       {std::pair{int64_t{1} << 18, 1.0}, {int64_t{1} << 24, 2.0}, {int64_t{1} << 25, 4.0}})
    EXPECT_DOUBLE_EQ(ns({.rows = 5, .k = 9, .n = 17, .weight_bytes = bytes}),
                     10 + double(bytes) / rate + (2 + 3) * 3 * 2 / 8.0 + pack + finish);
  // A single row is as slow as its weight streams past: 6 and 9 ns a line from L2 and from the last-level cache, and
  // from DRAM at least what reading takes, at 4 bytes a ns.
  const double row = 10 + 0.25 * 9 + 0.5 * 17;
  const int64_t from_l1 = int64_t{1} << 6, from_l2 = int64_t{1} << 17, from_llc = int64_t{1} << 24,
                from_dram = int64_t{1} << 25;
  EXPECT_DOUBLE_EQ(ns({.rows = 1, .k = 9, .n = 17, .weight_bytes = from_l1}),
                   row + double(from_l1) + 1 * 3 * 2 / 8.0);
  EXPECT_DOUBLE_EQ(ns({.rows = 1, .k = 9, .n = 17, .weight_bytes = from_l2}), row + 6 * 3 * 2);
  EXPECT_DOUBLE_EQ(ns({.rows = 1, .k = 9, .n = 17, .weight_bytes = from_llc}), row + 9 * 3 * 2);
  EXPECT_DOUBLE_EQ(ns({.rows = 1, .k = 9, .n = 17, .weight_bytes = from_dram}),
                   row + double(from_dram) / 4 + 9 * 3 * 2 / 8.0);
  EXPECT_EQ(Calibration::AheadBytes(*c->find(kernel), from_llc), 0);
  EXPECT_EQ(Calibration::AheadBytes(*c->find(kernel), from_dram), kAheadBytes) << "late without";
  // With outliers: the lines cleaned once, 6 of 64 values a line set aside, and put back for each of two
  // strips by one call for all 3 lines.
  kernel.add_outliers = [](const TileArgs&, std::span<const Outlier>) {};
  EXPECT_DOUBLE_EQ(ns({.rows = 5, .k = 9, .n = 17, .outlier_share = 6.0 / 64}),
                   10 + (2 + 3 + (3 + 6 * 2) + 2 * (6 * 5 + 8.0 / 3)) * 3 * 2 + pack + finish);
  // Cleaning reads the weight, so that it takes longer by that.
  EXPECT_DOUBLE_EQ(ns({.rows = 5, .k = 9, .n = 17, .weight_bytes = 100, .outlier_share = 0}),
                   10 + (2 + 3 + 3) * 3 * 2 + 100 + pack + finish);
  // Fewer outliers than one in all lines: a call now and then. Another block of rows: cleaned again.
  EXPECT_DOUBLE_EQ(ns({.rows = 4 * 129, .k = 9, .n = 17, .outlier_share = 0.25 / 64}),
                   10 + (129 * 4 + 2 * (3 + 0.25 * 2) + 129 * (0.25 * 5 + 0.75 / 3 * 8)) * 3 * 2 +
                       0.25 * 516 * 9 + 0.5 * 516 * 17);
  kernel.name = "never measured";
  EXPECT_FALSE(c->ProductNs(kernel, {.rows = 5, .k = 9, .n = 17}).has_value());
}

struct Shape {
  int64_t m, k, n;
};

int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

// The median of a few products, ns, by the device's own clock.
double MedianNs(Device* device, const std::shared_ptr<const PackedWeight>& weight,
                const test::TestActivations& activations, const std::string& kernel) {
  std::vector<double> times;
  const int64_t start = NowNs();
  while (times.size() < 3 || (times.size() < 15 && NowNs() - start < 40'000'000)) {
    const auto call = CallDevice(device, weight, activations, {}, kernel);
    EXPECT_TRUE(call.fault.ok()) << call.fault.message;
    times.push_back(double(call.report.compute_ns));
  }
  std::nth_element(times.begin(), times.begin() + int64_t(times.size() / 2), times.end());
  return times[times.size() / 2];
}

// Predictions against whole products. Others use this machine too, so a shape that is off is measured
// again, with costs measured again; a model that is wrong stays off.
TEST(Calibration, PredictsWholeProducts) {
  test::Random random(31);
  for (const auto [m, k, n] :
       {Shape{1, 1024, 1024}, {4, 1024, 512}, {33, 384, 384}, {64, 512, 512}}) {
    const auto activations =
        IntegerActivations(DataType::kInt8, m, k, test::Fill::kRandom, &random);
    const auto plain = MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, k, n),
                                  test::Fill::kRandom, &random);
    std::string off = "not measured";
    for (int attempt = 0; attempt < 15 && !off.empty(); ++attempt) {
      off.clear();
      CpuDevice device({.threads = 1}, DetectCpuFeatures());
      const auto weight = PackOn(&device, plain);
      for (const KernelChoice& choice : device.Explain(m, {&weight, 1}, Arithmetic::kW8A8, "")) {
        if (!choice.eligible) continue;
        ASSERT_TRUE(choice.predicted_ns.has_value()) << choice.name;
        const double measured = MedianNs(&device, weight, activations, choice.name);
        const double ratio = double(*choice.predicted_ns) / measured;
        if (ratio > 1 / kFactor && ratio < kFactor) continue;
        off += choice.name + ": predicted " + std::to_string(*choice.predicted_ns) +
               " ns, measured " + std::to_string(measured) + "; ";
      }
    }
    EXPECT_EQ(off, "") << m << " x " << k << " x " << n;
  }
}

}  // namespace
}  // namespace qmatmul::cpu
