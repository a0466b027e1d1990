// Registers a weight and multiplies one row by it. Usage: first_call [HOST:PORT]
#include <cstdio>

#include "client/client.h"

using namespace qmatmul::client;  // an example may

int main(int argc, char** argv) {
  Client client({.server = argc > 1 ? argv[1] : "127.0.0.1:8500"});

  const std::vector<int8_t> w = {1, -2, 3, -4, 5, -6};  // [K, N] = [3, 2]
  const std::vector<float> w_scales = {0.5f, 0.25f};    // one per column
  WeightUpload weight{
      .id = "first", .dtype = DataType::kInt8, .layout = Layout::kKN, .k = 3, .n = 2};
  weight.data = std::as_bytes(std::span(w));
  weight.scales = Scales(w_scales);
  if (auto r = client.RegisterWeight(weight); !r.ok())
    return std::fprintf(stderr, "%s\n", r.status().ToString().c_str()), 1;

  const std::vector<float> x = {1.27f, 0.0f, -1.27f};  // quantized to 127, 0, -127 by the server
  const Activations row{.dtype = DataType::kF32,
                        .rows = 1,
                        .k = 3,
                        .data = std::as_bytes(std::span(x)),
                        .dynamic = true};
  auto y =
      client.MatMul("first", row, {.dtype = DataType::kF32}, {.arithmetic = Arithmetic::kW8A8});
  if (!y.ok()) return std::fprintf(stderr, "%s\n", y.status().ToString().c_str()), 1;
  std::printf("y = %g %g by %s\n", y->As<float>()[0], y->As<float>()[1],
              y->execution.kernel.c_str());
}
