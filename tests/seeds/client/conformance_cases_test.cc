// E6 (ExecuTorch: one custom-op test and a benchmark framework over f32/f16): one list of cases,
// tests/cases/conformance.json, drives the kernels here, a server through the SDK, the load tester,
// and, in tests/e2e, ghz.
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "client/cli/failure.h"
#include "client/cli/load_cases.h"
#include "kernels/devices.h"
#include "tests/client/program.h"
#include "tests/support/product_case.h"

namespace qmatmul {
namespace {

using nlohmann::json;

const cli::LoadCases& Cases() {
  static const cli::LoadCases cases = cli::ReadCases(QMATMUL_CASES);
  return cases;
}

// The SDK's words for types have the kernels' numbers.
DataType TypeOf(client::DataType dtype) { return static_cast<DataType>(dtype); }

test::TestWeight WeightOf(const cli::LoadWeight& weight) {
  test::TestWeight result;
  result.spec = test::MakeSpec(TypeOf(weight.dtype), static_cast<Layout>(weight.layout), weight.k,
                               weight.n, weight.group_size);
  result.data = weight.data;
  if (!weight.scales.empty()) {
    result.spec =
        test::WithScales(result.spec, DataType::kF32, static_cast<int64_t>(weight.scales.size()));
    const auto bytes = std::as_bytes(std::span(weight.scales));
    result.scales.assign(bytes.begin(), bytes.end());
  }
  if (!weight.bias.empty()) result.spec = test::WithBias(result.spec);
  result.bias = weight.bias;
  return result;
}

test::ProductCase ProductOf(const cli::LoadCase& one) {
  test::ProductRequest request;
  request.activations.dtype = TypeOf(one.activations);
  request.activations.rows = one.rows;
  request.activations.k = Cases().weights[one.weight].k;
  request.activations.quantization = one.dynamic          ? Quantization::kDynamic
                                     : one.scales.empty() ? Quantization::kNone
                                                          : Quantization::kStatic;
  request.activations.scales = one.scales;
  request.activations.zero_points = one.zero_points;
  request.activations.SetBytes(one.data);
  Epilogue epilogue{.dtype = TypeOf(one.output.dtype)};
  if (one.output.overflow == client::Overflow::kWrap) epilogue.overflow = Overflow::kWrap;
  epilogue.scaled = one.output.scale.has_value();
  epilogue.scale = one.output.scale.value_or(1);
  epilogue.zero_point = one.output.zero_point.value_or(0);
  if (one.output.activation == client::Activation::kRelu) epilogue.activation = Activation::kRelu;
  epilogue.skip_bias = one.output.skip_bias;
  request.epilogues = {epilogue};
  test::ProductCase product{
      .name = one.name, .weights = {WeightOf(Cases().weights[one.weight])}, .requests = {request}};
  if (one.options.arithmetic == client::Arithmetic::kW8A32) product.arithmetic = Arithmetic::kW8A32;
  return product;
}

TEST(E6, TheListHasEveryType) {
  std::set<client::DataType> weights, activations, outputs;
  for (const cli::LoadWeight& weight : Cases().weights) weights.insert(weight.dtype);
  for (const cli::LoadCase& one : Cases().cases) {
    activations.insert(one.activations);
    outputs.insert(one.output.dtype);
  }
  EXPECT_EQ(weights.size(), 3u);
  EXPECT_EQ(activations.size(), 5u);
  EXPECT_EQ(outputs.size(), 6u);
}

TEST(E6, LocalKernels) {
  const auto devices = OpenDevices({.threads = 2, .team_spin_us_max = 0, .disabled_kernels = ""});
  int checked = 0;
  for (const cli::LoadCase& one : Cases().cases) {
    const test::ProductCase product = ProductOf(one);
    for (const KernelInfo& kernel : devices[0]->Kernels()) {
      if (!kernel.supported || kernel.weight != product.weights[0].spec.dtype ||
          kernel.arithmetic != product.arithmetic)
        continue;
      SCOPED_TRACE(kernel.name + ", " + one.name);
      test::CheckProduct(devices[0].get(), kernel.name, product);
      ++checked;
    }
  }
  EXPECT_GE(checked, static_cast<int>(Cases().cases.size())) << "scalar at least takes each";
}

class E6Server : public ::testing::Test {
 protected:
  E6Server() : server_(QMATMUL_SERVER_PROGRAM) {}
  void SetUp() override { ASSERT_FALSE(server_.address().empty()) << "the server did not start"; }
  testing::ServerProcess server_;
};

TEST_F(E6Server, AnswersEachCaseWithTheReferencesBytes) {
  client::Client client({.server = server_.address()});
  for (const cli::LoadWeight& weight : Cases().weights) {
    const auto registered = client.RegisterWeight(weight.Upload());
    ASSERT_TRUE(registered.ok()) << registered.status().ToString();
  }
  const auto expected = cli::ReferenceBytes(Cases());
  for (size_t i = 0; i < expected.size(); ++i) {
    const cli::LoadCase& one = Cases().cases[i];
    client::Activations activations = {.dtype = one.activations,
                                       .rows = one.rows,
                                       .k = Cases().weights[one.weight].k,
                                       .data = one.data,
                                       .dynamic = one.dynamic};
    if (!one.scales.empty()) activations.scales = client::Scales(one.scales);
    activations.zero_points = one.zero_points;
    const auto got =
        client.MatMul(Cases().weights[one.weight].id, activations, one.output, one.options);
    ASSERT_TRUE(got.ok()) << one.name << ": " << got.status().ToString();
    ASSERT_EQ(got->bytes.size(), expected[i].size()) << one.name;
    EXPECT_TRUE(expected[i].empty() ||
                std::memcmp(got->bytes.data(), expected[i].data(), expected[i].size()) == 0)
        << one.name;
  }
}

TEST_F(E6Server, AnswersThemUnderLoadToo) {
  const auto r = testing::RunProgram(
      {QMATMUL_PROGRAM, "bench", "--server", server_.address(), "--cases", QMATMUL_CASES,
       "--concurrency", "8", "--connections", "2", "--requests", "500", "--verify", "1", "--json"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const json line = json::parse(r.out);
  EXPECT_EQ(line.at("verified"), 500);
  EXPECT_EQ(line.at("wrong"), 0);
  EXPECT_EQ(line.at("errors").size(), 0u) << line;
}

TEST(E6, AFileThatSaysSomethingElseIsRefusedByName) {
  const struct {
    const char* text;
    const char* told;
  } rows[] = {
      {"{", "is not JSON"},
      {R"({"weights": []})", "no list of weights"},
      {R"({"weights": [{"id": "w", "dtype": "INT9"}], "cases": [{}]})", "'INT9' as dtype"},
      {R"({"weights": [{"id": "w", "dtype": "INT8", "layout": "KN", "k": 4, "n": 0}], "cases": [{}]})",
       "0 as n"},
      {R"({"weights": [{"id": "w", "colour": 1}], "cases": [{}]})", "'colour'"},
      {R"({"weights": [{"id": "w", "dtype": "INT8", "layout": "KN", "k": 4, "n": 4}],
           "cases": [{"name": "c", "weight": "v"}]})",
       "'v', which is not there"},
      {R"({"weights": [{"id": "w", "dtype": "INT8", "layout": "KN", "k": 4, "n": 4}],
           "cases": [{"name": "c", "weight": "w", "rows": 1, "activations": "INT8"}]})",
       "has no output"},
  };
  const std::string path = ::testing::TempDir() + "/qmatmul-cases.json";
  for (const auto& row : rows) {
    FILE* file = std::fopen(path.c_str(), "w");
    ASSERT_NE(file, nullptr);
    std::fputs(row.text, file);
    std::fclose(file);
    try {
      cli::ReadCases(path);
      ADD_FAILURE() << row.text << " was read";
    } catch (const cli::Failure& failure) {
      EXPECT_EQ(failure.exit_code(), cli::kExitFile);
      EXPECT_NE(std::string(failure.what()).find(row.told), std::string::npos) << failure.what();
    }
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace qmatmul
