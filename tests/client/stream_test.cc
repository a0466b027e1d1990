// MatMulStream: replies in any order, the window, and every way a stream ends.
#include "client/stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <mutex>
#include <thread>

#include "client/client.h"
#include "tests/client/fake_product.h"
#include "tests/client/fake_server.h"

namespace qmatmul::client {
namespace {

using namespace std::chrono_literals;
using ::qmatmul::testing::ErrorOf;
using ::qmatmul::testing::FakeProduct;
using ::qmatmul::testing::FakeServer;

const Product kProduct[] = {{.weight = "n3", .output = {.dtype = DataType::kInt32}}};

struct Row {
  explicit Row(int8_t first) : data{first, 2, 3} {}
  Activations a() const {
    return {.dtype = DataType::kInt8, .rows = 1, .k = 3, .data = std::as_bytes(std::span(data))};
  }
  int8_t data[3];
};

class Stream : public ::testing::Test {
 protected:
  Stream() {
    server_.on_matmul = [](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
      return FakeProduct(request, response);
    };
  }
  FakeServer server_;
};

TEST_F(Stream, EveryReplyFindsItsRequestWhateverTheOrder) {
  server_.stream_batch = 4;  // answered last first
  Client client({.server = server_.address()});
  auto stream = client.OpenStream({.window = 8, .weight = "n3"});
  std::mutex mutex;
  std::vector<int> order;
  std::atomic<int> right = 0;
  for (int i = 0; i < 64; ++i) {
    const Row row(static_cast<int8_t>(i));
    const auto expected = client.MatMul(kProduct, row.a());
    ASSERT_TRUE(expected.ok());
    const auto id = stream->Submit(kProduct, row.a(), {},
                                   [&, i, bytes = expected->front().bytes](auto outputs) {
                                     right += outputs.ok() && outputs->front().bytes == bytes;
                                     const std::lock_guard lock(mutex);
                                     order.push_back(i);
                                   });
    ASSERT_TRUE(id.ok()) << id.status().ToString();
    EXPECT_EQ(*id, static_cast<uint64_t>(i) + 1);
  }
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(right, 64);
  ASSERT_EQ(order.size(), 64u);
  EXPECT_EQ(order.front(), 3) << "the batch's last comes first";
  EXPECT_EQ(server_.routes().front(), "n3");
}

TEST_F(Stream, IntoTheCallersBuffer) {
  Client client({.server = server_.address()});
  auto stream = client.OpenStream();
  int32_t sums[3] = {};
  const Product into[] = {{.weight = "n3",
                           .output = {.dtype = DataType::kInt32},
                           .into = std::as_writable_bytes(std::span(sums))}};
  const Row row(1);
  ASSERT_TRUE(
      stream->Submit(into, row.a(), {}, [](auto outputs) { EXPECT_TRUE(outputs.ok()); }).ok());
  ASSERT_TRUE(stream->Close().ok());
  const auto expected = client.MatMul(kProduct, row.a());
  EXPECT_EQ(std::memcmp(sums, expected->front().bytes.data(), sizeof(sums)), 0);
}

TEST_F(Stream, OneRequestsErrorLeavesTheOthers) {
  std::atomic<int> calls = 0;
  server_.on_matmul = [&](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    if (++calls == 2)
      return ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "full", {{"limit", "5"}}, 30);
    return FakeProduct(request, response);
  };
  Client client({.server = server_.address()});
  auto stream = client.OpenStream();
  std::vector<Status> ends;
  const Row row(1);
  for (int i = 0; i < 3; ++i)
    ASSERT_TRUE(
        stream
            ->Submit(kProduct, row.a(), {}, [&](auto outputs) { ends.push_back(outputs.status()); })
            .ok());
  EXPECT_TRUE(stream->Close().ok());
  ASSERT_EQ(ends.size(), 3u);
  EXPECT_TRUE(ends[0].ok() && ends[2].ok());
  EXPECT_EQ(ends[1].reason, "QUEUE_FULL");
  EXPECT_EQ(ends[1].retry_after, 30ms);
  EXPECT_EQ(ends[1].metadata.at("limit"), "5");
}

TEST_F(Stream, TheWindowHolds) {
  std::atomic<int> computing = 0, most = 0, submitted = 0, answered = 0;
  Client client({.server = server_.address()});
  auto stream = client.OpenStream({.window = 5});
  server_.on_matmul = [&](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    return FakeProduct(request, response);
  };
  const Row row(1);
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(stream->Submit(kProduct, row.a(), {}, [&](auto) { ++answered; }).ok());
    ++submitted;
    most = std::max<int>(most, submitted - answered);
  }
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_LE(most, 6) << "5, and the one whose callback has not counted yet";
  EXPECT_EQ(answered, 200);
}

// The closed loop of a load generator: each reply sends the next.
TEST_F(Stream, ACallbackMaySubmit) {
  Client client({.server = server_.address()});
  auto stream = client.OpenStream({.window = 2});
  const Row row(1);
  std::atomic<int> left = 100;
  std::promise<void> done;
  std::function<void(Result<std::vector<Output>>)> next = [&](Result<std::vector<Output>> outputs) {
    EXPECT_TRUE(outputs.ok());
    if (--left == 0) return done.set_value();
    EXPECT_TRUE(stream->Submit(kProduct, row.a(), {}, next).ok());
  };
  ASSERT_TRUE(stream->Submit(kProduct, row.a(), {}, next).ok());
  done.get_future().wait();
  EXPECT_TRUE(stream->Close().ok());
}

