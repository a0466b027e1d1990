// A server that was built for GPUs and finds none says so at its start: once, with the reason, and not at all
// where a GPU is there or none was asked for.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "tests/client/program.h"

namespace qmatmul {
namespace {

#ifdef QMATMUL_VULKAN
constexpr bool kHasVulkan = true;
#else
constexpr bool kHasVulkan = false;
#endif
#ifdef QMATMUL_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

struct StartRow {
  const char* name;
  std::vector<std::string> flags;
  std::string vulkan_driver;  // of the loader; a file that is not there: no driver
  bool is_said;
  std::string vulkan_reason;  // a part of it
};
void PrintTo(const StartRow& row, std::ostream* out) { *out << row.name; }

constexpr char kNoDriver[] = "/nonexistent/icd.json";

std::vector<StartRow> Rows() {
  const std::vector<std::string> none = {"--vulkan-devices=off", "--disable-kernels=cuda"};
  std::vector<StartRow> rows = {
      {"NoDriver", {}, kNoDriver, kHasVulkan || kHasCuda, "vulkan: no driver"},
      {"NoDriverForAll",
       {"--vulkan-devices=all"},
       kNoDriver,
       kHasVulkan || kHasCuda,
       "vulkan: no driver"},
      {"NoneAskedFor", none, kNoDriver, false, ""},
      {"AtLevelWarn", {"--log-level=warn"}, kNoDriver, false, ""}};
#ifdef QMATMUL_LAVAPIPE
  rows.push_back({"SoftwareIsNoGpu", {}, QMATMUL_LAVAPIPE, true, "computes on the CPU"});
  rows.push_back({"OneIsServed", {"--vulkan-devices=all"}, QMATMUL_LAVAPIPE, false, ""});
#endif
  return rows;
}

class StartLine : public ::testing::TestWithParam<StartRow> {};

TEST_P(StartLine, IsSaidOnceOrNotAtAll) {
  const StartRow& row = GetParam();
  const std::string log = "/tmp/qmatmul-start-line-" + std::to_string(getpid()) + ".log";
  std::vector<std::string> flags = {"--log-level=info", "--threads=1"};
  flags.insert(flags.end(), row.flags.begin(), row.flags.end());
  testing::ServerProcess server(QMATMUL_SERVER_PROGRAM, flags,
                                {"VK_ICD_FILENAMES=" + row.vulkan_driver,
                                 "VK_DRIVER_FILES=" + row.vulkan_driver, "CUDA_VISIBLE_DEVICES="},
                                log);
  EXPECT_NE(server.address(), "") << "it serves all the same";
  EXPECT_EQ(server.Stop(), 0);
  std::ifstream file(log);
  std::string text;
  int said = 0;
  for (std::string line; std::getline(file, line); text += line + "\n") {
    if (line.find("no GPU is served, the CPU computes everything") == std::string::npos) continue;
    ++said;
    EXPECT_NE(line.find(" info "), std::string::npos) << line;
    EXPECT_EQ(line.find(row.vulkan_reason) != std::string::npos, kHasVulkan) << line;
    EXPECT_EQ(line.find("; cuda: ") != std::string::npos, kHasCuda) << line;
  }
  EXPECT_EQ(said, row.is_said ? 1 : 0) << text;
  std::remove(log.c_str());
}

INSTANTIATE_TEST_SUITE_P(Machines, StartLine, ::testing::ValuesIn(Rows()),
                         [](const ::testing::TestParamInfo<StartRow>& row) {
                           return std::string(row.param.name);
                         });

}  // namespace
}  // namespace qmatmul
