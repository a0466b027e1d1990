// onnxruntime has no C++ headers in its wheel, so it runs in a Python process of its own
// (onnxruntime_peer.py) and times itself there.
#include <cstdlib>
#include <string>

#include "kernels/bench/peer.h"
#include "kernels/bench/script_process.h"

namespace qmatmul::bench {
namespace {

class OnnxRuntime final : public Peer {
 public:
  OnnxRuntime(const std::string& python, bool precise)
      : script_(python, QMATMUL_PEER_SCRIPTS "/onnxruntime_peer.py"), precise_(precise) {}

  std::string name() const override {
    return precise_ ? "onnxruntime.precise" : "onnxruntime.default";
  }

  bool Prepare(const Problem& p) override {
    if (!script_.Start()) return false;
    result_.assign(size_t(p.m * p.n), 0);
    script_.Say("prepare " + std::to_string(p.m) + " " + std::to_string(p.k) + " " +
                std::to_string(p.n) + " " + std::to_string(p.threads) + (precise_ ? " 1" : " 0"));
    script_.Give(p.activations.data(), p.activations.size());
    script_.Give(p.weight.data(), p.weight.size());
    return script_.Line() == "ok";
  }

  double Run(int count) override {
    script_.Say("run " + std::to_string(count));
    return std::atof(script_.Line().c_str());
  }

  std::span<const int32_t> result() const override {
    script_.Say("result");
    if (script_.Line() != "ok" || !script_.Take(result_.data(), 4 * result_.size())) return {};
    return result_;
  }

 private:
  mutable ScriptProcess script_;
  const bool precise_;
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
