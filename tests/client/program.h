// Runs a program to its end and keeps what it printed.
#pragma once

#include <string>
#include <vector>

namespace qmatmul::testing {

struct ProgramResult {
  int exit_code = -1;  // 128 + signal when a signal ended it
  std::string out;
  std::string err;
};

// words[0] is the program. `environment` holds NAME=value pairs that are added to ours.
ProgramResult RunProgram(const std::vector<std::string>& words,
                         const std::vector<std::string>& environment = {});

}  // namespace qmatmul::testing
