// onnxruntime has no C++ headers in its wheel, so it runs in a Python process of its own
// (onnxruntime_peer.py) and times itself there; this file speaks to it over pipes.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "kernels/bench/peer.h"

namespace qmatmul::bench {
namespace {

class OnnxRuntime final : public Peer {
 public:
  OnnxRuntime(std::string python, bool precise) : python_(std::move(python)), precise_(precise) {}
  ~OnnxRuntime() override {
    if (to_ != nullptr) std::fclose(to_);
    if (from_ != nullptr) std::fclose(from_);
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
  }

  std::string name() const override {
    return precise_ ? "onnxruntime.precise" : "onnxruntime.default";
  }

  bool Prepare(const Problem& p) override {
    if (pid_ == 0 && !Start()) return false;
    result_.assign(size_t(p.m * p.n), 0);
    std::fprintf(to_, "prepare %ld %ld %ld %d %d\n", p.m, p.k, p.n, p.threads, precise_ ? 1 : 0);
    std::fwrite(p.activations.data(), 1, p.activations.size(), to_);
    std::fwrite(p.weight.data(), 1, p.weight.size(), to_);
    return Line() == "ok\n";
  }

  double Run(int count) override {
    std::fprintf(to_, "run %d\n", count);
    return std::atof(Line().c_str());
  }

  std::span<const int32_t> result() const override {
    std::fprintf(to_, "result\n");
    if (Line() != "ok\n" || std::fread(result_.data(), 4, result_.size(), from_) != result_.size())
      return {};
    return result_;
  }

 private:
  bool Start() {
    signal(SIGPIPE, SIG_IGN);  // a peer that dies is a failed read, not our end
    int down[2], up[2];
    if (pipe2(down, O_CLOEXEC) != 0 || pipe2(up, O_CLOEXEC) != 0) return false;
    pid_ = fork();
    if (pid_ == 0) {
      dup2(down[0], STDIN_FILENO);
      dup2(up[1], STDOUT_FILENO);
      execlp(python_.c_str(), python_.c_str(), QMATMUL_PEER_SCRIPT, nullptr);
      std::perror(("kernels_bench: " + python_).c_str());
      _exit(127);
    }
    close(down[0]);
    close(up[1]);
    to_ = fdopen(down[1], "w");
    from_ = fdopen(up[0], "r");
    return pid_ > 0 && to_ != nullptr && from_ != nullptr;
  }

  // The next line; empty when the peer is gone.
  std::string Line() const {
    std::fflush(to_);
    char line[128];
    return std::fgets(line, sizeof line, from_) != nullptr ? line : "";
  }

  const std::string python_;
  const bool precise_;
  pid_t pid_ = 0;
  FILE* to_ = nullptr;
  FILE* from_ = nullptr;
  mutable std::vector<int32_t> result_;
};

}  // namespace

std::vector<std::unique_ptr<Peer>> MakeOnnxRuntimePeers(const std::string& python) {
  std::vector<std::unique_ptr<Peer>> peers;
  peers.push_back(std::make_unique<OnnxRuntime>(python, true));
  peers.push_back(std::make_unique<OnnxRuntime>(python, false));
  return peers;
}

}  // namespace qmatmul::bench
