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
  return selector.Select(query).state->kernel->name;
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
  tile.replace(tile.find(" 0 0 0 0 0"), 4, " 0 40");
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
  EXPECT_EQ(selector.Select(query).state, nullptr);
  query = Rows(4);
  query.arithmetic = Arithmetic::kW8A32;
  EXPECT_EQ(selector.Select(query).state, nullptr);
  EXPECT_TRUE(selector.Rank(query).empty());
}

// What the configuration's list names, and what it does not.
TEST(Select, DisabledNamesAndPrefixes) {
  const Table table;
  const struct {
    const char* list;
    std::vector<const char*> disabled;
  } rows[] = {
      {"", {}},
      {",, ,", {}},
      {"cpu.fast", {kTile, kRow}},
      {"cpu.fas", {}},  // a prefix ends before a dot
      {kTile, {kTile}},
      {" cpu.slow , cpu.fast.s8s8s32.1x64x4", {kSlowTile, kRow}},
      {"cpu.fast.s8s8s32.8x16x4.more", {}},
      {"nonsense,cpu.plain", {kPlain}},
  };
  for (const auto& row : rows) {
    for (const KernelState& state : KernelStates(table.kernels(), {}, row.list)) {
      const bool wanted = std::any_of(row.disabled.begin(), row.disabled.end(), [&](const char* d) {
        return std::string_view(d) == state.kernel->name;
      });
      EXPECT_EQ(state.disabled, wanted) << "'" << row.list << "' and " << state.kernel->name;
      EXPECT_EQ(state.usable(), !wanted);
      EXPECT_EQ(state.reason.find("QMATMUL_DISABLE_KERNELS") != std::string::npos, wanted);
    }
  }
}

// Everything disabled: the last supported kernel of the kind stays.
TEST(Select, ConfigurationCannotBreakADevice) {
  Table table;
  for (const bool last_is_supported : {true, false}) {
    table.plain.supported = last_is_supported ? Always : Never;
    const KernelSelector selector(table.kernels(), {}, "cpu");
    EXPECT_EQ(Chosen(selector, Rows(4)), last_is_supported ? kPlain : kSlowTile);
    int usable = 0;
    for (const KernelState& state : selector.states()) {
      usable += state.usable();
      EXPECT_FALSE(state.reason.empty()) << "each says what became of it: " << state.kernel->name;
    }
    EXPECT_EQ(usable, 1);
  }
}

