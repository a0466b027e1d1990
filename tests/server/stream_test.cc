// StreamMatMul: replies with their ids as they are ready, errors that end a request and not the
// stream, and what does end it.
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "tests/server/test_server.h"
#include "tests/support/fake_device.h"

namespace qmatmul {
namespace {

constexpr int64_t kK = 64;
constexpr int64_t kN = 48;

// Large enough to fill the transport's window; their products are checked in plain loops.
#ifdef QMATMUL_TESTS_QUICK
constexpr int64_t kLarge = 1000;
constexpr uint64_t kLargeRequests = 12;
#else
constexpr int64_t kLarge = 8000;  // 1.5 MB a reply
constexpr uint64_t kLargeRequests = 40;
#endif

class Stream : public testing::Test {
 protected:
  void SetUp() override { Open(TestOptions()); }
  void Open(const Options& options) {
    server_ = std::make_unique<TestServer>(options);
    ASSERT_TRUE(server_->Register(Int8Message("w", kK, kN), w_).ok());
  }
  v1::StreamMatMulRequest Request(uint64_t id, int64_t rows) const {
    v1::StreamMatMulRequest message;
    message.set_request_id(id);
    *message.mutable_request() =
        Int8Request("w", rows, kK, PatternBytes(static_cast<size_t>(rows * kK), Seed(id)));
    return message;
  }
  void ExpectRight(const v1::StreamMatMulResponse& reply, int64_t rows) const {
    ASSERT_EQ(reply.result_case(), v1::StreamMatMulResponse::kResponse) << reply.error().message();
    const std::string a = PatternBytes(static_cast<size_t>(rows * kK), Seed(reply.request_id()));
    EXPECT_EQ(reply.response().outputs(0).data(), Int32Product(a, w_, rows, kK, kN));
  }
  static uint32_t Seed(uint64_t id) { return static_cast<uint32_t>(id % 1000) + 7; }

  std::unique_ptr<TestServer> server_;
  const std::string w_ = PatternBytes(kK * kN, 1);
};

TEST_F(Stream, EveryRequestIsAnsweredWithItsId) {
  grpc::ClientContext context;
  auto stream = server_->matmul->StreamMatMul(&context);
  constexpr uint64_t kRequests = 500;
  std::thread writer([&] {
    for (uint64_t id = 0; id < kRequests; ++id)
      ASSERT_TRUE(stream->Write(Request(id, 1 + static_cast<int64_t>(id % 9))));
    stream->WritesDone();
  });
  std::set<uint64_t> seen;
  v1::StreamMatMulResponse reply;
  while (stream->Read(&reply)) {
    ExpectRight(reply, 1 + static_cast<int64_t>(reply.request_id() % 9));
    EXPECT_TRUE(seen.insert(reply.request_id()).second) << reply.request_id();
  }
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(seen.size(), kRequests);
  EXPECT_EQ(server_->server->engine().requests_in_flight(), 0);
}

TEST_F(Stream, AnIdIsFreeAgainWhenItsReplyHasCome) {
  grpc::ClientContext context;
  auto stream = server_->matmul->StreamMatMul(&context);
  v1::StreamMatMulResponse reply;
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(stream->Write(Request(5, 2)));
    ASSERT_TRUE(stream->Read(&reply));
    ExpectRight(reply, 2);
  }
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&reply));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(Stream, ARequestsErrorDoesNotEndTheStream) {
  grpc::ClientContext context;
  auto stream = server_->matmul->StreamMatMul(&context);
  v1::StreamMatMulRequest bad = Request(1, 2);
  bad.mutable_request()->set_weights(0, "weights/none");
  ASSERT_TRUE(stream->Write(bad));
  v1::StreamMatMulResponse reply;
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.request_id(), 1u);
  ASSERT_EQ(reply.result_case(), v1::StreamMatMulResponse::kError);
  EXPECT_EQ(reply.error().code(), grpc::StatusCode::NOT_FOUND);
  ASSERT_EQ(reply.error().details_size(), 1);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(reply.error().details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "WEIGHT_UNKNOWN");
  ASSERT_TRUE(stream->Write(Request(2, 3)));
  ASSERT_TRUE(stream->Read(&reply));
  ExpectRight(reply, 3);
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

