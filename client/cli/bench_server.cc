// A server, as a bench target: one call after the other on one connection. What it shows beside the
// kernel is the cost of a round trip.
#include <chrono>

#include "client/cli/bench_target.h"
#include "client/cli/console.h"
#include "client/cli/random_bytes.h"
#include "client/cli/temporary_weight.h"

namespace qmatmul::cli {
namespace {

class ServerTarget final : public BenchTarget {
 public:
  ServerTarget(const BenchShape& shape, const client::ClientOptions& options)
      : shape_(shape),
        client_(options),
        activations_(RandomInt8(static_cast<size_t>(shape.rows_max * shape.k), 1)),
        sums_(static_cast<size_t>(shape.rows_max * shape.n)),
        weight_(client_, "qmatmul-bench", shape.k, shape.n,
                RandomInt8(static_cast<size_t>(shape.k * shape.n), 2)) {}

  std::string where() const override { return "server " + client_.options().server; }
  std::vector<int64_t> thread_counts() const override { return {0}; }

  std::vector<std::string> KernelsFor(int64_t rows) override {
    const client::Product product = ProductInto({});
    const auto explanation =
        ValueOf(client_.Explain(std::span(&product, 1), rows, client::DataType::kInt8), client_);
    std::vector<std::string> names;
    for (const auto& candidate : explanation.candidates)
      if (candidate.eligible) names.push_back(candidate.kernel);
    return names;
  }

  BenchSample Run(int64_t rows, int64_t, std::string_view kernel) override {
    client::Activations activations;
    activations.dtype = client::DataType::kInt8;
    activations.rows = rows;
    activations.k = shape_.k;
    activations.data =
        std::as_bytes(std::span(activations_).first(static_cast<size_t>(rows * shape_.k)));
    const client::Product product = ProductInto(
        std::as_writable_bytes(std::span(sums_).first(static_cast<size_t>(rows * shape_.n))));
    client::MatMulOptions options;
    options.kernel = kernel;
    const auto start = std::chrono::steady_clock::now();
    const auto outputs =
        ValueOf(client_.MatMul(std::span(&product, 1), activations, options), client_);
    const auto elapsed = std::chrono::steady_clock::now() - start;
    const client::Execution& execution = outputs.front().execution;
    return {std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count(),
            execution.compute_ns, execution.kernel, execution.padded_rows};
  }

 private:
  client::Product ProductInto(std::span<std::byte> into) const {
    client::OutputSpec spec;
    spec.dtype = client::DataType::kInt32;
    return {.weight = weight_.id(), .output = spec, .into = into};
  }

  BenchShape shape_;
  client::Client client_;
  std::vector<int8_t> activations_;
  std::vector<int32_t> sums_;
  TemporaryWeight weight_;
};

}  // namespace

std::unique_ptr<BenchTarget> OpenServerTarget(const BenchShape& shape,
                                              const client::ClientOptions& options) {
  return std::make_unique<ServerTarget>(shape, options);
}

}  // namespace qmatmul::cli
