#include "server/options.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

namespace qmatmul {
namespace {

// A config file that goes away with the test.
class ConfigFile {
 public:
  explicit ConfigFile(const std::string& text) {
    char path[] = "/tmp/qmatmul-options-XXXXXX";
    const int fd = mkstemp(path);
    if (fd >= 0) close(fd);
    path_ = path;
    std::ofstream(path_) << text;
  }
  ~ConfigFile() { std::remove(path_.c_str()); }
  std::string flag() const { return "--config=" + path_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct Load {
  Load(std::vector<std::string> flags, std::vector<std::string> variables) {
    std::vector<const char*> arguments, environment;
    for (const std::string& flag : flags) arguments.push_back(flag.c_str());
    for (const std::string& variable : variables) environment.push_back(variable.c_str());
    ok = LoadOptions(arguments, environment, &loaded, &error);
  }
  LoadedOptions loaded;
  std::string error;
  bool ok = false;
};

TEST(Options, DefaultsHold) {
  const Load l({}, {"PATH=/bin"});
  ASSERT_TRUE(l.ok) << l.error;
  EXPECT_EQ(l.loaded.options.listen, "127.0.0.1:8500");
  EXPECT_EQ(l.loaded.options.http_listen, "127.0.0.1:8501");
  EXPECT_EQ(l.loaded.options.message_bytes_max, 64 << 20);
  EXPECT_TRUE(l.loaded.options.metrics);
  EXPECT_EQ(l.loaded.origin.at("listen"), "default");
}

TEST(Options, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  const ConfigFile file("queue_requests_max = 10\nuploads_max = 11\ngrace_ms = 12\n");
  const Load l({file.flag(), "--queue-requests-max", "30"},
               {"QMATMUL_QUEUE_REQUESTS_MAX=20", "QMATMUL_UPLOADS_MAX=21"});
  ASSERT_TRUE(l.ok) << l.error;
  const Options& o = l.loaded.options;
  EXPECT_EQ(o.queue_requests_max, 30);
  EXPECT_EQ(o.uploads_max, 21);
  EXPECT_EQ(o.grace_ms, 12);
  EXPECT_EQ(o.inline_us_max, 20);
  EXPECT_EQ(l.loaded.origin.at("queue_requests_max"), "flag");
  EXPECT_EQ(l.loaded.origin.at("uploads_max"), "environment QMATMUL_UPLOADS_MAX");
  EXPECT_EQ(l.loaded.origin.at("grace_ms"), "file " + file.path() + ":3");
  EXPECT_EQ(l.loaded.origin.at("inline_us_max"), "default");
}

TEST(Options, TheEnvironmentNamesTheFileUnlessAFlagDoes) {
  const ConfigFile by_environment("grace_ms = 1\n"), by_flag("grace_ms = 2\n");
  EXPECT_EQ(Load({}, {"QMATMUL_CONFIG=" + by_environment.path()}).loaded.options.grace_ms, 1);
  EXPECT_EQ(
      Load({by_flag.flag()}, {"QMATMUL_CONFIG=" + by_environment.path()}).loaded.options.grace_ms,
      2);
}

TEST(Options, FilesTakeCommentsSpacesAndUnits) {
  const ConfigFile file(
      "# limits\n\n  message_bytes_max = 16MiB  # small\nmetrics=off\r\nlisten = "
      "unix:/tmp/q.sock,127.0.0.1:0\n");
  const Load l({file.flag()}, {});
  ASSERT_TRUE(l.ok) << l.error;
  EXPECT_EQ(l.loaded.options.message_bytes_max, 16 << 20);
  EXPECT_FALSE(l.loaded.options.metrics);
  EXPECT_EQ(l.loaded.options.listen, "unix:/tmp/q.sock,127.0.0.1:0");
}

TEST(Options, WhatIsPrintedCanBeReadBack) {
  const Load l({"--queue-requests-max=7", "--log-format", "json",
                "--device-weight-bytes-max=cuda:0=40GiB, vulkan = 0"},
               {"QMATMUL_DISABLE_KERNELS=cpu.avx2"});
  ASSERT_TRUE(l.ok) << l.error;
  const std::string text = ConfigText(l.loaded);
  EXPECT_NE(text.find("queue_requests_max = 7  # flag\n"), std::string::npos) << text;
  EXPECT_NE(text.find("disable_kernels = cpu.avx2  # environment QMATMUL_DISABLE_KERNELS\n"),
            std::string::npos)
      << text;
  const ConfigFile file(text);
  const Load again({file.flag()}, {});
  ASSERT_TRUE(again.ok) << again.error;
  EXPECT_EQ(again.loaded.options.queue_requests_max, 7);
  EXPECT_EQ(again.loaded.options.log_format, "json");
  const std::vector<DeviceBytes>& limits = again.loaded.options.device_weight_bytes_max;
  ASSERT_EQ(limits.size(), 2u);
  EXPECT_EQ(limits[0].device, "cuda:0");
  EXPECT_EQ(limits[0].bytes, int64_t{40} << 30);
  EXPECT_EQ(limits[1].device, "vulkan");
  EXPECT_EQ(limits[1].bytes, 0);
}

TEST(Options, EveryRowIsInTheHelp) {
  const Load l({"--help", "--version", "--print-config"}, {});
  EXPECT_TRUE(l.loaded.help && l.loaded.version && l.loaded.print_config);
  const std::string help = HelpText();
  for (const auto& [name, origin] : l.loaded.origin) {
    std::string flag = "--" + std::string(name);
    for (char& c : flag)
      if (c == '_') c = '-';
    EXPECT_NE(help.find(flag), std::string::npos) << flag;
  }
}

struct BadRow {
  std::vector<std::string> flags;
  std::vector<std::string> environment;
  const char* says;
};
const BadRow kBad[] = {
    {{"--no-such"}, {}, "unknown argument \"--no-such\""},
    {{"listen=x"}, {}, "unknown argument \"listen\""},
    {{"--listen"}, {}, "needs a value"},
    {{"--queue-requests-max=0"}, {}, "from 1 to"},
    {{"--queue-requests-max=-1"}, {}, "whole number"},
    {{"--queue-requests-max=1.5"}, {}, "whole number"},
    {{"--queue-requests-max="}, {}, "whole number"},
    {{"--queue-requests-max=1KiB"}, {}, "whole number"},  // no bytes
    {{"--message-bytes-max=2GiB"}, {}, "to 2147483647"},
    {{"--message-bytes-max=99999999999999999999"}, {}, "whole number"},
    {{"--message-bytes-max=9007199254740993GiB"}, {}, "whole number"},  // overflows when multiplied
    {{"--log-format=xml"}, {}, "text|json"},
    {{"--metrics=perhaps"}, {}, "on or off"},
    {{"--device-weight-bytes-max=1GiB"}, {}, "a device's id or kind and a number"},
    {{"--device-weight-bytes-max==1GiB"}, {}, "a device's id or kind and a number"},
    {{"--device-weight-bytes-max=cuda=much"}, {}, "\"much\" must be a whole number"},
    {{"--device-weight-bytes-max=cuda=much"}, {}, "for cuda"},
    {{"--device-weight-bytes-max=cuda=1,cpu=2,cuda=3"}, {}, "names cuda twice"},
    {{}, {"QMATMUL_THREADS=many"}, "environment QMATMUL_THREADS"},
    {{"--config=/nonexistent/q.conf"}, {}, "cannot be read"},
};

TEST(Options, BadValuesAreRefusedByName) {
  for (const BadRow& row : kBad) {
    const Load l(row.flags, row.environment);
    EXPECT_FALSE(l.ok) << row.says;
    EXPECT_NE(l.error.find(row.says), std::string::npos) << l.error;
  }
}

TEST(Options, BadFilesAreRefusedByLine) {
  const std::pair<const char*, const char*> files[] = {
      {"grace_ms = 1\nno_such = 2\n", ":2: \"no_such\" is not an option"},
      {"grace_ms = 1\ngrace-ms = 2\n", ":2: grace-ms is already set in line 1"},
      {"grace_ms\n", ":1: \"grace_ms\" is not an option"},
      {"grace_ms = soon\n", ":1: grace_ms = \"soon\""},
      {"config = other\n", ":1: \"config\" is not an option"},
  };
  for (const auto& [text, says] : files) {
    const ConfigFile file(text);
    const Load l({file.flag()}, {});
    EXPECT_FALSE(l.ok) << text;
    EXPECT_NE(l.error.find(says), std::string::npos) << l.error;
  }
}

TEST(Options, ForeignVariablesAreOnlyAWarning) {
  // What Kubernetes sets for a service called qmatmul.
  const Load l({}, {"QMATMUL_SERVICE_HOST=10.0.0.1"});
  ASSERT_TRUE(l.ok) << l.error;
  ASSERT_EQ(l.loaded.warnings.size(), 1u);
  EXPECT_NE(l.loaded.warnings[0].find("QMATMUL_SERVICE_HOST"), std::string::npos);
}

}  // namespace
}  // namespace qmatmul
