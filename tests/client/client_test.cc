// The SDK against a server whose answers are written here: what it sends, what it makes of replies
// and errors, and that no call goes without a deadline.
#include "client/client.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>
#include <thread>

#include "tests/client/fake_server.h"

namespace qmatmul::client {
namespace {

using ::qmatmul::testing::ErrorOf;
using ::qmatmul::testing::FakeServer;
using ::qmatmul::testing::RecordedUpload;

const std::vector<int8_t> kData = {1, -2, 3, -4, 5, -6};
const std::vector<float> kScales = {0.5f, 0.25f};
const std::vector<float> kBias = {1.0f, -1.0f};

WeightUpload SmallWeight() {
  return {.id = "w",
          .dtype = DataType::kInt8,
          .layout = Layout::kKN,
          .k = 3,
          .n = 2,
          .data = std::as_bytes(std::span(kData)),
          .scales = Scales(kScales),
          .bias = kBias};
}

Activations TwoRows() {
  return {.dtype = DataType::kInt8, .rows = 2, .k = 3, .data = std::as_bytes(std::span(kData))};
}

template <class T>
std::string StringOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// Digests by Python's hashlib over the identity line and the bytes, as docs/numerics.md §1 says.
TEST(Digest, IsTheIdentityOfTheContract) {
  EXPECT_EQ(DigestOf(SmallWeight()),
            "3c7867c205d84786e66a758ffa501a38d7be06fb2c10a838ecf0d2d13400fa4e");
  WeightUpload bare = {.dtype = DataType::kInt8,
                       .layout = Layout::kNK,
                       .k = 2,
                       .n = 3,
                       .data = std::as_bytes(std::span(kData))};
  EXPECT_EQ(DigestOf(bare), "20a8b06eb522c303ffc4100d5cef23e980d6f5f7778dcec03d92a6e06702d9ee");
  bare.id = "another";
  bare.replace = true;
  EXPECT_EQ(DigestOf(bare), "20a8b06eb522c303ffc4100d5cef23e980d6f5f7778dcec03d92a6e06702d9ee")
      << "the name is no part of the identity";
}

TEST(Register, AKnownWeightUploadsNothing) {
  FakeServer server;
  server.on_upload = [](const RecordedUpload& upload, v1::RegisterWeightResponse* response) {
    response->set_already_registered(true);
    response->mutable_weight()->set_name("weights/" + upload.spec.weight_id());
    return grpc::Status::OK;
  };
  Client client({.server = server.address()});
  bool progressed = false;
  const auto r = client.RegisterWeight(SmallWeight(), [&](int64_t, int64_t) { progressed = true; });
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  EXPECT_TRUE(r->already_registered);
  EXPECT_EQ(r->uploaded_bytes, 0);
  EXPECT_EQ(r->weight.id, "w");
  EXPECT_FALSE(progressed);
  ASSERT_EQ(server.uploads().size(), 1u);
  EXPECT_EQ(server.uploads()[0].chunks, 0u);
}

TEST(Register, AnUnknownOneIsSentInTheIdentitysOrder) {
  FakeServer server;
  Client client({.server = server.address()});
  WeightUpload weight = SmallWeight();
  weight.replace_digest = std::string(64, 'a');
  const auto r = client.RegisterWeight(weight);
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  EXPECT_FALSE(r->already_registered);
  EXPECT_EQ(r->uploaded_bytes, 6 + 8 + 8);
  ASSERT_EQ(server.uploads().size(), 2u) << "asked first, then sent";
  const RecordedUpload upload = server.uploads()[1];
  EXPECT_EQ(upload.content, StringOf(kData) + StringOf(kScales) + StringOf(kBias));
  EXPECT_EQ(upload.spec.expected_digest(), DigestOf(weight));
  EXPECT_EQ(upload.spec.weight_id(), "w");
  EXPECT_EQ(upload.spec.dtype(), v1::DATA_TYPE_INT8);
  EXPECT_EQ(upload.spec.layout(), v1::LAYOUT_KN);
  EXPECT_EQ(upload.spec.k(), 3);
  EXPECT_EQ(upload.spec.n(), 2);
  EXPECT_EQ(upload.spec.scale_dtype(), v1::DATA_TYPE_F32);
  EXPECT_EQ(upload.spec.scale_count(), 2);
  EXPECT_EQ(upload.spec.bias_count(), 2);
  EXPECT_FALSE(upload.spec.replace());
  EXPECT_EQ(upload.spec.replace_digest(), std::string(64, 'a'));
}

TEST(Register, ChunksStayWithinOneMebibyteAndProgressReachesTheEnd) {
  FakeServer server;
  Client client({.server = server.address()});
  constexpr int64_t kK = 1500, kN = 1501;  // 2.15 MiB
  std::vector<int8_t> data(kK * kN);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<int8_t>(i * 31);
  WeightUpload weight = {.id = "big", .dtype = DataType::kInt8, .layout = Layout::kNK};
  weight.k = kK;
  weight.n = kN;
  weight.data = std::as_bytes(std::span(data));
  std::vector<std::pair<int64_t, int64_t>> steps;
  const auto r = client.RegisterWeight(
      weight, [&](int64_t sent, int64_t total) { steps.emplace_back(sent, total); });
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  const RecordedUpload upload = server.uploads().back();
  EXPECT_EQ(upload.content, StringOf(data));
  EXPECT_EQ(upload.chunk_bytes_max, size_t{1} << 20);
  EXPECT_EQ(upload.chunks, 3u);
  ASSERT_EQ(steps.size(), 3u);
  EXPECT_EQ(steps.back(), (std::pair<int64_t, int64_t>{kK * kN, kK * kN}));
  EXPECT_TRUE(std::is_sorted(steps.begin(), steps.end()));
}

TEST(Register, ARefusalIsReturnedWithoutASecondTry) {
  FakeServer server;
  server.on_upload = [](const RecordedUpload&, v1::RegisterWeightResponse*) {
    return ErrorOf(grpc::StatusCode::ALREADY_EXISTS, "WEIGHT_EXISTS", "held by other content",
                   {{"current_digest", "abc"}});
  };
  Client client({.server = server.address()});
  const auto r = client.RegisterWeight(SmallWeight());
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.status().code, Code::kAlreadyExists);
  EXPECT_EQ(r.status().metadata.at("current_digest"), "abc");
  EXPECT_EQ(server.uploads().size(), 1u);
}

TEST(Errors, DetailsBecomeFields) {
  FakeServer server;
  Client client({.server = server.address(), .retries = {.attempts_max = 1}});
  server.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse*) {
    return ErrorOf(grpc::StatusCode::INVALID_ARGUMENT, "K_MISMATCH", "K is 3, not 4", {{"k", "3"}});
  };
  auto y = client.MatMul("w", TwoRows(), {.dtype = DataType::kInt32});
  ASSERT_FALSE(y.ok());
  EXPECT_EQ(y.status().code, Code::kInvalidArgument);
  EXPECT_EQ(y.status().reason, "K_MISMATCH");
  EXPECT_EQ(y.status().metadata.at("k"), "3");
  ASSERT_EQ(y.status().fields.size(), 1u);
  EXPECT_EQ(y.status().fields[0].field, "activations.shape");
  EXPECT_EQ(y.status().ToString(), "INVALID_ARGUMENT K_MISMATCH: K is 3, not 4");
  EXPECT_EQ(y.status().retry_after.count(), 0);

