// The table of subcommands: adding one is a row in commands.cc and a function in a file of its own.
//
// A command prints its answer and returns its exit code; it gives up by throwing Failure.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "client/cli/arguments.h"
#include "client/client.h"

namespace qmatmul::cli {

struct Command {
  std::string_view name;
  std::string_view positionals;  // "ID WEIGHT.npy", as the help shows them
  size_t positionals_min;
  size_t positionals_max;
  std::string_view summary;  // one line
  std::string_view details;  // what the options cannot say; may be empty
  std::span<const OptionSpec> options;
  int (*run)(const Arguments& arguments);
};

std::span<const Command> Commands();
// Everything `qmatmul` does with its words, main's argv[0] left out; returns the exit code.
int RunCommandLine(std::span<const std::string_view> words);

// The server and timeouts that the arguments and the environment say.
client::ClientOptions OptionsOf(const Arguments& arguments);

int RunRegister(const Arguments& arguments);
int RunList(const Arguments& arguments);
int RunShow(const Arguments& arguments);
int RunDelete(const Arguments& arguments);
int RunMatMul(const Arguments& arguments);
int RunExplain(const Arguments& arguments);
int RunBench(const Arguments& arguments);
int RunGenLoad(const Arguments& arguments);
int RunHealth(const Arguments& arguments);
int RunAdmin(const Arguments& arguments);
int RunDoctor(const Arguments& arguments);

}  // namespace qmatmul::cli
