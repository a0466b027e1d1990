// What the services answer when nothing is wrong.
#include <gtest/gtest.h>

#include <regex>

#include "tests/server/test_server.h"

namespace qmatmul {
namespace {

std::string Id(int i) { return std::string("w").append(std::to_string(i)); }

TEST(Service, MatMulIsExactAndSaysWhatWasDone) {
  TestServer server;
  const std::string w = PatternBytes(96 * 40, 1);
  v1::RegisterWeightResponse registered;
  ASSERT_TRUE(server.Register(Int8Message("w", 96, 40), w, &registered).ok());
  EXPECT_EQ(registered.weight().name(), "weights/w");
  EXPECT_EQ(registered.weight().digest().size(), 64u);
  EXPECT_FALSE(registered.already_registered());
  ASSERT_EQ(registered.weight().copies_size(), 1);
  EXPECT_EQ(registered.weight().copies(0).device(), "cpu");
  EXPECT_EQ(registered.weight().copies(0).bytes(), server.server->engine().weights().bytes(0));

  const std::string a = PatternBytes(7 * 96, 2);
  v1::MatMulResponse reply;
  const grpc::Status status = server.MatMul(Int8Request("w", 7, 96, a), &reply);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(reply.outputs_size(), 1);
  const v1::OutputTensor& output = reply.outputs(0);
  EXPECT_EQ(output.data(), Int32Product(a, w, 7, 96, 40));
  EXPECT_EQ(output.dtype(), v1::DATA_TYPE_INT32);
  ASSERT_EQ(output.shape_size(), 2);
  EXPECT_EQ(output.shape(0), 7);
  EXPECT_EQ(output.shape(1), 40);
  EXPECT_FALSE(output.has_activation_scales());
  const v1::Execution& done = output.execution();
  EXPECT_EQ(done.weight(), "weights/w");
  EXPECT_EQ(done.digest(), registered.weight().digest());
  EXPECT_EQ(done.generation(), registered.weight().generation());
  EXPECT_EQ(done.device(), "cpu");
  EXPECT_TRUE(done.kernel().starts_with("cpu.")) << done.kernel();
  EXPECT_EQ(done.overflow(), v1::OVERFLOW_SATURATE) << "the rule that was used, named";
  EXPECT_EQ(done.batch_rows(), 7);
  EXPECT_GT(done.compute_ns(), 0);
  EXPECT_GE(done.queue_ns(), 0);
  EXPECT_FALSE(done.verified());
}

TEST(Service, RowsOfZeroGiveAnEmptyOutput) {
  TestServer server;
  ASSERT_TRUE(server.Register(Int8Message("w", 5, 3), PatternBytes(15, 1)).ok());
  v1::MatMulResponse reply;
  ASSERT_TRUE(server.MatMul(Int8Request("w", 0, 5, ""), &reply).ok());
  EXPECT_EQ(reply.outputs(0).shape(0), 0);
  EXPECT_EQ(reply.outputs(0).shape(1), 3);
  EXPECT_TRUE(reply.outputs(0).data().empty());
}

TEST(Service, ManyWeightsShareOneActivation) {
  TestServer server;
  const std::string a = PatternBytes(3 * 64, 9);
  v1::MatMulRequest request = Int8Request("w0", 3, 64, a);
  std::vector<std::string> weights;
  for (int i = 0; i < 16; ++i) {
    const int64_t n = 8 + i;
    weights.push_back(PatternBytes(static_cast<size_t>(64 * n), static_cast<uint32_t>(i)));
    ASSERT_TRUE(server.Register(Int8Message(Id(i), 64, n), weights.back()).ok());
    if (i == 0) continue;
    request.add_weights(std::string("weights/").append(Id(i)));
    request.add_outputs()->set_dtype(v1::DATA_TYPE_INT32);
  }
  v1::MatMulResponse reply;
  ASSERT_TRUE(server.MatMul(request, &reply).ok());
  ASSERT_EQ(reply.outputs_size(), 16);
  for (int i = 0; i < 16; ++i) {
    const auto at = static_cast<size_t>(i);
    EXPECT_EQ(reply.outputs(i).data(), Int32Product(a, weights[at], 3, 64, 8 + i)) << i;
    EXPECT_EQ(reply.outputs(i).execution().weight(), std::string("weights/").append(Id(i)));
  }
}

TEST(Service, OneWeightMayBeAskedForTwiceInTwoTypes) {
  TestServer server;
  const std::string w = PatternBytes(16 * 4, 3);
  const std::string a = PatternBytes(2 * 16, 4);
  ASSERT_TRUE(server.Register(Int8Message("w", 16, 4), w).ok());
  v1::MatMulRequest request = Int8Request("w", 2, 16, a);
  request.add_weights("weights/w");
  request.add_outputs()->set_dtype(v1::DATA_TYPE_F32);
  v1::MatMulResponse reply;
  ASSERT_TRUE(server.MatMul(request, &reply).ok());
  std::vector<int32_t> sums(8);
  std::vector<float> floats(8);
  std::memcpy(sums.data(), reply.outputs(0).data().data(), 32);
  std::memcpy(floats.data(), reply.outputs(1).data().data(), 32);
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(static_cast<float>(sums[i]), floats[i]);
  EXPECT_EQ(reply.outputs(1).execution().overflow(), v1::OVERFLOW_UNSPECIFIED)
      << "floats have no rule";
}

TEST(Service, RawSumsOfFloatsCarryTheirScales) {
  TestServer server;
  ASSERT_TRUE(server.Register(Int8Message("w", 4, 2), PatternBytes(8, 3)).ok());
  const float values[] = {1, -2, 0.5, 127, 0, 0, 0, 0};
  v1::MatMulRequest request =
      Int8Request("w", 2, 4, std::string(reinterpret_cast<const char*>(values), sizeof values));
  request.mutable_activations()->set_dtype(v1::DATA_TYPE_F32);
  request.mutable_activations()->mutable_dynamic();
  request.mutable_options()->set_arithmetic(v1::ARITHMETIC_W8A8);
  v1::MatMulResponse reply;
  grpc::Status status = server.MatMul(request, &reply);
  ASSERT_TRUE(status.ok()) << status.error_message();
  float scales[2];
  ASSERT_EQ(reply.outputs(0).activation_scales().data().size(), sizeof scales);
  std::memcpy(scales, reply.outputs(0).activation_scales().data().data(), sizeof scales);
  EXPECT_EQ(scales[0], 1.0f);  // 127 / 127
  EXPECT_EQ(scales[1], 0.0f);  // a row of zeros

  // Static: one scale for the tensor comes back as one a row.
  v1::Scales* fixed = request.mutable_activations()->mutable_static_scales()->mutable_scales();
  const float half = 0.5f;
  fixed->set_dtype(v1::DATA_TYPE_F32);
  fixed->set_data(std::string(reinterpret_cast<const char*>(&half), sizeof half));
  status = server.MatMul(request, &reply);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(reply.outputs(0).activation_scales().data().size(), sizeof scales);
  std::memcpy(scales, reply.outputs(0).activation_scales().data().data(), sizeof scales);
  EXPECT_EQ(scales[0], half);
  EXPECT_EQ(scales[1], half);
}

TEST(Service, RegisteringAgainUploadsNothing) {
  TestServer server;
  const std::string w = PatternBytes(1000 * 300, 1);
  v1::RegisterWeightResponse first, again;
  v1::WeightSpec spec = Int8Message("w", 1000, 300);
  ASSERT_TRUE(server.Register(spec, w, &first).ok());
  spec.set_weight_id("alias");
  spec.set_expected_digest(first.weight().digest());
  ASSERT_TRUE(server.Register(spec, "", &again).ok());
  EXPECT_TRUE(again.already_registered());
  EXPECT_EQ(again.weight().generation(), first.weight().generation());
  EXPECT_EQ(server.Metrics().at(Histogram::kPackNs).count(), 1);
  int64_t freed = -1;
  ASSERT_TRUE(server.Delete("weights/w", &freed).ok());
  EXPECT_EQ(freed, 0);
  ASSERT_TRUE(server.Delete("weights/alias", &freed).ok());
  EXPECT_EQ(freed, first.weight().copies(0).bytes());
  EXPECT_EQ(server.server->engine().weights().bytes(0), 0);
}

TEST(Service, ListsInPages) {
  TestServer server;
  for (const char* id : {"b", "d", "a", "c"})
    ASSERT_TRUE(
        server.Register(Int8Message(id, 2, 2), PatternBytes(4, static_cast<uint32_t>(id[0]))).ok());
  std::vector<std::string> names;
  v1::ListWeightsRequest request;
  request.set_page_size(3);
  do {
    grpc::ClientContext context;
    v1::ListWeightsResponse page;
    ASSERT_TRUE(server.weights->ListWeights(&context, request, &page).ok());
    EXPECT_LE(page.weights_size(), 3);
    for (const v1::Weight& weight : page.weights()) names.push_back(weight.name());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(names, (std::vector<std::string>{"weights/a", "weights/b", "weights/c", "weights/d"}));
}

TEST(Service, ExplainAgreesWithWhatRuns) {
  TestServer server;
  ASSERT_TRUE(server.Register(Int8Message("w", 512, 512), PatternBytes(512 * 512, 1)).ok());
  for (const int64_t rows : {1, 2, 8, 64}) {
    grpc::ClientContext context;
    v1::ExplainRequest question;
    v1::ExplainResponse plan;
    question.add_weights("weights/w");
    question.set_rows(rows);
    question.set_activations(v1::DATA_TYPE_INT8);
    ASSERT_TRUE(server.matmul->Explain(&context, question, &plan).ok());
    v1::MatMulResponse reply;
    ASSERT_TRUE(
        server
            .MatMul(Int8Request("w", rows, 512, PatternBytes(static_cast<size_t>(rows * 512), 7)),
                    &reply)
            .ok());
    EXPECT_EQ(plan.kernel(), reply.outputs(0).execution().kernel()) << rows;
    ASSERT_GT(plan.candidates_size(), 0);
    EXPECT_TRUE(plan.candidates(0).chosen());
    EXPECT_FALSE(plan.rule().empty());
  }
}

TEST(Service, ForcedKernelsGiveTheSameBytes) {
  TestServer server;
  const std::string w = PatternBytes(130 * 70, 1);
  ASSERT_TRUE(server.Register(Int8Message("w", 130, 70), w).ok());
  const std::string a = PatternBytes(5 * 130, 2);
  const std::string expected = Int32Product(a, w, 5, 130, 70);
  int forced = 0;
  for (const KernelInfo& kernel : server.server->engine().devices()[0]->Kernels()) {
    v1::MatMulRequest request = Int8Request("w", 5, 130, a);
    request.mutable_options()->set_kernel(kernel.name);
    v1::MatMulResponse reply;
    const grpc::Status status = server.MatMul(request, &reply);
    const bool fits = kernel.weight == DataType::kInt8 && kernel.arithmetic == Arithmetic::kW8A8;
    if (!kernel.supported || !fits) {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << kernel.name;
      continue;
    }
    ++forced;
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(reply.outputs(0).execution().kernel(), kernel.name);
    EXPECT_EQ(reply.outputs(0).data(), expected) << kernel.name;
  }
  EXPECT_GT(forced, 0);
}

TEST(Service, InfoIsAboutWhatRan) {
  TestServer server;
  ASSERT_TRUE(server.Register(Int8Message("w", 64, 64), PatternBytes(64 * 64, 1)).ok());
  v1::MatMulResponse reply;
  ASSERT_TRUE(server.MatMul(Int8Request("w", 2, 64, PatternBytes(128, 2)), &reply).ok());
  const std::string kernel = reply.outputs(0).execution().kernel();

  grpc::ClientContext devices_context, kernels_context, statistics_context;
  v1::ListDevicesResponse devices;
  ASSERT_TRUE(server.info->ListDevices(&devices_context, {}, &devices).ok());
  ASSERT_GE(devices.devices_size(), 1);
  EXPECT_EQ(devices.devices(0).id(), "cpu");
  EXPECT_EQ(devices.devices(0).state(), "ready");
  EXPECT_EQ(devices.devices(0).memory_used_bytes(), server.server->engine().weights().bytes(0));

  v1::ListKernelsResponse kernels;
  ASSERT_TRUE(server.info->ListKernels(&kernels_context, {}, &kernels).ok());
  for (const v1::Kernel& k : kernels.kernels())
    EXPECT_EQ(k.has_measured_gops(), k.name() == kernel) << k.name();

  v1::Statistics statistics;
  ASSERT_TRUE(server.info->GetStatistics(&statistics_context, {}, &statistics).ok());
  EXPECT_EQ(statistics.requests(), 1);
  EXPECT_EQ(statistics.errors(), 0);
  EXPECT_EQ(statistics.rows(), 2);
  EXPECT_EQ(statistics.ops(), 2 * 2 * 64 * 64);
  EXPECT_EQ(statistics.weights(), 1);
  EXPECT_EQ(statistics.packs(), 1);
  ASSERT_EQ(statistics.kernels_size(), 1);
  EXPECT_EQ(statistics.kernels(0).kernel(), kernel);
  EXPECT_FALSE(statistics.version().empty());
}

TEST(Service, NothingStaysInFlight) {
  TestServer server;
  ASSERT_TRUE(server.Register(Int8Message("w", 64, 64), PatternBytes(64 * 64, 1)).ok());
  for (int i = 0; i < 20; ++i) {
    v1::MatMulResponse reply;
    ASSERT_TRUE(server.MatMul(Int8Request("w", 2, 64, PatternBytes(128, 2)), &reply).ok());
  }
  ASSERT_TRUE(server.server->Shutdown());
  EXPECT_EQ(server.server->engine().requests_in_flight(), 0);
  EXPECT_EQ(server.server->engine().bytes_in_flight(), 0);
}

}  // namespace
}  // namespace qmatmul
