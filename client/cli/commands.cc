#include "client/cli/commands.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "client/cli/console.h"
#include "client/cli/json.h"
#include "client/cli/options.h"

namespace qmatmul::cli {
namespace {

constexpr Command kCommands[] = {
    {"register", "ID WEIGHT.npy", 2, 2, "upload a weight under a name",
     "WEIGHT.npy is int8: [K, N] with --layout KN, [N, K] with --layout NK. A weight that the "
     "server "
     "already holds is not uploaded again.",
     kRegisterOptions, RunRegister},
    {"list", "", 0, 0, "the registered weights", "", {}, RunList},
    {"show", "ID", 1, 1, "one weight: shape, digest, device copies", "", {}, RunShow},
    {"delete",
     "ID [ID ...]",
     1,
     1000,
     "unbind names; says the bytes that this frees",
     "",
     {},
     RunDelete},
    {"matmul", "ID [ID ...] X.npy", 2, 17, "multiply activations by one or more weights",
     "X.npy is [M, K], or [K] for one row: int8, uint8, float16, float32, or uint16 with --bf16. "
     "Give "
     "-o once per weight.",
     kMatMulOptions, RunMatMul},
    {"explain", "ID [ID ...]", 1, 16, "which kernel would run, and why", "", kExplainOptions,
     RunExplain},
    {"bench", "", 0, 0, "measure GOPS in this process, or load a server",
     "Without --in-process it loads the server: with random weights that it registers and deletes, "
     "or with --weight. Latencies count from the moment a call was meant to leave. Ratios of "
     "kernels (--ab) come from runs that alternate, so that a noisy machine disturbs both alike.",
     kBenchOptions, RunBench},
    {"gen-load", "OUT.bin", 1, 1, "write MatMul requests as a file that ghz replays (-B)",
     "Each request has its length before it, as a varint. The shapes come from the server, which "
     "must hold the weights. deploy/ghz has configurations that fit.",
     kGenLoadOptions, RunGenLoad},
    {"health", "[SERVICE]", 0, 1, "exit 0 when the server is serving", "", kHealthOptions,
     RunHealth},
    {"doctor",
     "",
     0,
     0,
     "check the way to the server, the server, and one exact product",
     "Every line says ok, warn or FAIL and what to do about it. Exit 1 when a check failed.",
     {},
     RunDoctor},
    {"admin",
     "rearm KEY",
     2,
     2,
     "take back a kernel that the server put aside",
     "A kernel that gave a wrong result is put aside for the row counts where it did. KEY is what "
     "`qmatmul doctor` and ListKernels show, for example cpu.avx2.s8s8s32.6x16x4/m2-16.",
     {},
     RunAdmin},
};

constexpr std::string_view kExitCodes =
    "Exit codes\n"
    "  0  done\n"
    "  1  the answer is no: not serving, or a check of doctor failed\n"
    "  2  the command line is wrong\n"
    "  3  a local file cannot be read, written or understood\n"
    "  4  the server was not reached, is busy, or did not answer in time: try again\n"
    "  5  the server refused the request as it is\n"
    "  6  no such weight\n"
    "  7  the server's own fault\n";

void PrintUsage(FILE* out) {
  std::fputs(
      "qmatmul: quantized matrix multiplication on a qmatmul server\n\n"
      "usage: qmatmul COMMAND [ARGUMENTS] [OPTIONS]\n\nCommands\n",
      out);
  for (const Command& command : kCommands)
    std::fprintf(out, "  %-10s%s\n", std::string(command.name).c_str(),
                 std::string(command.summary).c_str());
  std::fputs("\n`qmatmul COMMAND --help` says more; `qmatmul --version` the version.\n\n", out);
  std::fputs(std::string(kExitCodes).c_str(), out);
}

void PrintOptions(std::span<const OptionSpec> options) {
  for (const OptionSpec& option : options) {
    std::string left(option.name);
    if (!option.value.empty()) left += " " + std::string(option.value);
    std::printf("  %-26s %s\n", left.c_str(), std::string(option.help).c_str());
  }
}

void PrintHelp(const Command& command) {
  std::printf("qmatmul %s: %s\n\nusage: qmatmul %s%s%s [OPTIONS]\n",
              std::string(command.name).c_str(), std::string(command.summary).c_str(),
              std::string(command.name).c_str(), command.positionals.empty() ? "" : " ",
              std::string(command.positionals).c_str());
  if (!command.details.empty()) std::printf("\n%s\n", std::string(command.details).c_str());
  std::printf("\nOptions\n");
  PrintOptions(command.options);
  PrintOptions(CommonOptions());
}

const Command& FindCommand(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Command& command : kCommands) {
    if (command.name == name) return command;
    names.push_back(command.name);
  }
  std::string way_out = "the commands are " + JoinChoices(names);
  if (name.starts_with('-'))
    throw Failure(kExitUsage, "'" + std::string(name) + "' stands before the command",
                  "options follow it: `qmatmul COMMAND " + std::string(name) + " …`; " + way_out);
  if (const auto near = NearestWord(name, names))
    way_out = "did you mean `qmatmul " + std::string(*near) + "`? " + way_out;
  throw Failure(kExitUsage, "qmatmul has no command '" + std::string(name) + "'", way_out);
}

void PrintFailure(const Failure& failure, bool json) {
  if (json) {
    std::fprintf(stderr, "%s\n", ToJson(failure).dump(2).c_str());
    return;
  }
  std::fprintf(stderr, "qmatmul: %s\n", failure.what());
  if (failure.status())
    for (const auto& field : failure.status()->fields)
      std::fprintf(stderr, "  field %s: %s\n", field.field.c_str(), field.description.c_str());
  if (!failure.way_out().empty()) std::fprintf(stderr, "  %s\n", failure.way_out().c_str());
}

int RunOne(const Command& command, std::span<const std::string_view> words) {
  const Arguments arguments = Arguments::Parse(command.name, command.options, words);
  if (arguments.Has("--help")) {
    PrintHelp(command);
    return kExitOk;
  }
  const size_t count = arguments.positionals().size();
  if (count < command.positionals_min || count > command.positionals_max)
    throw Failure(
        kExitUsage,
        "qmatmul " + std::string(command.name) + " takes " +
            (command.positionals.empty() ? "no arguments" : std::string(command.positionals)) +
            ", not " + std::to_string(count) + " arguments",
        "`qmatmul " + std::string(command.name) + " --help` shows the usage");
  return command.run(arguments);
}

}  // namespace