  server.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse*) {
    return ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "512 rows wait", {}, 1250);
  };
  y = client.MatMul("w", TwoRows(), {.dtype = DataType::kInt32});
  EXPECT_EQ(y.status().code, Code::kUnavailable);
  EXPECT_EQ(y.status().retry_after.count(), 1250);

  server.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse*) {
    return grpc::Status(grpc::StatusCode::INTERNAL, "plain");
  };
  y = client.MatMul("w", TwoRows(), {.dtype = DataType::kInt32});
  EXPECT_EQ(y.status().ToString(), "INTERNAL: plain");
  EXPECT_EQ(y.status().reason, "") << "no ErrorInfo, no reason";
}

TEST(Errors, EveryCodeHasItsName) {
  for (int code = 0; code <= 16; ++code) {
    const std::string name(NameOf(static_cast<Code>(code)));
    EXPECT_NE(name == "UNKNOWN", code != 2) << code;
  }
}

TEST(Errors, NobodyListens) {
  Client client({.server = "127.0.0.1:1", .timeout = std::chrono::seconds(5)});
  const auto health = client.CheckHealth();
  ASSERT_FALSE(health.ok());
  EXPECT_EQ(health.status().code, Code::kUnavailable);
  EXPECT_EQ(health.status().reason, "");
}

TEST(Errors, ADeadlineEndsACall) {
  FakeServer server;
  server.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse*) {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return grpc::Status::OK;
  };
  Client client({.server = server.address()});
  const auto y = client.MatMul("w", TwoRows(), {.dtype = DataType::kInt32},
                               {.timeout = std::chrono::milliseconds(20)});
  ASSERT_FALSE(y.ok());
  EXPECT_EQ(y.status().code, Code::kDeadlineExceeded);
}

