// Somebody else's int8 matrix product, timed beside ours in the same run.
//
// A peer gets the same activations and weight, prepares whatever it prepares once (packing is not
// timed), and then runs as often as it is told.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace qmatmul::bench {

struct Problem {
  int64_t m = 0, k = 0, n = 0;
  int threads = 1;
  std::span<const int8_t> activations;  // [m, k]
  std::span<const int8_t> weight;       // [k, n]
};

class Peer {
 public:
  virtual ~Peer() = default;
  virtual std::string name() const = 0;
  // False when the peer cannot do this problem.
  virtual bool Prepare(const Problem& problem) = 0;
  // `count` products; the result stays with the peer. Nanoseconds of one of them, on BenchClockNs or the
  // same clock of the process that computes it.
  virtual double Run(int count) = 0;
  // The last result, [m, n]: compared with the exact sums of the problem's own and of extreme
  // values.
  virtual std::span<const int32_t> result() const = 0;
};

// The peers of one name ("onednn": its s8s8 and u8s8 paths); empty when this build has none.
std::vector<std::unique_ptr<Peer>> MakePeers(const std::string& name);
// onnxruntime's exact ("precise") and default modes, computed by a Python process beside this one.
// `python` is an interpreter with numpy, onnx and onnxruntime (deploy/python-env makes one).
std::vector<std::unique_ptr<Peer>> MakeOnnxRuntimePeers(const std::string& python);

}  // namespace qmatmul::bench
