#include "kernels/bench/script_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

namespace qmatmul::bench {

ScriptProcess::ScriptProcess(std::string python, std::string script)
    : python_(std::move(python)), script_(std::move(script)) {}

ScriptProcess::~ScriptProcess() {
  if (to_ != nullptr) std::fclose(to_);
  if (from_ != nullptr) std::fclose(from_);
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
}

bool ScriptProcess::Start() {
  if (pid_ != 0) return to_ != nullptr && from_ != nullptr;
  signal(SIGPIPE, SIG_IGN);  // a peer that dies is a failed read, not our end
  int down[2], up[2];
  if (pipe2(down, O_CLOEXEC) != 0 || pipe2(up, O_CLOEXEC) != 0) return false;
  pid_ = fork();
  if (pid_ == 0) {
    dup2(down[0], STDIN_FILENO);
    dup2(up[1], STDOUT_FILENO);
    execlp(python_.c_str(), python_.c_str(), script_.c_str(), nullptr);
    std::perror(("kernels_bench: " + python_).c_str());
    _exit(127);
  }
  close(down[0]);
  close(up[1]);
  to_ = fdopen(down[1], "w");
  from_ = fdopen(up[0], "r");
  return pid_ > 0 && to_ != nullptr && from_ != nullptr;
}

void ScriptProcess::Say(std::string_view line) {
  Give(line.data(), line.size());
  std::fputc('\n', to_);
}

void ScriptProcess::Give(const void* bytes, size_t size) { std::fwrite(bytes, 1, size, to_); }

std::string ScriptProcess::Line() {
  std::fflush(to_);
  std::string line;
  for (int c; (c = std::fgetc(from_)) != EOF && c != '\n';) line += static_cast<char>(c);
  return line;
}

bool ScriptProcess::Take(void* bytes, size_t size) {
  return std::fread(bytes, 1, size, from_) == size;
}

}  // namespace qmatmul::bench
