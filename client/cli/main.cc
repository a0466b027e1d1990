// The `qmatmul` program.
#include <string_view>
#include <vector>

#include "client/cli/commands.h"
#include "client/load.h"

int main(int argc, char** argv) {
  qmatmul::client::SetUpProcess();
  const std::vector<std::string_view> words(argv + 1, argv + argc);
  return qmatmul::cli::RunCommandLine(words);
}
