// What `qmatmul bench` measures: one random int8 weight [K, N] that can be multiplied by M rows
// with a kernel of one's choice, either by the kernels linked into this program or by a server.
//
// Used by one thread. A target owns its weight: the server's copy is deleted when the target goes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "client/cli/arguments.h"
#include "client/client.h"

namespace qmatmul::cli {

struct BenchShape {
  int64_t k = 0;
  int64_t n = 0;
  int64_t rows_max = 0;  // the most rows that any Run will ask for
};

struct BenchSample {
  int64_t total_ns = 0;    // as the caller sees it
  int64_t compute_ns = 0;  // inside the device
  std::string kernel;
  int64_t padded_rows = 0;
};

class BenchTarget {
 public:
  virtual ~BenchTarget() = default;
  // "this process" or the server's address.
  virtual std::string where() const = 0;
  // Team sizes worth measuring; {0} when the target does not let the caller choose.
  virtual std::vector<int64_t> thread_counts() const = 0;
  // Names of the kernels that can run, the best for `rows` first.
  virtual std::vector<std::string> KernelsFor(int64_t rows) = 0;
  // One product of `rows` rows; threads 0: the whole team; kernel empty: the target chooses.
  virtual BenchSample Run(int64_t rows, int64_t threads, std::string_view kernel) = 0;
};

std::unique_ptr<BenchTarget> OpenLocalTarget(const BenchShape& shape, int64_t threads_max);
std::unique_ptr<BenchTarget> OpenServerTarget(const BenchShape& shape,
                                              const client::ClientOptions& options);

// The best kernel for `rows` that a pattern names: a full name, or some of its dotted words
// ("avx2", "cpu.scalar"). Failure (kExitUsage) with the names there are when none does.
std::string ResolveKernel(BenchTarget& target, int64_t rows, std::string_view pattern);

// Rows that are hard for somebody's kernels: one, two, primes, a tile and its neighbours, a
// remainder.
inline const std::vector<int64_t> kBenchRows = {1, 2, 3, 7, 8, 63, 64, 65, 84, 88};

// The load tester: `bench` against a server, unless it compares two kernels.
int RunBenchLoad(const Arguments& arguments);

}  // namespace qmatmul::cli