std::span<const Command> Commands() { return kCommands; }

client::ClientOptions OptionsOf(const Arguments& arguments) {
  constexpr double kTimeoutSecondsMax = 86'400;
  const char* environment = std::getenv("QMATMUL_SERVER");  // NOLINT: nothing here sets it
  client::ClientOptions options;
  if (environment != nullptr && *environment != '\0') options.server = environment;
  options.server = arguments.Text("--server").value_or(options.server);
  if (const auto seconds = arguments.Number("--timeout", 0, 0.001, kTimeoutSecondsMax);
      seconds > 0) {
    options.timeout = std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
    options.upload_timeout = options.timeout;
  }
  options.message_bytes_max =
      arguments.Integer("--message-bytes-max", options.message_bytes_max, 1024, INT32_MAX);
  return options;
}

int RunCommandLine(std::span<const std::string_view> words) {
  const bool json = std::find(words.begin(), words.end(), "--json") != words.end();
  try {
    if (words.empty()) {
      PrintUsage(stderr);
      return kExitUsage;
    }
    if (words[0] == "--help" || words[0] == "-h" || (words[0] == "help" && words.size() == 1)) {
      PrintUsage(stdout);
      return kExitOk;
    }
    if (words[0] == "--version") {
      std::printf("qmatmul %s\n", std::string(client::Version()).c_str());
      return kExitOk;
    }
    if (words[0] == "help") {
      PrintHelp(FindCommand(words[1]));
      return kExitOk;
    }
    return RunOne(FindCommand(words[0]), words.subspan(1));
  } catch (const Failure& failure) {
    PrintFailure(failure, json);
    return failure.exit_code();
  }
}

}  // namespace qmatmul::cli
