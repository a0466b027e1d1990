// F6, F7 and E4 through a whole server: what operators and clients see of kernels that are put aside,
// forced, disabled or passed over.
#include <gtest/gtest.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <string>
#include <vector>

#include "server/metrics_page.h"
#include "tests/server/test_server.h"

namespace qmatmul {
namespace {

constexpr int64_t kK = 96, kN = 80, kRows = 8;

std::vector<std::unique_ptr<Device>> OneThread(const std::string& disabled_kernels = {}) {
  return OpenDevices({.threads = 1, .disabled_kernels = disabled_kernels});
}

std::vector<v1::Kernel> List(const TestServer& server) {
  grpc::ClientContext context;
  v1::ListKernelsResponse kernels;
  EXPECT_TRUE(server.info->ListKernels(&context, {}, &kernels).ok());
  return {kernels.kernels().begin(), kernels.kernels().end()};
}

v1::Kernel Find(const TestServer& server, const std::string& name) {
  for (const v1::Kernel& kernel : List(server))
    if (kernel.name() == name) return kernel;
  ADD_FAILURE() << name << " is not listed";
  return {};
}

// The kernels that may compute INT8 weights by INT8 activations.
std::vector<std::string> Int8Kernels(const TestServer& server) {
  std::vector<std::string> names;
  for (const v1::Kernel& kernel : List(server))
    if (kernel.supported() && !kernel.disabled() && kernel.weight() == v1::DATA_TYPE_INT8 &&
        kernel.arithmetic() == v1::ARITHMETIC_W8A8)
      names.push_back(kernel.name());
  return names;
}

std::string Page(const TestServer& server) {
  return prometheus::TextSerializer().Serialize(MetricsPage(server.server->engine()).Collect());
}

struct Answer {
  grpc::Status status;
  std::string kernel;
  std::string data;
};
Answer Ask(TestServer* server, int64_t rows, const std::string& forced = {}) {
  v1::MatMulRequest request = Int8Request("w", rows, kK, PatternBytes(size_t(rows * kK), 2));
  request.mutable_options()->set_kernel(forced);
  v1::MatMulResponse reply;
  Answer answer{server->MatMul(request, &reply), {}, {}};
  if (!answer.status.ok()) return answer;
  answer.kernel = reply.outputs(0).execution().kernel();
  answer.data = reply.outputs(0).data();
  return answer;
}

grpc::Status Rearm(TestServer* server, const std::string& key) {
  grpc::ClientContext context;
  v1::RearmKernelRequest request;
  v1::RearmKernelResponse reply;
  request.set_key(key);
  return server->admin->RearmKernel(&context, request, &reply);
}

// Elsewhere one exception turned the fast kernel off for the whole process, for good, silently.
TEST(F6, QuarantineIsShownCountedAndRearmed) {
  std::vector<std::unique_ptr<Device>> devices = OneThread();
  Device* device = devices[0].get();
  TestServer server(TestOptions(), std::move(devices));
  if (Int8Kernels(server).size() < 2)
    GTEST_SKIP() << "this processor has one kernel of this kind alone: nothing to fall back to";
  ASSERT_TRUE(server.Register(Int8Message("w", kK, kN), PatternBytes(kK * kN, 1)).ok());
  const Answer before = Ask(&server, kRows), many = Ask(&server, 40);
  ASSERT_TRUE(before.status.ok()) << before.status.error_message();
  EXPECT_NE(Page(server).find("qmatmul_quarantined{device=\"cpu\"} 0\n"), std::string::npos);
  EXPECT_FALSE(Find(server, before.kernel).quarantined());

  device->Quarantine(before.kernel, kRows, "injected by a test");
  const std::string key = before.kernel + "/m2-16";
  const Answer during = Ask(&server, kRows);
  ASSERT_TRUE(during.status.ok()) << during.status.error_message();
  EXPECT_NE(during.kernel, before.kernel);
  EXPECT_EQ(during.data, before.data);
  EXPECT_EQ(Ask(&server, 40).kernel, many.kernel) << "other rows keep the fast kernel";
  const v1::Kernel shown = Find(server, before.kernel);
  EXPECT_TRUE(shown.quarantined());
  EXPECT_EQ(shown.reason(), key + ": injected by a test");
  EXPECT_GT(shown.quarantine_time_ns(), 0);
  EXPECT_EQ(server.Metrics().fallbacks.at("quarantine"), 1) << "one call, not the other";
  EXPECT_NE(Page(server).find("qmatmul_quarantined{device=\"cpu\"} 1\n"), std::string::npos);
  EXPECT_NE(Page(server).find("qmatmul_fallback_total{reason=\"quarantine\"} 1\n"),
            std::string::npos)
      << Page(server);
  const Answer forced = Ask(&server, kRows, before.kernel);
  EXPECT_EQ(forced.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ErrorDetails(forced.status).reason, "KERNEL_UNSUPPORTED");

  EXPECT_EQ(Rearm(&server, before.kernel).error_code(), grpc::StatusCode::NOT_FOUND)
      << "the key says which rows";
  EXPECT_TRUE(Rearm(&server, key).ok());
  EXPECT_EQ(Ask(&server, kRows).kernel, before.kernel);
  EXPECT_EQ(server.Metrics().fallbacks.at("quarantine"), 1) << "it has stopped growing";
  EXPECT_FALSE(Find(server, before.kernel).quarantined());
  EXPECT_NE(Page(server).find("qmatmul_quarantined{device=\"cpu\"} 0\n"), std::string::npos);
}

TEST(F7, EveryKernelCanBeForcedAndAnswersAlike) {
  TestServer server(TestOptions(), OneThread());
  ASSERT_TRUE(server.Register(Int8Message("w", kK, kN), PatternBytes(kK * kN, 1)).ok());
  const std::string exact =
      Int32Product(PatternBytes(kRows * kK, 2), PatternBytes(kK * kN, 1), kRows, kK, kN);
  const std::vector<std::string> kernels = Int8Kernels(server);
  ASSERT_FALSE(kernels.empty());
  for (const std::string& kernel : kernels) {
    const Answer answer = Ask(&server, kRows, kernel);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.kernel, kernel);
    EXPECT_EQ(answer.data, exact) << kernel;
  }
}

// The variable as a server reads it.
TEST(F7, DisabledByTheEnvironment) {
  TestServer all(TestOptions(), OneThread());
  ASSERT_TRUE(all.Register(Int8Message("w", kK, kN), PatternBytes(kK * kN, 1)).ok());
  const Answer before = Ask(&all, kRows);
  if (Int8Kernels(all).size() < 2)
    GTEST_SKIP() << "this processor has one kernel of this kind alone, and that one always stays";
  const std::string variable = "QMATMUL_DISABLE_KERNELS=" + before.kernel;
  const char* const environment[] = {variable.c_str()};
  LoadedOptions loaded;
  std::string error;
  ASSERT_TRUE(LoadOptions({}, environment, &loaded, &error)) << error;
  TestServer server(TestOptions(), OneThread(loaded.options.disable_kernels));
  ASSERT_TRUE(server.Register(Int8Message("w", kK, kN), PatternBytes(kK * kN, 1)).ok());
  const Answer without = Ask(&server, kRows);
  EXPECT_NE(without.kernel, before.kernel);
  EXPECT_EQ(without.data, before.data);
  const v1::Kernel shown = Find(server, before.kernel);
  EXPECT_TRUE(shown.supported() && shown.disabled());
  EXPECT_NE(shown.reason().find("QMATMUL_DISABLE_KERNELS"), std::string::npos) << shown.reason();
  const Answer forced = Ask(&server, kRows, before.kernel);
  EXPECT_EQ(forced.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ErrorDetails(forced.status).reason, "KERNEL_UNSUPPORTED");
  EXPECT_TRUE(server.Metrics().fallbacks.empty() ||
              server.Metrics().fallbacks.at("quarantine") == 0);
}

// Explain says what a call will do, and shows the measured alternatives.
TEST(E4, ExplainShowsCandidatesTimesAndReasons) {
  TestServer server(TestOptions(), OneThread());
  ASSERT_TRUE(server.Register(Int8Message("w", kK, kN), PatternBytes(kK * kN, 1)).ok());
  for (const int64_t rows : {1, 8, 40}) {
    grpc::ClientContext context;
    v1::ExplainRequest request;
    v1::ExplainResponse plan;
    request.add_weights("weights/w");
    request.set_rows(rows);
    request.set_activations(v1::DATA_TYPE_INT8);
    const grpc::Status status = server.matmul->Explain(&context, request, &plan);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(plan.kernel(), Ask(&server, rows).kernel);
    EXPECT_FALSE(plan.rule().empty());
    ASSERT_GT(plan.candidates_size(), 0);
    EXPECT_EQ(plan.candidates(0).kernel(), plan.kernel());
    EXPECT_TRUE(plan.candidates(0).chosen());
    size_t eligible = 0;
    for (const v1::Candidate& candidate : plan.candidates()) {
      EXPECT_FALSE(candidate.reason().empty()) << candidate.kernel();
      EXPECT_EQ(candidate.has_predicted_ns(), candidate.eligible()) << candidate.kernel();
      eligible += candidate.eligible();
    }
    EXPECT_EQ(eligible, Int8Kernels(server).size());
  }
}

}  // namespace
}  // namespace qmatmul
