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
  // One product; the result stays with the peer.
  virtual void Run() = 0;
  // The last result, [m, n]: compared with the exact sums of the problem's own and of extreme
  // values.
  virtual std::span<const int32_t> result() const = 0;
};

// The peers of one name ("onednn": its s8s8 and u8s8 paths); empty when this build has none.
std::vector<std::unique_ptr<Peer>> MakePeers(const std::string& name);

}  // namespace qmatmul::bench
