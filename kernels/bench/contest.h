// Times our kernels and their peers on one problem, interleaved: each round runs every contender
// once, so that a slow moment of a shared machine hits all of them alike. Medians are compared,
// never single runs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/bench/peer.h"
#include "kernels/device.h"

namespace qmatmul::bench {

// One product of ours, ready to run: weight packed, activations and output in place.
class OwnProduct {
 public:
  // INT4 weights are the low nibbles of the problem's, in groups of `group_size`.
  OwnProduct(Device* device, const Problem& problem, DataType weight_type, int64_t group_size,
             DataType activations, const Epilogue& epilogue, std::string kernel);
  ~OwnProduct();
  // `count` products; nanoseconds of one.
  double Run(int count);
  std::string_view kernel() const { return report_.kernels[0]; }
  std::span<const std::byte> output() const { return output_; }
  double pack_gbps() const { return pack_gbps_; }
  const PackedWeight& weight() const;

 private:
  struct Parts;
  Device* device_;
  std::string forced_;
  LineVector<std::byte> output_;
  std::unique_ptr<Parts> parts_;
  RunReport report_;
  double pack_gbps_ = 0;
};

struct Contender {
  std::string name;
  std::function<double(int count)> run;  // nanoseconds of one of `count` products
  std::vector<double> rounds_ns = {};    // one of each round
  double median_ns = 0;
  double best_ns = 0;

  // The median of `other`'s time over this one's, round by round: a slow moment of the machine is in both.
  double RatioOf(const Contender& other) const;
};

// Fills the times. At least `rounds` rounds, at most about `seconds` in all.
void Compete(std::vector<Contender>* contenders, int rounds, double seconds);

// [k, n] values: "uniform", "gaussian", "laplace" (the two latter scaled per column to ±127), or the first
// k * n bytes of a file ("file:PATH").
std::vector<int8_t> MakeWeight(const std::string& distribution, int64_t k, int64_t n);

// A kernel's full tile on data in L1, on one thread: what its loop can do at best.
class Probe {
 public:
  explicit Probe(std::string_view kernel);
  ~Probe();
  // `count` times so many operations; nanoseconds of one time.
  double Run(int count);
  double ops() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// How many of a sample of elements of `result` differ from the exact sums.
int64_t CountWrong(const Problem& problem, std::span<const int32_t> result);

}  // namespace qmatmul::bench
