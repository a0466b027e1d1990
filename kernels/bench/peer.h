// Somebody else's int8 matrix product, timed beside ours in the same run.
//
// A peer gets the same activations and weight, prepares whatever it prepares once (packing is not
// timed), and then runs as often as it is told.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <vector>

namespace qmatmul::bench {

// Memory that starts on a cache line, as the server's replies do; our results and oneDNN's are there, since
// stores that straddle two lines slow some kernels down.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  LineAllocator() = default;
  template <typename U>
  explicit LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  bool operator==(const LineAllocator&) const { return true; }
};
template <typename T>
using LineVector = std::vector<T, LineAllocator<T>>;

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