TEST(Select, RowClasses) {
  for (const int64_t rows : {0, 1}) EXPECT_EQ(NameOf(RowClassOf(rows)), "m1") << rows;
  for (const int64_t rows : {2, 16}) EXPECT_EQ(NameOf(RowClassOf(rows)), "m2-16") << rows;
  for (const int64_t rows : {17, 100'000}) EXPECT_EQ(NameOf(RowClassOf(rows)), "m17+") << rows;
}

TEST(Select, QuarantineIsForOneKernelAndRowClass) {
  const Table table;
  KernelSelector selector(table.kernels(), {}, "");
  EXPECT_EQ(selector.Select(Rows(8)).state->kernel, &table.tile);
  EXPECT_FALSE(selector.Select(Rows(8)).fell_back);
  selector.Quarantine(kTile, RowClass::kFew, "wrong sum");
  selector.Quarantine(kTile, RowClass::kFew, "again");  // the first reason stays
  selector.Quarantine("no such kernel", RowClass::kFew, "x");
  ASSERT_EQ(selector.Quarantined().size(), 1u);
  const QuarantineInfo entry = selector.Quarantined()[0];
  EXPECT_EQ(entry.key, std::string(kTile) + "/m2-16");
  EXPECT_EQ(entry.kernel, kTile);
  EXPECT_EQ(entry.reason, "wrong sum");
  EXPECT_GT(entry.unix_time_ns, int64_t{1'600'000'000} * 1'000'000'000);
  EXPECT_NE(selector.Select(Rows(8)).state->kernel, &table.tile);
  EXPECT_TRUE(selector.Select(Rows(8)).fell_back);
  EXPECT_EQ(selector.Select(Rows(17)).state->kernel, &table.tile) << "other rows keep it";
  EXPECT_FALSE(selector.Select(Rows(17)).fell_back);
  EXPECT_EQ(Chosen(selector, Rows(1)), kRow);

  EXPECT_FALSE(selector.Rearm(std::string(kTile) + "/m1"));
  EXPECT_FALSE(selector.Rearm("")) << "no key is no key";
  EXPECT_TRUE(selector.Rearm(entry.key));
  EXPECT_FALSE(selector.Rearm(entry.key)) << "once";
  EXPECT_EQ(selector.Select(Rows(8)).state->kernel, &table.tile);
  EXPECT_FALSE(selector.Select(Rows(8)).fell_back);
  EXPECT_TRUE(selector.Quarantined().empty());
}

TEST(Select, EachRowClassIsRearmedAlone) {
  const Table table;
  KernelSelector selector(table.kernels(), {}, "");
  const KernelState* found = nullptr;
  for (const RowClass c : {RowClass::kOne, RowClass::kFew, RowClass::kMany})
    selector.Quarantine(kTile, c, "x");
  EXPECT_TRUE(selector.Rearm(std::string(kTile) + "/m17+"));
  EXPECT_TRUE(selector.Find(kTile, 20, &found).ok());
  EXPECT_FALSE(selector.Find(kTile, 2, &found).ok());
  EXPECT_TRUE(selector.Rearm(std::string(kTile) + "/m1"));
  EXPECT_TRUE(selector.Find(kTile, 1, &found).ok());
  EXPECT_FALSE(selector.Find(kTile, 2, &found).ok());
}

// All of a kind put aside: a slow server is better than none.
TEST(Select, TheLastOnesStillRun) {
  const Table table;
  KernelSelector selector(table.kernels(), {}, "");
  for (const MicroKernel* kernel : table.kernels())
    selector.Quarantine(kernel->name, RowClass::kFew, "x");
  EXPECT_NE(selector.Select(Rows(4)).state, nullptr);
  EXPECT_TRUE(selector.Select(Rows(4)).fell_back);
}

TEST(Select, FindSaysWhyNot) {
  Table table;
  table.slow.supported = Never;
  KernelSelector selector(table.kernels(), {}, kRow);
  selector.Quarantine(kTile, RowClass::kOne, "x");
  const KernelState* found = nullptr;
  EXPECT_TRUE(selector.Find(kTile, 2, &found).ok());
  EXPECT_EQ(found->kernel, &table.tile);
  const struct {
    const char* name;
    FaultKind kind;
    const char* reason;
    const char* in_message;
  } rows[] = {
      {"cpu.none", FaultKind::kInvalidArgument, "KERNEL_UNKNOWN", "'cpu.none'"},
      {"cpu.fast", FaultKind::kInvalidArgument, "KERNEL_UNKNOWN", "cpu.fast"},
      {kSlowTile, FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED", "lacks"},
      {kRow, FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED", "disabled by configuration"},
      {kTile, FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED", "quarantined"},
  };
  for (const auto& row : rows) {
    const Fault fault = selector.Find(row.name, 1, &found);
    EXPECT_EQ(fault.kind, row.kind) << row.name;
    EXPECT_EQ(fault.reason, row.reason) << row.name;
    EXPECT_NE(fault.message.find(row.in_message), std::string::npos) << fault.message;
  }
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
      if (random.Chance(25)) selector.Quarantine(kernel->name, RowClass::kFew, "x");
    for (const DataType weight : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
      for (const Arithmetic arithmetic : {Arithmetic::kW8A8, Arithmetic::kW8A32}) {
        for (const int64_t rows : {1, 9, 40}) {
          KernelQuery query = Rows(rows);
          query.weight = weight;
          query.arithmetic = arithmetic;
          const auto ranked = selector.Rank(query);
          ASSERT_FALSE(ranked.empty());
          EXPECT_EQ(selector.Select(query).state, ranked[0].state);
          EXPECT_TRUE(ranked[0].state->usable()) << ranked[0].state->kernel->name;
          EXPECT_TRUE(ranked[0].state->kernel->supported(features));
          const bool another = std::any_of(ranked.begin(), ranked.end(), [](const auto& r) {
            return r.state->usable() && !r.quarantined;
          });
          EXPECT_EQ(ranked[0].quarantined, !another) << ranked[0].state->kernel->name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace qmatmul::cpu
