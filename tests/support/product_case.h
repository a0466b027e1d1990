// One Run of a device, described, computed and compared with the reference bit for bit.
//
// Why: the conformance test, the seeds rows and the tests of later devices all say the same thing,
// "this Work on this kernel gives the reference's bytes", so it is said in one place.
//
// Thread-safety: values; CheckProduct may be called from several threads on one device.
//
// What is compared: every byte of every row, the bytes between rows and the rows of no segment
// (they must be untouched), memory before and after the output, the columns of top_k, overflow counts
// and the first overflow, row checks, scales used, and the report's kernel and rows. A chain is compared
// with separate calls of the reference.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/device.h"
#include "tests/support/test_tensors.h"

namespace qmatmul::test {

struct ProductRequest {
  TestActivations activations;
  std::vector<Epilogue> epilogues;  // one per weight
  // [begin, begin + rows) of the request; empty: one segment of all rows.
  std::vector<std::pair<int64_t, int64_t>> segments = {};
  int64_t row_gap_bytes = 0;        // between rows of the output
  std::vector<int64_t> top_k = {};  // one per weight, 0: all columns; empty: all columns of all
  std::vector<Epilogue> intermediates = {};  // one per step of a chain but the last
};

// A further step of a chain.
struct ProductStep {
  TestWeight weight;
  Arithmetic arithmetic = Arithmetic::kW8A8;
};

struct ProductCase {
  std::string name;
  std::vector<TestWeight> weights;
  std::vector<ProductRequest> requests;
  Arithmetic arithmetic = Arithmetic::kW8A8;
  bool row_checks = false;             // W8A8 only
  std::vector<ProductStep> then = {};  // a chain: `weights` is one, epilogues are the last step's
};

// Packs the weights and runs the case with `kernel` forced (empty: the device chooses), on the
// calling thread alone and on the whole team; differences are reported as googletest failures.
void CheckProduct(Device* device, std::string_view kernel, const ProductCase& product);

// The dense output of one request and weight; for tests with expected values of their own.
std::vector<std::byte> RunOne(Device* device, std::string_view kernel, const TestWeight& weight,
                              const TestActivations& activations, const Epilogue& epilogue,
                              Outcome* outcome = nullptr);

}  // namespace qmatmul::test