// The device is held back, so that the first request is surely still in flight.
TEST(StreamOnHeldDevice, AnIdInFlightTwiceEndsTheStream) {
  auto owned = std::make_unique<FakeDevice>();
  FakeDevice& device = *owned;
  std::vector<std::unique_ptr<Device>> devices;
  devices.push_back(std::move(owned));
  TestServer server(TestOptions(), std::move(devices));
  ASSERT_TRUE(server.Register(Int8Message("w", 4, 2), PatternBytes(8, 1)).ok());
  device.CloseGate();
  grpc::ClientContext context;
  auto stream = server.matmul->StreamMatMul(&context);
  v1::StreamMatMulRequest message;
  message.set_request_id(9);
  *message.mutable_request() = Int8Request("w", 1, 4, "abcd");
  ASSERT_TRUE(stream->Write(message));
  device.AwaitRuns(1);
  ASSERT_TRUE(stream->Write(message));
  // The stream's end waits for what computes; that it is bound to end, the cancelled request shows.
  while (server.Metrics().rejected.count("REQUEST_ID_IN_FLIGHT") == 0) std::this_thread::yield();
  device.OpenGate();
  v1::StreamMatMulResponse reply;
  while (stream->Read(&reply)) {}
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ErrorDetails(status).reason, "REQUEST_ID_IN_FLIGHT");
  EXPECT_EQ(server.server->engine().requests_in_flight(), 0);
}

TEST_F(Stream, BytesThatAreNoMessageEndIt) {
  grpc::GenericStub stub(server_->channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(&context, "/qmatmul.v1.MatMulService/StreamMatMul", &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(&tag);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  const grpc::Slice slice(std::string("\xff\xff\xff\xff\xff\xff\xff"));
  call->Write(grpc::ByteBuffer(&slice, 1), &tag);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  grpc::Status status;
  call->Finish(&status, &tag);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ErrorDetails(status).reason, "MALFORMED_MESSAGE");
}

// A client that reads nothing has its window's worth of requests taken, and no more.
TEST_F(Stream, AReaderThatStopsHoldsUpItselfOnly) {
  Options options = TestOptions();
  options.stream_requests_max = 4;
  Open(options);
  grpc::ClientContext context;
  auto stream = server_->matmul->StreamMatMul(&context);
  std::thread writer([&] {
    for (uint64_t id = 1; id <= kLargeRequests; ++id)
      if (!stream->Write(Request(id, kLarge))) return;
    stream->WritesDone();
  });
  // Others are served meanwhile; after a while of that the stream has come to rest.
  v1::MatMulResponse other;
  for (int i = 0; i < 50; ++i)
    ASSERT_TRUE(server_->MatMul(Int8Request("w", 1, kK, PatternBytes(kK, 3)), &other).ok());
  // Some of the others may be answered and not yet be gone; but they are small.
  const int64_t large_bytes = kLarge * (kK + kN * int64_t{sizeof(int32_t)});
  const Engine& engine = server_->server->engine();
  EXPECT_LT(engine.bytes_in_flight(), 5 * large_bytes);
  v1::StreamMatMulResponse reply;
  uint64_t replies = 0;
  for (; stream->Read(&reply); ++replies) {
    EXPECT_LT(engine.bytes_in_flight(), 5 * large_bytes);
    ExpectRight(reply, kLarge);
  }
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(replies, kLargeRequests);
}

TEST_F(Stream, ACancelledStreamGivesEverythingBack) {
  Options options = TestOptions();
  options.stream_requests_max =
      1;  // every request pauses the reading: the cancel comes before it and after it
  Open(options);
  for (int round = 0; round < 600; ++round) {
    grpc::ClientContext context;
    auto stream = server_->matmul->StreamMatMul(&context);
    for (uint64_t id = 1; id <= 20 && stream->Write(Request(id, 20)); ++id) {
      if (id == static_cast<uint64_t>(round % 20 + 1)) context.TryCancel();
    }
    v1::StreamMatMulResponse reply;
    while (stream->Read(&reply)) {}
    const grpc::StatusCode code = stream->Finish().error_code();
    EXPECT_TRUE(code == grpc::StatusCode::CANCELLED) << code;
  }
  EXPECT_TRUE(server_->server->Shutdown()) << "a stream was not done";
  const Engine& engine = server_->server->engine();
  EXPECT_EQ(engine.requests_in_flight(), 0);
  EXPECT_EQ(engine.bytes_in_flight(), 0);
}

}  // namespace
}  // namespace qmatmul