TEST(MatMul, SendsWhatWasDescribed) {
  FakeServer server;
  Client client({.server = server.address()});
  server.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse* response) {
    for (int i = 0; i < 2; ++i) response->add_outputs()->set_dtype(v1::DATA_TYPE_INT8);
    return grpc::Status::OK;
  };
  const std::vector<float> scales = {0.5f, 2.0f};
  const std::vector<int32_t> zero_points = {-4};
  Activations x = TwoRows();
  x.scales = Scales(scales);
  x.zero_points = zero_points;
  const Product products[] = {{.weight = "q",
                               .output = {.dtype = DataType::kInt8,
                                          .overflow = Overflow::kError,
                                          .scale = 0.125f,
                                          .zero_point = 7,
                                          .activation = Activation::kRelu,
                                          .top_k = 1,
                                          .skip_bias = true}},
                              {.weight = "k", .output = {.dtype = DataType::kF16}}};
  const auto y = client.MatMul(
      products, x,
      {.arithmetic = Arithmetic::kW8A8, .device = "cpu", .kernel = "cpu.scalar", .verify = true});
  ASSERT_TRUE(y.ok()) << y.status().ToString();
  ASSERT_EQ(server.requests().size(), 1u);
  const v1::MatMulRequest request = server.requests()[0];
  EXPECT_EQ(request.weights(0), "weights/q");
  EXPECT_EQ(request.weights(1), "weights/k");
  EXPECT_EQ(request.activations().dtype(), v1::DATA_TYPE_INT8);
  EXPECT_EQ(request.activations().shape(0), 2);
  EXPECT_EQ(request.activations().shape(1), 3);
  EXPECT_EQ(request.activations().data(), StringOf(kData));
  EXPECT_EQ(request.activations().static_scales().scales().data(), StringOf(scales));
  EXPECT_EQ(request.activations().zero_points(0), -4);
  const v1::OutputSpec& spec = request.outputs(0);
  EXPECT_EQ(spec.overflow(), v1::OVERFLOW_ERROR);
  EXPECT_EQ(spec.scale(), 0.125f);
  EXPECT_EQ(spec.zero_point(), 7);
  EXPECT_EQ(spec.activation(), v1::ACTIVATION_RELU);
  EXPECT_EQ(spec.top_k(), 1);
  EXPECT_TRUE(spec.skip_bias());
  EXPECT_FALSE(request.outputs(1).has_scale()) << "unset stays unset";
  EXPECT_FALSE(request.outputs(1).has_zero_point());
  EXPECT_EQ(request.options().arithmetic(), v1::ARITHMETIC_W8A8);
  EXPECT_EQ(request.options().device(), "cpu");
  EXPECT_EQ(request.options().kernel(), "cpu.scalar");
  EXPECT_TRUE(request.options().verify());
  EXPECT_EQ(server.routes(), (std::vector<std::string>{"q"})) << "the routing header";
}

TEST(MatMul, DynamicAndStaticTogetherAreRefusedHere) {
  FakeServer server;
  Client client({.server = server.address()});
  Activations x = TwoRows();
  x.dynamic = true;
  x.scales = Scales(kScales);
  const auto y = client.MatMul("w", x, {.dtype = DataType::kF32});
  ASSERT_FALSE(y.ok());
  EXPECT_EQ(y.status().reason, "QUANTIZATION_SPEC");
  x.scales = {};
  (void)client.MatMul("w", x, {.dtype = DataType::kF32});
  EXPECT_TRUE(server.requests().at(0).activations().has_dynamic());
}

