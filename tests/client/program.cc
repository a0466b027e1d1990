#include "tests/client/program.h"

#include <fcntl.h>
#include <signal.h>
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

int ExitCodeOf(pid_t child) {
  int status = 0;
  if (child <= 0 || waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
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
  result.exit_code = ExitCodeOf(child);
  result.out = TakeFile(out);
  result.err = TakeFile(err);
  return result;
}

ServerProcess::ServerProcess(const std::string& program, const std::vector<std::string>& flags,
                             const std::vector<std::string>& environment,
                             const std::string& log_path) {
  std::vector<std::string> words = {program,      "--listen", "127.0.0.1:0", "--http-listen", "",
                                    "--grace-ms", "0",        "--log-level", "warn"};
  words.insert(words.end(), flags.begin(), flags.end());
  std::vector<char*> word_pointers = Pointers(words);
  std::vector<std::string> variables = environment;
  for (char** v = environ; *v != nullptr; ++v) variables.emplace_back(*v);
  std::vector<char*> variable_pointers = Pointers(variables);
  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) return;
  child_ = fork();
  if (child_ == 0) {
    dup2(out[1], STDOUT_FILENO);
    if (!log_path.empty())
      dup2(open(log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
    execve(word_pointers[0], word_pointers.data(), variable_pointers.data());
    _exit(127);
  }
  close(out[1]);
  // "qmatmul-server ready grpc=127.0.0.1:8500 …\n"; the pipe ends if the server does.
  std::string line;
  for (char c = 0; read(out[0], &c, 1) == 1 && c != '\n';) line += c;
  close(out[0]);
  const size_t begin = line.find("grpc=");
  if (begin != std::string::npos)
    address_ = line.substr(begin + 5, line.find(' ', begin) - begin - 5);
}

ServerProcess::~ServerProcess() { (void)Stop(); }

int ServerProcess::Stop() {
  if (child_ <= 0) return -1;
  kill(child_, SIGTERM);
  const pid_t child = child_;
  child_ = -1;
  return ExitCodeOf(child);
}

}  // namespace qmatmul::testing
