// The requests of a load as numbers: weights, activations, what to make of them, and how often.
// `bench` and `gen-load` make them from shapes or read them from a case file (JSON, see
// deploy/ghz/README.md); a test that knows them all can say what each reply must be.
//
// Plain values; ReadCases throws Failure (kExitFile) that names the file, the case and the way out.
// Ownership: a LoadCase names its weight by its place in LoadCases::weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/load.h"
#include "client/load_run.h"

namespace qmatmul::cli {

struct LoadWeight {
  std::string id = {};
  client::DataType dtype = client::DataType::kInt8;
  client::Layout layout = client::Layout::kKN;
  int64_t k = 0;
  int64_t n = 0;
  int64_t group_size = 0;
  // Its numbers, when they are known here; empty for a weight that is only named.
  std::vector<std::byte> data = {};
  std::vector<float> scales = {};
  std::vector<float> bias = {};

  client::WeightUpload Upload() const;
};

struct LoadCase {
  std::string name = {};
  size_t weight = 0;
  std::vector<size_t> more_weights = {};  // of the same K, in the same call
  int64_t rows = 0;
  double share = 1;
  client::DataType activations = client::DataType::kInt8;
  std::vector<std::byte> data = {};
  bool dynamic = false;
  std::vector<float> scales = {};
  std::vector<int32_t> zero_points = {};
  client::OutputSpec output = {};
  client::MatMulOptions options = {};
};

struct LoadCases {
  std::vector<LoadWeight> weights = {};
  std::vector<LoadCase> cases = {};

  client::EncodedCall Encode(const LoadCase& one) const;
  std::vector<client::LoadItem> Items() const;
};

// Random numbers of a type that the contract accepts anywhere: INT2 without code 3, no NaN.
std::vector<std::byte> RandomElements(client::DataType dtype, int64_t count, uint64_t seed);
// An int8 weight [k, n] without scales.
LoadWeight RandomWeight(std::string id, int64_t k, int64_t n, uint64_t seed);
// `rows` int8 rows for weights[weight], `variants` of them with different numbers, sharing `share`.
void AddRows(LoadCases* cases, size_t weight, int64_t rows, double share, int variants,
             const client::OutputSpec& output, uint64_t seed);

LoadCases ReadCases(const std::string& path);

// Each reply's bytes as kernels/reference computes them, one output after the other, on as many
// threads as there are processors. The weights' numbers must be known.
std::vector<std::vector<std::byte>> ReferenceBytes(const LoadCases& cases);

}  // namespace qmatmul::cli
