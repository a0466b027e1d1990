// The load client and the run that drives it, against servers whose answers the test writes.
#include "client/load.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <thread>

#include "client/load_histogram.h"
#include "client/load_run.h"
#include "tests/client/fake_server.h"

namespace qmatmul::client {
namespace {

using ::qmatmul::testing::ErrorOf;
using ::qmatmul::testing::FakeServer;

TEST(LoadHistogram, PercentilesAreWithinAPercentOfTheExactOnes) {
  std::mt19937_64 random(1);
  for (const double spread : {0.2, 1.0, 3.0}) {
    std::lognormal_distribution<double> draw(11, spread);
    LoadHistogram histogram;
    std::vector<int64_t> values(100'000);
    double sum = 0;
    for (int64_t& value : values) {
      value = static_cast<int64_t>(draw(random));
      histogram.Record(value);
      sum += static_cast<double>(value);
    }
    std::sort(values.begin(), values.end());
    for (const double percent : {0.01, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0}) {
      const auto rank = static_cast<size_t>(std::ceil(percent / 100 * 100'000)) - 1;
      const auto exact = static_cast<double>(values[rank]);
      EXPECT_NEAR(static_cast<double>(histogram.Percentile(percent)), exact, exact * 0.01)
          << percent << " % of spread " << spread;
    }
    EXPECT_EQ(histogram.count(), 100'000);
    EXPECT_EQ(histogram.max(), values.back());
    EXPECT_NEAR(histogram.mean(), sum / 100'000, 1e-6 * sum / 100'000);
  }
}

TEST(LoadHistogram, EveryMagnitudeHasItsBucket) {
  for (int64_t value = 1; value < LoadHistogram::kMax; value = value * 5 / 4 + 1) {
    for (const int64_t v : {value - 1, value, value + 1}) {
      LoadHistogram histogram;
      histogram.Record(v);
      histogram.Record(LoadHistogram::kMax);
      const auto half = static_cast<double>(histogram.Percentile(50));
      EXPECT_NEAR(half, static_cast<double>(v), std::max(0.0, static_cast<double>(v) / 256)) << v;
      EXPECT_EQ(histogram.CountUpTo(v), 1) << v;
    }
  }
  LoadHistogram empty;
  EXPECT_EQ(empty.Percentile(99), 0);
  EXPECT_EQ(empty.mean(), 0);
  LoadHistogram edges;
  edges.Record(-5);
  edges.Record(INT64_MAX);
  EXPECT_EQ(edges.Percentile(50), 0);
  EXPECT_EQ(edges.max(), LoadHistogram::kMax);
}

TEST(LoadOrder, EachItemAsOftenAsItsShareSays) {
  std::vector<LoadItem> items(3);
  items[0].share = 0.9;
  items[1].share = 0.0995;
  items[2].share = 0.0005;
  const auto order = DrawOrder(items, 10'000, 7);
  EXPECT_EQ(std::count(order.begin(), order.end(), 0u), 9000);
  EXPECT_EQ(std::count(order.begin(), order.end(), 1u), 995);
  EXPECT_EQ(std::count(order.begin(), order.end(), 2u), 5);
  EXPECT_FALSE(std::is_sorted(order.begin(), order.end())) << "shuffled";
  EXPECT_EQ(order, DrawOrder(items, 10'000, 7));
  EXPECT_NE(order, DrawOrder(items, 10'000, 8));
  EXPECT_EQ(DrawOrder(items, 7, 1).size(), 7u);
}

EncodedCall OneRow() {
  static const std::vector<int8_t> row = {1, -2, 3};
  const Product product = {.weight = "w", .output = {.dtype = DataType::kInt32}, .into = {}};
  return EncodedCall::MatMul(
      std::span(&product, 1),
      {.dtype = DataType::kInt8, .rows = 1, .k = 3, .data = std::as_bytes(std::span(row))});
}

// Fills a reply as a server would.
void Answer(v1::MatMulResponse* response, int64_t batch_rows) {
  v1::OutputTensor* output = response->add_outputs();
  output->set_dtype(v1::DATA_TYPE_INT32);
  output->add_shape(1);
  output->add_shape(50'000);
  output->set_data(std::string(200'000, 'y'));
  v1::Execution* execution = output->mutable_execution();
  execution->set_kernel("cpu.k");
  execution->set_batch_rows(batch_rows);
  execution->set_padded_rows(3);
  execution->set_queue_ns(1'000);
  execution->set_compute_ns(123'456'789'012);
}

TEST(LoadClient, SendsTheSdksBytesAndReadsTheReply) {
  FakeServer server;
  server.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse* response) {
    Answer(response, 17);
    return grpc::Status::OK;
  };
  LoadClient client({.server = server.address(), .routing_header = true});
  Execution execution;
  Result<std::vector<Output>> outputs = std::vector<Output>();
  bool read = false;
  client.Send(OneRow(), [&](const LoadReply& reply) {
    read = reply.ReadExecution(&execution);
    outputs = reply.Outputs();
    EXPECT_TRUE(reply.ok());
    EXPECT_GT(reply.bytes(), 200'000u);
    EXPECT_GE(reply.done(), reply.sent());
  });
  client.Drain();
  ASSERT_TRUE(read);
  EXPECT_EQ(execution.batch_rows, 17);
  EXPECT_EQ(execution.padded_rows, 3);
  EXPECT_EQ(execution.queue_ns, 1'000);
  EXPECT_EQ(execution.compute_ns, 123'456'789'012);
  ASSERT_TRUE(outputs.ok());
  EXPECT_EQ(outputs->at(0).bytes, std::string(200'000, 'y'));
  EXPECT_EQ(outputs->at(0).execution.kernel, "cpu.k");
  ASSERT_EQ(server.requests().size(), 1u);
  v1::MatMulRequest sent;
  ASSERT_TRUE(sent.ParseFromString(OneRow().message()));
  EXPECT_EQ(server.requests()[0].SerializeAsString(), sent.SerializeAsString());
  EXPECT_EQ(server.requests()[0].weights(0), "weights/w");
  EXPECT_EQ(server.requests()[0].activations().data(), std::string("\1\xfe\3"));
  EXPECT_EQ(server.routes(), std::vector<std::string>{"w"});
}

TEST(LoadClient, ConnectionsAreRealAndTakeTurns) {
  FakeServer server;
  LoadClient client({.server = server.address(), .connections = 3});
  ASSERT_TRUE(client.Connect(std::chrono::seconds(5)).ok());
  for (int i = 0; i < 9; ++i) client.Send(OneRow(), [](const LoadReply&) {});
  client.Drain();
  EXPECT_EQ(client.in_flight(), 0);
  std::map<std::string, int> peers;
  for (const std::string& peer : server.peers()) ++peers[peer];
  ASSERT_EQ(peers.size(), 3u);
  for (const auto& [peer, calls] : peers) EXPECT_EQ(calls, 3) << peer;
}

TEST(LoadClient, ErrorsComeWithTheirReasonAndNobodyIsForgotten) {
  FakeServer server;
  server.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse*) {
    return ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "no", {}, 40);
  };
  LoadClient client({.server = server.address()});
  Status status;
  Execution execution;
  client.Send(OneRow(), [&](const LoadReply& reply) {
    status = reply.status();
    EXPECT_FALSE(reply.ReadExecution(&execution));
  });
  client.Drain();
  EXPECT_EQ(status.code, Code::kUnavailable);
  EXPECT_EQ(status.reason, "QUEUE_FULL");
  EXPECT_EQ(status.retry_after.count(), 40);

  LoadClient nobody({.server = "127.0.0.1:1", .timeout = std::chrono::milliseconds(500)});
  EXPECT_EQ(nobody.Connect(std::chrono::milliseconds(100)).code, Code::kUnavailable);
  Code code = Code::kOk;
  nobody.Send(OneRow(), [&](const LoadReply& reply) { code = reply.code(); });
  nobody.Drain();
  EXPECT_NE(code, Code::kOk);
}

// StreamMatMul that collects `batch` requests and answers them last first; every third is refused.
class BackwardsStream final : public v1::MatMulService::Service {
 public:
  explicit BackwardsStream(size_t batch) : batch_(batch) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  ~BackwardsStream() override { server_->Shutdown(); }
  const std::string& address() const { return address_; }
  std::atomic<int> streams{0};
  // End the stream, in error, after so many requests.
  std::atomic<int> requests_max{1 << 30};

  grpc::Status StreamMatMul(grpc::ServerContext*,
                            grpc::ServerReaderWriter<v1::StreamMatMulResponse,
                                                     v1::StreamMatMulRequest>* stream) override {
    ++streams;
    std::vector<v1::StreamMatMulRequest> waiting;
    v1::StreamMatMulRequest request;
    for (int count = 0; stream->Read(&request);) {
      if (++count > requests_max) return ErrorOf(grpc::StatusCode::INTERNAL, "BROKEN", "enough");
      waiting.push_back(request);
      if (waiting.size() < batch_) continue;
      for (; !waiting.empty(); waiting.pop_back()) {
        v1::StreamMatMulResponse reply;
        reply.set_request_id(waiting.back().request_id());
        if (waiting.back().request_id() % 3 == 0) {
          const auto error = ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "no");
          reply.mutable_error()->ParseFromString(error.error_details());
          reply.mutable_error()->set_code(14);
        } else {
          Answer(reply.mutable_response(),
                 static_cast<int64_t>(waiting.back().request().activations().data().size()));
        }
        stream->Write(reply);
      }
    }
    return grpc::Status::OK;
  }

 private:
  size_t batch_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

TEST(LoadStream, RepliesFindTheirCallsInAnyOrder) {
  BackwardsStream server(6);
  LoadClient client({.server = server.address(), .connections = 1, .stream = true});
  // Request i has i + 1 bytes of activations, which come back as batch_rows.
  std::vector<int64_t> got(12, 0);
  std::vector<std::string> reasons(12);
  std::vector<std::byte> bytes(12);
  for (size_t i = 0; i < 12; ++i) {
    const Product product = {.weight = "w", .output = {.dtype = DataType::kInt32}, .into = {}};
    const EncodedCall call = EncodedCall::MatMul(
        std::span(&product, 1),
        {.dtype = DataType::kInt8, .rows = 1, .k = 1, .data = std::span(bytes).first(i + 1)});
    client.Send(call, [&got, &reasons, i](const LoadReply& reply) {
      Execution execution;
      if (reply.ReadExecution(&execution)) got[i] = execution.batch_rows;
      if (reply.ok()) { EXPECT_EQ(reply.Outputs()->at(0).bytes.size(), 200'000u); }
      reasons[i] = reply.status().reason;
    });
  }
  client.Drain();
  for (size_t i = 0; i < 12; ++i) {
    const bool refused = (i + 1) % 3 == 0;
    EXPECT_EQ(got[i], refused ? 0 : static_cast<int64_t>(i) + 1) << i;
    EXPECT_EQ(reasons[i], refused ? "QUEUE_FULL" : "") << i;
  }
  EXPECT_EQ(server.streams, 1);
}

TEST(LoadStream, AStreamThatEndsFailsItsCallsAndTheNextCallOpensAnother) {
  BackwardsStream server(4);
  server.requests_max = 2;
  LoadClient client({.server = server.address(), .connections = 1, .stream = true});
  std::atomic<int> internal{0};
  for (int i = 0; i < 3; ++i)
    client.Send(OneRow(), [&](const LoadReply& r) { internal += r.code() == Code::kInternal; });
  client.Drain();
  EXPECT_EQ(internal, 3);
  server.requests_max = 100;
  std::atomic<int> answered{0};
  for (int i = 0; i < 4; ++i)
    client.Send(OneRow(), [&](const LoadReply& r) { answered += r.ok(); });
  client.Drain();
  EXPECT_EQ(answered, 3) << "ids 1, 2 and 4 of a new stream";
  EXPECT_EQ(server.streams, 2);
}

LoadPlan PlanOf(double seconds) {
  LoadPlan plan;
  plan.items = {{OneRow(), 1, 1, 2.0 * 3 * 50'000}};
  plan.seconds = seconds;
  return plan;
}

TEST(LoadRun, ClosedLoopKeepsSoManyInFlightAndCountsAll) {
  FakeServer server;
  std::atomic<int> now{0}, most{0};
  server.on_matmul = [&](const v1::MatMulRequest&, v1::MatMulResponse* response) {
    const int in_flight = ++now;
    int seen = most;
    while (in_flight > seen && !most.compare_exchange_weak(seen, in_flight)) {}
    Answer(response, 2);
    --now;
    return grpc::Status::OK;
  };
  LoadClient client({.server = server.address()});
  LoadPlan plan = PlanOf(0);
  plan.calls_max = 300;
  plan.in_flight = 4;
  plan.check_share = 0.1;
  std::atomic<int> checked{0};
  plan.check = [&](size_t, const LoadReply& reply) { return reply.ok() && ++checked > 2; };
  plan.keep_calls = true;
  const auto result = RunLoad(&client, plan);
  EXPECT_EQ(result->sent, 300);
  EXPECT_EQ(result->ok, 300);
  EXPECT_EQ(server.requests().size(), 300u);
  EXPECT_LE(most, 4);
  EXPECT_EQ(result->ok_in_window, 300);
  EXPECT_EQ(result->rows_in_window, 300);
  EXPECT_DOUBLE_EQ(result->ops_in_window, 300 * 300'000.0);
  EXPECT_DOUBLE_EQ(result->batch_rows_mean, 2);
  EXPECT_EQ(result->checked, 30);
  EXPECT_EQ(result->wrong, 2) << "the check's answer counts";
  EXPECT_EQ(result->calls.size(), 300u);
  EXPECT_GT(result->seconds, 0);
  EXPECT_EQ(result->by_rows.at(1).latency_ns.count(), 300);
}

TEST(LoadRun, ErrorsAreCountedByCodeAndReasonApartFromTheLatencies) {
  FakeServer server;
  std::atomic<int> count{0};
  server.on_matmul = [&](const v1::MatMulRequest&, v1::MatMulResponse* response) {
    if (++count % 4 == 0) return ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "come later");
    Answer(response, 1);
    return grpc::Status::OK;
  };
  LoadClient client({.server = server.address()});
  LoadPlan plan = PlanOf(0);
  plan.calls_max = 40;
  const auto result = RunLoad(&client, plan);
  EXPECT_EQ(result->failed, 10);
  EXPECT_EQ(result->ok, 30);
  EXPECT_EQ(result->errors, (std::map<std::string, int64_t>{{"UNAVAILABLE QUEUE_FULL", 10}}));
  EXPECT_NE(result->first_error.find("come later"), std::string::npos);
  EXPECT_EQ(result->latency_ns.count(), 30);
  EXPECT_EQ(result->error_latency_ns.count(), 10);
}

// A server that stands still for 300 ms. A loop that waits for replies before it sends sees one slow
// call; the calls that should have left meanwhile are slow too, and must be seen to be.
TEST(LoadRun, OpenLoopCountsFromTheIntendedTime) {
  FakeServer server;
  std::mutex still;
  std::atomic<int> count{0};
  server.on_matmul = [&](const v1::MatMulRequest&, v1::MatMulResponse* response) {
    const std::lock_guard lock(still);
    if (++count == 20) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    Answer(response, 1);
    return grpc::Status::OK;
  };
  LoadClient client({.server = server.address()});
  LoadPlan plan = PlanOf(1);
  plan.rate = 200;
  plan.poisson = false;
  plan.keep_calls = true;
  const auto result = RunLoad(&client, plan);
  EXPECT_EQ(result->ok, 200);
  // About 60 calls were meant to leave while it stood still; half of them waited over 150 ms.
  EXPECT_GE(200 - result->latency_ns.CountUpTo(150'000'000), 20);
  std::vector<int64_t> intended;
  for (const LoadedCall& call : result->calls) {
    intended.push_back(call.intended_ns);
    EXPECT_GE(call.sent_ns, call.intended_ns);
  }
  std::sort(intended.begin(), intended.end());
  for (size_t i = 0; i < intended.size(); ++i)
    EXPECT_EQ(intended[i], static_cast<int64_t>(i) * 5'000'000)
        << "evenly spaced, whatever came back";
}

TEST(LoadRun, PoissonArrivalsHaveTheRateAndTheSpread) {
  FakeServer server;
  LoadClient client({.server = server.address()});
  LoadPlan plan = PlanOf(2);
  plan.rate = 400;
  plan.keep_calls = true;
  const auto result = RunLoad(&client, plan);
  EXPECT_NEAR(static_cast<double>(result->sent), 800, 120) << "4 standard deviations";
  std::vector<int64_t> intended;
  for (const LoadedCall& call : result->calls) intended.push_back(call.intended_ns);
  std::sort(intended.begin(), intended.end());
  int64_t longest = 0;
  for (size_t i = 1; i < intended.size(); ++i)
    longest = std::max(longest, intended[i] - intended[i - 1]);
  EXPECT_GT(longest, 8'000'000) << "some gap is over three times the mean";
}

}  // namespace
}  // namespace qmatmul::client