TEST_F(Stream, FromManyThreads) {
  server_.stream_batch = 2;
  Client client({.server = server_.address()});
  auto stream = client.OpenStream({.window = 16});
  const Row row(1);
  std::atomic<int> answered = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i)
        EXPECT_TRUE(
            stream->Submit(kProduct, row.a(), {}, [&](auto o) { answered += o.ok(); }).ok());
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(answered, 400);
}

TEST_F(Stream, WhenTheServerEndsItEveryRequestIsTold) {
  server_.stream_batch = 100;
  server_.stream_requests_max = 3;
  server_.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse*) {
    return grpc::Status::OK;
  };
  server_.stream_status =
      ErrorOf(grpc::StatusCode::INVALID_ARGUMENT, "REQUEST_ID_IN_FLIGHT", "id 7 is in flight");
  Client client({.server = server_.address()});
  auto stream = client.OpenStream();
  const Row row(1);
  std::mutex mutex;
  std::vector<Status> ends;
  int accepted = 0;
  for (int i = 0; i < 5; ++i)
    accepted += stream
                    ->Submit(kProduct, row.a(), {},
                             [&](auto outputs) {
                               const std::lock_guard lock(mutex);
                               ends.push_back(outputs.status());
                             })
                    .ok();
  const Status status = stream->Close();
  EXPECT_EQ(status.reason, "REQUEST_ID_IN_FLIGHT");
  ASSERT_EQ(static_cast<int>(ends.size()), accepted) << "each that got a number has its callback";
  int told = 0;
  for (const Status& end : ends) told += end.reason == "REQUEST_ID_IN_FLIGHT";
  EXPECT_EQ(told, accepted - 3) << "three got their (empty) answers";
  EXPECT_FALSE(stream->Submit(kProduct, row.a(), {}, [](auto) { FAIL(); }).ok());
}

TEST_F(Stream, NobodyListens) {
  Client client({.server = "127.0.0.1:1"});
  auto stream = client.OpenStream();
  std::promise<Status> end;
  const Row row(1);
  const auto id =
      stream->Submit(kProduct, row.a(), {}, [&](auto outputs) { end.set_value(outputs.status()); });
  EXPECT_EQ(stream->Close().code, Code::kUnavailable);
  if (id.ok()) { EXPECT_EQ(end.get_future().get().code, Code::kUnavailable); }
}

TEST_F(Stream, AServerThatNeverAnswersIsGivenUp) {
  std::promise<void> test_ends;
  server_.on_matmul = [ended = test_ends.get_future().share()](const v1::MatMulRequest&,
                                                               v1::MatMulResponse*) {
    ended.wait();
    return grpc::Status::OK;
  };
  Client client({.server = server_.address()});
  std::promise<Status> end;
  const Row row(1);
  auto stream = client.OpenStream({.window = 1, .timeout = 50ms});
  ASSERT_TRUE(
      stream->Submit(kProduct, row.a(), {}, [&](auto o) { end.set_value(o.status()); }).ok());
  const auto full = stream->Submit(kProduct, row.a(), {}, [](auto) { FAIL(); });
  EXPECT_EQ(full.status().code, Code::kDeadlineExceeded);
  EXPECT_EQ(full.status().message, "the stream's window of 1 requests stayed full for 50 ms");
  const Status status = stream->Close();
  EXPECT_EQ(status.code, Code::kDeadlineExceeded) << status.ToString();
  EXPECT_EQ(status.message, "no reply came for 50 ms, with 1 requests unanswered");
  EXPECT_EQ(end.get_future().get().code, Code::kDeadlineExceeded);
  test_ends.set_value();
}

TEST_F(Stream, DestroyingItCancelsWhatIsUnderway) {
  server_.stream_batch = 100;
  Client client({.server = server_.address()});
  std::promise<Status> end;
  const Row row(1);
  {
    auto stream = client.OpenStream();
    ASSERT_TRUE(
        stream
            ->Submit(kProduct, row.a(), {}, [&](auto outputs) { end.set_value(outputs.status()); })
            .ok());
  }
  EXPECT_EQ(end.get_future().get().code, Code::kCancelled);
}

TEST_F(Stream, WhatIsTooLargeOrWrongIsRefusedAtOnce) {
  Client client({.server = server_.address(), .message_bytes_max = 10'000});
  auto stream = client.OpenStream();
  const std::vector<int8_t> big(11'000);
  const Activations a = {
      .dtype = DataType::kInt8, .rows = 11, .k = 1000, .data = std::as_bytes(std::span(big))};
  EXPECT_EQ(stream->Submit(kProduct, a, {}, [](auto) { FAIL(); }).status().reason,
            "MESSAGE_TOO_LARGE");
  const Product bad[] = {{.weight = "a\nb"}};
  EXPECT_EQ(stream->Submit(bad, Row(1).a(), {}, [](auto) { FAIL(); }).status().reason, "WEIGHT_ID");
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(stream->Submit(kProduct, Row(1).a(), {}, [](auto) { FAIL(); }).status().reason,
            "STREAM_CLOSED");
  EXPECT_TRUE(server_.requests().empty());
}

}  // namespace
}  // namespace qmatmul::client
