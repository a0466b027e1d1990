#include "tests/client/program.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace qmatmul::testing {
namespace {

std::string TakeFile(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  std::filesystem::remove(path);
  return text.str();
}

// Only calls that are safe between fork and exec.
[[noreturn]] void Exec(char** words, char** environment, const char* out, const char* err) {
  const int out_file = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  const int err_file = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  dup2(out_file, STDOUT_FILENO);
  dup2(err_file, STDERR_FILENO);
  execve(words[0], words, environment);
  _exit(127);
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& s : strings) pointers.push_back(const_cast<char*>(s.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

ProgramResult RunProgram(const std::vector<std::string>& words,
                         const std::vector<std::string>& environment) {
  static std::atomic<int> count{0};
  const std::string base =
      std::filesystem::temp_directory_path() /
      ("qmatmul-run-" + std::to_string(getpid()) + "-" + std::to_string(++count));
  const std::string out = base + ".out", err = base + ".err";
  std::vector<std::string> variables = environment;
  for (char** v = environ; *v != nullptr; ++v) variables.emplace_back(*v);
  std::vector<char*> word_pointers = Pointers(words);
  std::vector<char*> variable_pointers = Pointers(variables);
  const pid_t child = fork();
  if (child == 0) Exec(word_pointers.data(), variable_pointers.data(), out.c_str(), err.c_str());
  ProgramResult result;
  int status = 0;
  if (child > 0 && waitpid(child, &status, 0) == child)
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = TakeFile(out);
  result.err = TakeFile(err);
  return result;
}

}  // namespace qmatmul::testing
