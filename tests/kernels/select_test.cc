// Which kernel is chosen, by fake kernels with costs of the test's own choosing: each rule of the order
// alone, whatever the order of the table; and by the real table: what may never be chosen.
#include "kernels/cpu/select.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cpu/micro_kernels.h"
#include "tests/support/calibration_text.h"
#include "tests/support/random.h"

namespace qmatmul::cpu {
namespace {

constexpr char kTile[] = "cpu.fast.s8s8s32.8x16x4", kRow[] = "cpu.fast.s8s8s32.1x64x4",
               kSlowTile[] = "cpu.slow.s8s8s32.4x16x4", kPlain[] = "cpu.plain.s8s8s32.2x16x4";

bool Always(const CpuFeatures&) { return true; }
bool Never(const CpuFeatures&) { return false; }

MicroKernel Fake(const char* name, int mr, int rank) {
  MicroKernel kernel = *MicroKernels().back();
  kernel.name = name;
  kernel.supported = Always;
  kernel.weight = DataType::kInt8;
  kernel.arithmetic = Arithmetic::kW8A8;
  kernel.mr = mr;
  kernel.nr = 16;
  kernel.rank = rank;
  kernel.rows_min = 1;
  kernel.set_outliers_aside = nullptr;
  kernel.add_outliers = nullptr;
  return kernel;
}

// Two forms of a fast instruction set, one of a slow one, and one for every processor.
struct Table {
  MicroKernel tile = Fake(kTile, 8, 3), row = Fake(kRow, 1, 3), slow = Fake(kSlowTile, 4, 2),
              plain = Fake(kPlain, 2, 1);
  std::vector<const MicroKernel*> kernels() const { return {&tile, &row, &slow, &plain}; }
};

KernelQuery Rows(int64_t rows) { return {.rows = rows, .k = 64, .n = 64}; }

std::string Chosen(const KernelSelector& selector, const KernelQuery& query) {
  return selector.Select(query).kernel->name;
}

// In every order of the table.
void ExpectChoice(const Table& table, const std::string& costs, int64_t rows,
                  const std::string& wanted) {
  std::vector<const MicroKernel*> kernels = table.kernels();
  std::sort(kernels.begin(), kernels.end());
  do {
    KernelSelector selector(kernels, {}, "");
    if (!costs.empty()) {
      auto calibration =
          Calibration::Parse(test::WithChecksum(test::CalibrationHead("key") + costs), "key");
      ASSERT_TRUE(calibration.has_value());
      selector.UseCalibration(*calibration);
    }
    EXPECT_EQ(Chosen(selector, Rows(rows)), wanted) << rows << " rows, first " << kernels[0]->name;
  } while (std::next_permutation(kernels.begin(), kernels.end()));
}

TEST(Select, UnmeasuredByRankFormAndTile) {
  Table table;
  ExpectChoice(table, "", 1, kRow);   // the one-row form of the best instruction set
  ExpectChoice(table, "", 2, kTile);  // and its tile for more
  table.row.supported = Never;
  ExpectChoice(table, "", 1, kTile);  // a tile where there is no one-row form
  table.row.supported = Always;
  table.tile.supported = Never;
  ExpectChoice(table, "", 2, kRow);  // and the one-row form where there is no tile
}

TEST(Select, EqualRankByTileThenName) {
  Table table;
  table.slow.rank = table.plain.rank = table.row.rank = table.tile.rank;
  ExpectChoice(table, "", 5, kTile);  // 8 x 16 is the largest
  table.slow.mr = table.plain.mr = table.tile.mr;
  ExpectChoice(table, "", 5, kSlowTile);  // all equal: the last name, in every order
}

TEST(Select, RowsMinComesBeforeRank) {
  Table table;
  table.tile.rows_min = 6;
  ExpectChoice(table, "", 5, kSlowTile);
  ExpectChoice(table, "", 6, kTile);
}

TEST(Select, LeastMeasuredTimeWins) {
  using test::CalibrationLine;
  const Table table;
  const std::string rest = CalibrationLine(kRow, 1) + CalibrationLine(kPlain, 50);
  ExpectChoice(table, CalibrationLine(kTile, 9) + CalibrationLine(kSlowTile, 2) + rest, 8,
               kSlowTile);  // two strips of 2 ns beat one of 9, rank or no
  ExpectChoice(table, CalibrationLine(kTile, 3) + CalibrationLine(kSlowTile, 2) + rest, 8, kTile);
  // One candidate without a measurement: times compare nothing, so the ranks decide.
  ExpectChoice(table, CalibrationLine(kTile, 9) + rest, 8, kTile);
}

TEST(Select, AnUnsupportedKernelNeedsNoMeasurement) {
  using test::CalibrationLine;
  Table table;
  table.tile.supported = Never;
  ExpectChoice(
      table, CalibrationLine(kSlowTile, 9) + CalibrationLine(kPlain, 1) + CalibrationLine(kRow, 30),
      8, kPlain);
}

// No rule keeps them from few rows but what cleaning costs: here 40 a line, shared by all strips.
TEST(Select, SplitKernelsNeedRowsToShareACleanedPanel) {
  using test::CalibrationLine;
  Table table;
  table.tile.add_outliers = [](const TileArgs&, std::span<const Outlier>) {};
  std::string tile = CalibrationLine(kTile, 1);
  tile.replace(tile.find(" 4096 0"), 7, " 4096 40");
  const std::string costs = tile + CalibrationLine(kRow, 30) + CalibrationLine(kSlowTile, 4) +
                            CalibrationLine(kPlain, 50);
  ExpectChoice(table, costs, 8, kSlowTile);   // 2 strips of 4 against 1 of 1 and 40
  ExpectChoice(table, costs, 40, kSlowTile);  // 10 of 4 against 5 and 40
  ExpectChoice(table, costs, 48, kTile);      // 12 of 4 against 6 and 40
}

TEST(Select, NoKernelOfThatKind) {
  const Table table;
  const KernelSelector selector(table.kernels(), {}, "");
  KernelQuery query = Rows(4);
  query.weight = DataType::kInt2;
  EXPECT_EQ(selector.Select(query).kernel, nullptr);
  query = Rows(4);
  query.arithmetic = Arithmetic::kW8A32;
  EXPECT_EQ(selector.Select(query).kernel, nullptr);
  EXPECT_TRUE(selector.Rank(query).empty());
}

// Everything disabled: the last supported kernel of the kind stays.
TEST(Select, ConfigurationCannotBreakADevice) {
  Table table;
  for (const bool last_is_supported : {true, false}) {
    table.plain.supported = last_is_supported ? Always : Never;
    const KernelSelector selector(table.kernels(), {}, "cpu");
    EXPECT_EQ(Chosen(selector, Rows(4)), last_is_supported ? kPlain : kSlowTile);
  }
}

// One row, to sixteen, more; and the first row of the table is put aside for its class alone.
TEST(Select, QuarantineIsByOneFewAndManyRows) {
  const struct {
    int64_t rows;
    const char* key;
    std::vector<int64_t> same, other;
  } cases[] = {
      {1, "/m1", {0, 1}, {2, 16, 17}},
      {8, "/m2-16", {2, 16}, {1, 17}},
      {40, "/m17+", {17, 100'000}, {1, 2, 16}},
  };
  for (const auto& c : cases) {
    Table table;
    table.row.supported = Never;
    KernelSelector selector(table.kernels(), {}, "");
    selector.list().Quarantine(kTile, c.rows, "wrong sum");
    ASSERT_EQ(selector.list().Quarantined().size(), 1u);
    EXPECT_EQ(selector.list().Quarantined()[0].key, std::string(kTile) + c.key);
    for (const int64_t rows : c.same) {
      EXPECT_EQ(Chosen(selector, Rows(rows)), kSlowTile) << rows;
      EXPECT_TRUE(selector.Select(Rows(rows)).fell_back) << rows;
    }
    for (const int64_t rows : c.other) {
      EXPECT_EQ(Chosen(selector, Rows(rows)), kTile) << rows;
      EXPECT_FALSE(selector.Select(Rows(rows)).fell_back) << rows;
    }
    EXPECT_TRUE(selector.list().Rearm(std::string(kTile) + c.key));
    EXPECT_EQ(Chosen(selector, Rows(c.rows)), kTile);
    EXPECT_FALSE(selector.Select(Rows(c.rows)).fell_back);
  }
}

// All of a kind put aside: a slow server is better than none.
TEST(Select, TheLastOnesStillRun) {
  const Table table;
  KernelSelector selector(table.kernels(), {}, "");
  for (const MicroKernel* kernel : table.kernels())
    selector.list().Quarantine(kernel->name, 8, "x");
  EXPECT_NE(selector.Select(Rows(4)).kernel, nullptr);
  EXPECT_TRUE(selector.Select(Rows(4)).fell_back);
}

TEST(Select, TheForcedKernelOrWhyNot) {
  Table table;
  table.slow.supported = Never;
  table.plain.weight = DataType::kInt4;
  KernelSelector selector(table.kernels(), {}, "");
  KernelSelector::Choice choice;
  EXPECT_TRUE(selector.Choose(Rows(8), kRow, &choice).ok());
  EXPECT_EQ(choice.kernel, &table.row);
  EXPECT_TRUE(selector.Choose(Rows(8), "", &choice).ok());
  EXPECT_EQ(choice.kernel, &table.tile);
  EXPECT_EQ(selector.Choose(Rows(8), "cpu.none", &choice).reason, "KERNEL_UNKNOWN");
  const Fault lacks = selector.Choose(Rows(8), kSlowTile, &choice);
  EXPECT_EQ(lacks.reason, "KERNEL_UNSUPPORTED");
  EXPECT_NE(lacks.message.find("this processor lacks the instruction set"), std::string::npos);
  const Fault other = selector.Choose(Rows(8), kPlain, &choice);
  EXPECT_EQ(other.reason, "LAYOUT_MISMATCH");
  EXPECT_NE(other.message.find("n16k4.s4 weights for W8A8, not n16k4.s8"), std::string::npos)
      << other.message;
}

// The real table, with whatever is disabled and quarantined: the choice is never one of them while
// there is another.
TEST(Select, TheRealTableUnderRandomConfigurations) {
  test::Random random(9);
  const auto table = MicroKernels();
  const CpuFeatures features = DetectCpuFeatures();
  for (int i = 0; i < 60; ++i) {
    std::string disabled;
    for (const MicroKernel* kernel : table)
      if (random.Chance(30)) disabled += std::string(kernel->name) + ",";
    KernelSelector selector(table, features, disabled);
    for (const MicroKernel* kernel : table)
      if (random.Chance(25)) selector.list().Quarantine(kernel->name, 8, "x");
    for (const DataType weight : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
      for (const Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32}) {
        for (const int64_t rows : {1, 9, 40}) {
          KernelQuery query = Rows(rows);
          query.weight = weight;
          query.arithmetic = arithmetic;
          const auto ranked = selector.Rank(query);
          ASSERT_FALSE(ranked.empty());
          const KernelList& list = selector.list();
          EXPECT_EQ(selector.Select(query).kernel, ranked[0].kernel);
          EXPECT_TRUE(list.IsUsable(ranked[0].index)) << ranked[0].kernel->name;
          EXPECT_TRUE(ranked[0].kernel->supported(features));
          const bool another = std::any_of(ranked.begin(), ranked.end(), [&](const auto& r) {
            return list.IsEligible(r.index, rows);
          });
          EXPECT_EQ(list.IsQuarantined(ranked[0].index, rows), !another) << ranked[0].kernel->name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace qmatmul::cpu