grpc::Status AnswerSums(const v1::MatMulRequest&, v1::MatMulResponse* response) {
  auto* output = response->add_outputs();
  output->set_dtype(v1::DATA_TYPE_INT32);
  output->add_shape(2);
  output->add_shape(1);
  const std::vector<int32_t> sums = {1000, -7}, indices = {3, 0};
  const std::vector<float> scales = {0.5f, 0.25f};
  output->set_data(StringOf(sums));
  output->set_indices(StringOf(indices));
  output->mutable_activation_scales()->set_dtype(v1::DATA_TYPE_F32);
  output->mutable_activation_scales()->set_data(StringOf(scales));
  auto* execution = output->mutable_execution();
  execution->set_weight("weights/w");
  execution->set_kernel("cpu.avx2.s8s8s32.6x16x4");
  execution->set_overflow(v1::OVERFLOW_SATURATE);
  execution->set_batch_rows(2);
  execution->set_padded_rows(4);
  execution->set_compute_ns(35'000);
  execution->set_verified(true);
  return grpc::Status::OK;
}

TEST(MatMul, AReplyBecomesAnOutput) {
  FakeServer server;
  server.on_matmul = AnswerSums;
  Client client({.server = server.address()});
  const auto y = client.MatMul("w", TwoRows(), {.dtype = DataType::kInt32});
  ASSERT_TRUE(y.ok()) << y.status().ToString();
  EXPECT_EQ(y->dtype, DataType::kInt32);
  EXPECT_EQ(y->shape, (std::vector<int64_t>{2, 1}));
  ASSERT_EQ(y->As<int32_t>().size(), 2u);
  EXPECT_EQ(y->As<int32_t>()[0], 1000);
  EXPECT_EQ(y->As<int32_t>()[1], -7);
  EXPECT_EQ(y->indices, (std::vector<int32_t>{3, 0}));
  EXPECT_EQ(y->activation_scales, (std::vector<float>{0.5f, 0.25f}));
  EXPECT_EQ(y->execution.weight, "w");
  EXPECT_EQ(y->execution.kernel, "cpu.avx2.s8s8s32.6x16x4");
  EXPECT_EQ(y->execution.overflow, Overflow::kSaturate);
  EXPECT_EQ(y->execution.padded_rows, 4);
  EXPECT_EQ(y->execution.compute_ns, 35'000);
  EXPECT_TRUE(y->execution.verified);
}

TEST(MatMul, WritesIntoTheCallersBuffer) {
  FakeServer server;
  server.on_matmul = AnswerSums;
  Client client({.server = server.address()});
  std::vector<int32_t> sums = {0, 0, 99};
  Product product = {.weight = "w", .output = {.dtype = DataType::kInt32}};
  product.into = std::as_writable_bytes(std::span(sums).first(2));
  const auto y = client.MatMul(std::span(&product, 1), TwoRows());
  ASSERT_TRUE(y.ok()) << y.status().ToString();
  EXPECT_EQ(sums, (std::vector<int32_t>{1000, -7, 99}));
  EXPECT_TRUE(y->front().bytes.empty());

  product.into = std::as_writable_bytes(std::span(sums));
  const auto wrong = client.MatMul(std::span(&product, 1), TwoRows());
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.status().reason, "BUFFER_SIZE");
  EXPECT_EQ(sums[2], 99);
}

TEST(MatMul, AReplyWithTheWrongNumberOfOutputsIsAnError) {
  FakeServer server;  // answers no output at all
  Client client({.server = server.address()});
  const auto y = client.MatMul("w", TwoRows(), {.dtype = DataType::kInt32});
  ASSERT_FALSE(y.ok());
  EXPECT_EQ(y.status().code, Code::kInternal);
  EXPECT_EQ(y.status().reason, "OUTPUT_COUNT");
}

TEST(Weights, PagesAreJoined) {
  FakeServer server;
  server.on_list = [](const v1::ListWeightsRequest& request, v1::ListWeightsResponse* response) {
    response->add_weights()->set_name("weights/" + request.page_token() + "x");
    response->set_next_page_token(request.page_token().empty() ? "b" : "");
    return grpc::Status::OK;
  };
  Client client({.server = server.address()});
  const auto weights = client.ListWeights();
  ASSERT_TRUE(weights.ok());
  ASSERT_EQ(weights->size(), 2u);
  EXPECT_EQ(weights->at(0).id, "x");
  EXPECT_EQ(weights->at(1).id, "bx");
}

TEST(Weights, GetAndDeleteNameTheResource) {
  FakeServer server;
  std::vector<std::string> names;
  server.on_named = [&names](const std::string& name) {
    names.push_back(name);
    return name == "weights/gone"
               ? ErrorOf(grpc::StatusCode::NOT_FOUND, "WEIGHT_UNKNOWN", "no weight 'gone'")
               : grpc::Status::OK;
  };
  Client client({.server = server.address()});
  EXPECT_EQ(client.GetWeight("w")->id, "w");
  EXPECT_EQ(*client.DeleteWeight("w"), 4096);
  EXPECT_EQ(client.GetWeight("gone").status().reason, "WEIGHT_UNKNOWN");
  EXPECT_EQ(client.DeleteWeight("gone").status().code, Code::kNotFound);
  EXPECT_EQ(names,
            (std::vector<std::string>{"weights/w", "weights/w", "weights/gone", "weights/gone"}));
  EXPECT_EQ(server.routes(), (std::vector<std::string>{"w", "w", "gone", "gone"}));
}

TEST(Weights, AnIdThatNoHeaderCarriesIsRefusedHere) {
  FakeServer server;
  Client client({.server = server.address()});
  for (const char* id : {"a\nb", "\xff", "caf\xc3\xa9"}) {
    EXPECT_EQ(client.GetWeight(id).status().reason, "WEIGHT_ID") << id;
    EXPECT_EQ(client.DeleteWeight(id).status().code, Code::kInvalidArgument) << id;
    WeightUpload weight = SmallWeight();
    weight.id = id;
    EXPECT_EQ(client.RegisterWeight(weight).status().reason, "WEIGHT_ID") << id;
    const Product products[] = {{.weight = "fine"}, {.weight = id}};
    EXPECT_EQ(client.MatMul(products, TwoRows()).status().reason, "WEIGHT_ID") << id;
    EXPECT_EQ(client.Explain(products, 1, DataType::kInt8).status().reason, "WEIGHT_ID") << id;
  }
  EXPECT_TRUE(server.routes().empty()) << "nothing was sent";
}

TEST(Info, MessagesBecomeStructs) {
  FakeServer server;
  server.explanation.set_kernel("k");
  server.explanation.set_inline_(true);
  auto* candidate = server.explanation.add_candidates();
  candidate->set_predicted_ns(5);
  server.explanation.add_candidates();
  server.devices.add_devices()->set_id("cpu");
  server.devices.mutable_devices(0)->add_features("avx2");
  server.kernels.add_kernels()->set_measured_gops(12.5);
  server.kernels.add_kernels()->set_reason("this processor lacks it");
  server.statistics.set_version("9.8.7");
  server.statistics.add_kernels()->set_gops(3.5);
  Client client({.server = server.address()});

  const Product product = {.weight = "w", .output = {.dtype = DataType::kInt32}};
  const auto explanation = client.Explain(std::span(&product, 1), 3, DataType::kInt8);
  ASSERT_TRUE(explanation.ok());
  EXPECT_TRUE(explanation->runs_inline);
  EXPECT_EQ(explanation->candidates.at(0).predicted_ns, 5);
  EXPECT_EQ(explanation->candidates.at(1).predicted_ns, std::nullopt) << "not measured stays unset";
  EXPECT_EQ(client.ListDevices()->at(0).features, (std::vector<std::string>{"avx2"}));
  EXPECT_EQ(client.ListKernels()->at(0).measured_gops, 12.5);
  EXPECT_EQ(client.ListKernels()->at(1).measured_gops, std::nullopt);
  EXPECT_EQ(client.GetStatistics()->version, "9.8.7");
  EXPECT_EQ(client.GetStatistics()->kernels.at(0).gops, 3.5);
}

TEST(HealthCheck, EveryAnswer) {
  using Response = grpc::health::v1::HealthCheckResponse;
  FakeServer server;
  server.on_health = [](const std::string& service, int* status) {
    if (service == "none") return grpc::Status(grpc::StatusCode::NOT_FOUND, "unknown service");
    *status = service.empty() ? Response::SERVING : Response::NOT_SERVING;
    if (service == "odd") *status = Response::UNKNOWN;
    return grpc::Status::OK;
  };
  Client client({.server = server.address()});
  EXPECT_EQ(*client.CheckHealth(), Health::kServing);
  EXPECT_EQ(*client.CheckHealth("draining"), Health::kNotServing);
  EXPECT_EQ(*client.CheckHealth("odd"), Health::kUnknown);
  EXPECT_EQ(*client.CheckHealth("none"), Health::kServiceUnknown);
}

TEST(Connections, CallsSpreadOverThePool) {
  FakeServer server;
  Client client({.server = server.address(), .connections = 3});
  for (int i = 0; i < 9; ++i) ASSERT_TRUE(client.GetStatistics().ok());
  const auto peers = server.peers();
  EXPECT_EQ(std::set<std::string>(peers.begin(), peers.end()).size(), 3u);
}

TEST(Connections, ClientsDoNotShareThem) {
  FakeServer server;
  Client one({.server = server.address(), .connections = 1});
  Client two({.server = server.address(), .connections = 1});
  ASSERT_TRUE(one.GetStatistics().ok() && two.GetStatistics().ok());
  EXPECT_NE(server.peers().at(0), server.peers().at(1));
}

}  // namespace
}  // namespace qmatmul::client
