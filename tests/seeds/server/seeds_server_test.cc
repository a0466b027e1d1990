#include <gtest/gtest.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <chrono>
#include <regex>
#include <set>

#include "server/metrics_page.h"
#include "tests/server/test_server.h"

namespace qmatmul {
namespace {

// I3: a kernel's name always holds everything that makes it differ; it is shown in the list, in the
// reply and as a metric's label.
TEST(I3, KernelNamesAreCompleteUniqueAndShown) {
  TestServer server;
  grpc::ClientContext context;
  v1::ListKernelsResponse kernels;
  ASSERT_TRUE(server.info->ListKernels(&context, {}, &kernels).ok());
  ASSERT_GT(kernels.kernels_size(), 1);
  const std::regex complete(
      R"([a-z]+\.[a-z0-9_]+\.[suf][0-9]+s[0-9]+[sf]32\.[0-9]+x[0-9]+x[0-9]+)");
  std::set<std::string> names;
  for (const v1::Kernel& kernel : kernels.kernels()) {
    EXPECT_TRUE(std::regex_match(kernel.name(), complete)) << kernel.name();
    EXPECT_TRUE(names.insert(kernel.name()).second) << kernel.name() << " twice";
    EXPECT_TRUE(kernel.supported() || !kernel.reason().empty()) << kernel.name();
  }
  ASSERT_TRUE(server.Register(Int8Message("w", 32, 32), PatternBytes(1024, 1)).ok());
  v1::MatMulResponse reply;
  ASSERT_TRUE(server.MatMul(Int8Request("w", 4, 32, PatternBytes(128, 2)), &reply).ok());
  const std::string& used = reply.outputs(0).execution().kernel();
  EXPECT_TRUE(names.contains(used)) << used;
  const std::string page =
      prometheus::TextSerializer().Serialize(MetricsPage(server.server->engine()).Collect());
  EXPECT_NE(page.find("qmatmul_ops_total{device=\"cpu\",kernel=\"" + used + "\"} " +
                      std::to_string(2 * 4 * 32 * 32)),
            std::string::npos)
      << page;
}

// I6: no default type or shape; what is missing or does not agree is refused, naming the field
// once.
TEST(I6, TypesAndShapesAreNeverGuessed) {
  TestServer server;
  ASSERT_TRUE(server.Register(Int8Message("w", 8, 4), PatternBytes(32, 1)).ok());
  struct Row {
    std::function<void(v1::MatMulRequest*)> spoil;
    const char* field;
  };
  const Row rows[] = {
      {[](v1::MatMulRequest* r) { r->mutable_activations()->clear_dtype(); }, "activations.dtype"},
      {[](v1::MatMulRequest* r) { r->mutable_activations()->clear_shape(); }, "activations.shape"},
      {[](v1::MatMulRequest* r) { r->mutable_outputs(0)->clear_dtype(); }, "outputs[0].dtype"},
      {[](v1::MatMulRequest* r) { r->mutable_activations()->mutable_data()->resize(15); },
       "activations.data"},
      {[](v1::MatMulRequest* r) { r->mutable_activations()->mutable_data()->resize(17); },
       "activations.data"},
      {[](v1::MatMulRequest* r) {
         r->mutable_activations()->set_dtype(v1::DATA_TYPE_BF16);
         r->mutable_activations()->mutable_dynamic();
         r->mutable_options()->set_arithmetic(v1::ARITHMETIC_W8A8);
       },
       "activations.data"},
  };
  for (const Row& row : rows) {
    v1::MatMulRequest request = Int8Request("w", 2, 8, PatternBytes(16, 2));
    row.spoil(&request);
    v1::MatMulResponse reply;
    const grpc::Status status = server.MatMul(request, &reply);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(ErrorDetails(status).fields, std::vector<std::string>{row.field})
        << status.error_message();
  }
  v1::WeightSpec spec = Int8Message("v", 8, 4);
  spec.clear_dtype();
  EXPECT_EQ(ErrorDetails(server.Register(spec, PatternBytes(32, 1))).fields,
            std::vector<std::string>{"spec.dtype"});
}

// F4: packing belongs to registration. Elsewhere a copy of 3 to 11 ms a call dominated every token.
TEST(F4, MatMulNeverPacksAWeight) {
  constexpr int64_t kSide = 1024;
  constexpr int kCalls = 100;
  TestServer server;
  ASSERT_TRUE(server.Register(Int8Message("w", kSide, kSide), PatternBytes(kSide * kSide, 1)).ok());
  const int64_t packs = server.Metrics().at(Histogram::kPackNs).count();
  EXPECT_EQ(packs, 1);
  const v1::MatMulRequest request = Int8Request("w", 1, kSide, PatternBytes(kSide, 2));
  std::vector<double> call_us;
  for (int i = 0; i <= kCalls; ++i) {
    v1::MatMulResponse reply;
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_TRUE(server.MatMul(request, &reply).ok());
    call_us.push_back(
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin)
            .count());
  }
  EXPECT_EQ(server.Metrics().at(Histogram::kPackNs).count(), packs);
  EXPECT_EQ(server.Metrics().at(Counter::kRequestsOk), kCalls + 1);
  std::nth_element(call_us.begin() + 1, call_us.begin() + 1 + kCalls / 2, call_us.end());
  std::printf(
      "F4: first call after register %.0f us, median of the next %d %.0f us (M = 1, K = N = %ld)\n",
      call_us[0], kCalls, call_us[1 + kCalls / 2], kSide);
}

}  // namespace
}  // namespace qmatmul
