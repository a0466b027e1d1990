// T5 (tract: TRACT_DOTPROD_DISABLE=1, an A/B on one binary): `qmatmul bench --ab k1,k2` measures
// two kernels by turns in one run and prints both and the ratio. F8 (FlagGems: "scalar 1.9; M=1 63;
// …"): `qmatmul bench` prints GOPS for the list of M, the ratio to scalar and to one thread. Ratios
// are checked for being what they say, never for a speed: see the benchmarks.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/client/program.h"

namespace qmatmul::testing {
namespace {

using nlohmann::json;

ProgramResult Bench(std::vector<std::string> words) {
  words.insert(words.begin(), {QMATMUL_PROGRAM, "bench", "--in-process", "--seconds", "0.02"});
  return RunProgram(words);
}

TEST(T5, OneRunPrintsBothKernelsAndTheRatio) {
  const ProgramResult r =
      Bench({"--k", "256", "--n", "256", "--rows", "1,8", "--json", "--ab", "scalar,scalar"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const json results = json::parse(r.out).at("ab");
  ASSERT_EQ(results.size(), 2u) << "one row per M";
  for (const json& row : results) {
    for (const char* side : {"a", "b"}) {
      EXPECT_EQ(row.at(side).at("kernel").get<std::string>().rfind("cpu.scalar.", 0), 0u) << row;
      EXPECT_GT(row.at(side).at("compute_gops").get<double>(), 0) << row;
      EXPECT_GE(row.at(side).at("runs").get<int>(), 5) << "five slices, by turns: " << row;
    }
    const double ratio =
        row.at("a").at("compute_gops").get<double>() / row.at("b").at("compute_gops").get<double>();
    EXPECT_NEAR(row.at("ratio").get<double>(), ratio, 1e-9) << row;
    // Of a kernel against itself; how far it is from 1 says how busy the machine is, nothing else.
    EXPECT_GT(ratio, 0) << row;
  }
}

TEST(T5, TheTextNamesBothKernelsInFull) {
  const ProgramResult all = Bench({"--k", "64", "--n", "64", "--rows", "8", "--json"});
  ASSERT_EQ(all.exit_code, 0) << all.err;
  const std::string best = json::parse(all.out).at("results").at(0).at("kernel");
  const ProgramResult r =
      Bench({"--k", "64", "--n", "64", "--rows", "8", "--ab", best + ",scalar"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_NE(r.out.find(best), std::string::npos) << r.out;
  EXPECT_NE(r.out.find("cpu.scalar."), std::string::npos) << r.out;
  EXPECT_NE(r.out.find("A/B"), std::string::npos) << r.out;
}

TEST(T5, AKernelThatIsNotHereIsRefusedWithTheNamesThatAre) {
  const ProgramResult r = Bench({"--k", "8", "--n", "8", "--rows", "1", "--ab", "sparc,scalar"});
  EXPECT_EQ(r.exit_code, 2);
  EXPECT_NE(r.err.find("'sparc'"), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("cpu.scalar."), std::string::npos) << r.err;
}

TEST(F8, TheListOfRowsWithRatiosToScalarAndToOneThread) {
  const ProgramResult r = Bench({"--k", "64", "--n", "64", "--threads", "1,2", "--json"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const json results = json::parse(r.out).at("results");
  std::vector<int> rows;
  for (const json& row : results) {
    if (row.at("threads") == 1) {
      rows.push_back(row.at("rows"));
      EXPECT_DOUBLE_EQ(row.at("ratio_to_one_thread").get<double>(), 1.0);
    }
    EXPECT_GT(row.at("ratio_to_scalar").get<double>(), 0) << row;
    EXPECT_GT(row.at("ratio_to_one_thread").get<double>(), 0) << row;
  }
  EXPECT_EQ(rows, (std::vector<int>{1, 2, 3, 7, 8, 63, 64, 65, 84, 88}));
  EXPECT_EQ(results.size(), 20u) << "each M with one thread and with two";
}

}  // namespace
}  // namespace qmatmul::testing
