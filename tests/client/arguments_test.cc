// The command line: what is typed is what commands see, and what is wrong is refused with the way
// out.
#include "client/cli/arguments.h"

#include <gtest/gtest.h>

#include "client/types.h"

namespace qmatmul::cli {
namespace {

using client::Layout;

constexpr OptionSpec kOptions[] = {{"--layout", "KN|NK", ""},
                                   {"--output", "FILE", ""},
                                   {"--rows", "M,M", ""},
                                   {"--quiet", "", ""}};

Arguments Parse(std::vector<std::string_view> words) {
  return Arguments::Parse("test", kOptions, words);
}

TEST(Arguments, OptionsMayStandAnywhere) {
  const Arguments a =
      Parse({"--layout", "KN", "x", "-o", "1", "--output=2", "--quiet", "y", "--", "--z"});
  EXPECT_EQ(a.positionals(), (std::vector<std::string>{"x", "y", "--z"}));
  EXPECT_EQ(a.All("--output"), (std::vector<std::string>{"1", "2"}));
  EXPECT_EQ(a.Text("--output"), "2") << "the last one counts";
  EXPECT_TRUE(a.Has("--quiet"));
  EXPECT_FALSE(a.Has("--json"));
  constexpr Layout kLayouts[] = {Layout::kKN, Layout::kNK};
  EXPECT_EQ(a.Choice("--layout", kLayouts, Layout::kUnspecified), Layout::kKN);
}

TEST(Arguments, Numbers) {
  EXPECT_EQ(Parse({"--rows", "7"}).Integer("--rows", 1, 0, 9), 7);
  EXPECT_EQ(Parse({}).Integer("--rows", 5, 0, 9), 5);
  EXPECT_EQ(Parse({"--rows", "-2"}).Integer("--rows", 1, -9, 9), -2) << "a value may be negative";
  EXPECT_EQ(Parse({"--rows", "1,64,2"}).Integers("--rows", {}, 1, 64),
            (std::vector<int64_t>{1, 64, 2}));
  EXPECT_DOUBLE_EQ(Parse({"--rows", "0.25"}).Number("--rows", 0, 0, 1), 0.25);
  for (const char* bad : {"", "x", "7x", "10", "-1", "1e3", "99999999999999999999", " 7", "7,"}) {
    EXPECT_THROW((void)Parse({"--rows", bad}).Integer("--rows", 0, 0, 9), Failure) << bad;
    EXPECT_THROW((void)Parse({"--rows", bad}).Integers("--rows", {}, 0, 9), Failure) << bad;
  }
  for (const char* bad : {"", "x", "nan", "2", "0.5s"})
    EXPECT_THROW((void)Parse({"--rows", bad}).Number("--rows", 0, 0, 1), Failure) << bad;
}

TEST(Arguments, MistakesAreNamed) {
  struct Row {
    std::vector<std::string_view> words;
    const char* what;
    const char* way_out;
  };
  const Row rows[] = {
      {{"--layuot", "KN"}, "no option --layuot", "did you mean --layout?"},
      {{"--xyzzy"}, "no option --xyzzy", "`qmatmul test --help`"},
      {{"--layout"}, "--layout needs a value: KN|NK", ""},
      {{"--quiet=1"}, "--quiet is a switch", ""},
      {{"-x"}, "no option -x", ""},
  };
  for (const Row& row : rows) {
    try {
      Parse(row.words);
      ADD_FAILURE() << row.words[0] << " was taken";
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.exit_code(), kExitUsage);
      EXPECT_NE(std::string(failure.what()).find(row.what), std::string::npos) << failure.what();
      EXPECT_NE(failure.way_out().find(row.way_out), std::string::npos) << failure.way_out();
    }
  }
  constexpr Layout kLayouts[] = {Layout::kKN, Layout::kNK};
  try {
    (void)Parse({"--layout", "kn"}).Choice("--layout", kLayouts, Layout::kUnspecified);
    ADD_FAILURE() << "kn was taken";
  } catch (const Failure& failure) { EXPECT_STREQ(failure.what(), "--layout kn is not KN or NK"); }
}

TEST(Arguments, NearestWord) {
  constexpr std::string_view kWords[] = {"register", "list", "show", "delete", "matmul"};
  EXPECT_EQ(NearestWord("regster", kWords), "register");
  EXPECT_EQ(NearestWord("matmull", kWords), "matmul");
  EXPECT_EQ(NearestWord("lst", kWords), "list");
  EXPECT_EQ(NearestWord("frobnicate", kWords), std::nullopt) << "nothing is near";
  EXPECT_EQ(NearestWord("xy", kWords), std::nullopt);
}

}  // namespace
}  // namespace qmatmul::cli
