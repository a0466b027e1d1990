// When UNAVAILABLE is tried again: waits, budget and attempts without a clock, then calls.
#include "client/retry.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>

#include "client/client.h"
#include "tests/client/fake_server.h"

namespace qmatmul::client {
namespace {

using namespace std::chrono_literals;
using ::qmatmul::testing::ErrorOf;
using ::qmatmul::testing::FakeServer;

Status Full(std::chrono::milliseconds retry_after) {
  Status status;
  status.code = Code::kUnavailable;
  status.reason = "QUEUE_FULL";
  status.retry_after = retry_after;
  return status;
}

Status Lost() {
  Status status;
  status.code = Code::kUnavailable;
  return status;
}

TEST(Retry, WhatIsTriedAgain) {
  Status other = Full(1ms);
  other.code = Code::kResourceExhausted;
  struct Row {
    const char* what;
    Status status;
    Repeatable repeatable;
    bool again;
  };
  const Row rows[] = {
      {"a refusal that says when", Full(1ms), Repeatable::kRefused, true},
      {"… of a read", Full(1ms), Repeatable::kIdempotent, true},
      {"… of a probe", Full(1ms), Repeatable::kNever, false},
      {"a refusal that does not say when", Full(0ms), Repeatable::kIdempotent, false},
      {"a lost connection under a read", Lost(), Repeatable::kIdempotent, true},
      {"a lost connection under an upload", Lost(), Repeatable::kRefused, false},
      {"another code", other, Repeatable::kIdempotent, false},
  };
  for (const Row& row : rows) {
    RetryPolicy policy({});
    EXPECT_EQ(policy.Wait(row.status, row.repeatable, 1, 10s).has_value(), row.again) << row.what;
  }
}

TEST(Retry, WaitsGrowToALimitAndAreSpreadOverAllOfIt) {
  RetryPolicy policy(
      {.attempts_max = 100, .backoff = 10ms, .backoff_max = 80ms, .budget_max = 1e6, .seed = 7});
  const std::chrono::milliseconds longest[] = {10ms, 20ms, 40ms, 80ms, 80ms, 80ms};
  for (int attempts = 1; attempts <= 6; ++attempts) {
    RetryPolicy::Duration least = 1h, most{};
    for (int i = 0; i < 500; ++i) {
      const auto wait = *policy.Wait(Full(5ms), Repeatable::kRefused, attempts, 1h);
      least = std::min(least, wait);
      most = std::max(most, wait);
    }
    const auto span = longest[attempts - 1];
    EXPECT_GE(least, 5ms) << "never before the server asked";
    EXPECT_LE(most, 5ms + span) << attempts;
    EXPECT_LT(least, 5ms + span / 10) << "full jitter begins at 0";
    EXPECT_GT(most, 5ms + span * 9 / 10) << attempts;
  }
}

TEST(Retry, ASeedGivesTheSameWaits) {
  RetryPolicy one({.seed = 3}), two({.seed = 3}), other({.seed = 4});
  const auto wait = one.Wait(Full(1ms), Repeatable::kRefused, 3, 1h);
  EXPECT_EQ(wait, two.Wait(Full(1ms), Repeatable::kRefused, 3, 1h));
  EXPECT_NE(wait, other.Wait(Full(1ms), Repeatable::kRefused, 3, 1h));
}

TEST(Retry, NeverPastTheDeadlineNorTheAttempts) {
  RetryPolicy policy({.attempts_max = 3, .backoff = 0ms});
  EXPECT_FALSE(policy.Wait(Full(50ms), Repeatable::kRefused, 1, 50ms));
  EXPECT_TRUE(policy.Wait(Full(50ms), Repeatable::kRefused, 1, 51ms));
  EXPECT_TRUE(policy.Wait(Full(1ms), Repeatable::kRefused, 2, 1s));
  EXPECT_FALSE(policy.Wait(Full(1ms), Repeatable::kRefused, 3, 1s)) << "3 attempts are all";
}

TEST(Retry, TheBudgetIsSharedAndFilledByCalls) {
  RetryPolicy policy({.budget_max = 2, .budget_per_call = 0.25});
  const auto retry = [&] {
    return policy.Wait(Full(1ms), Repeatable::kRefused, 1, 1s).has_value();
  };
  EXPECT_TRUE(retry());
  EXPECT_TRUE(retry());
  EXPECT_FALSE(retry()) << "spent";
  for (int i = 0; i < 3; ++i) policy.CallStarts();
  EXPECT_FALSE(retry()) << "three quarters of a token";
  policy.CallStarts();
  EXPECT_TRUE(retry());
  for (int i = 0; i < 100; ++i) policy.CallStarts();
  EXPECT_TRUE(retry());
  EXPECT_TRUE(retry());
  EXPECT_FALSE(retry()) << "never more than 2 tokens";
}

Activations OneRow() {
  static const int8_t kRow[] = {1, 2, 3};
  return {.dtype = DataType::kInt8, .rows = 1, .k = 3, .data = std::as_bytes(std::span(kRow))};
}

// Refuses the first `refusals` MatMuls.
void RefuseFirst(FakeServer* server, std::atomic<int>* refusals, int retry_after_ms) {
  server->on_matmul = [=](const v1::MatMulRequest&, v1::MatMulResponse* response) {
    if (refusals->fetch_sub(1) > 0)
      return retry_after_ms > 0 ? ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL",
                                          "512 rows wait", {}, retry_after_ms)
                                : grpc::Status(grpc::StatusCode::UNAVAILABLE, "reset");
    response->add_outputs()->set_dtype(v1::DATA_TYPE_INT32);
    return grpc::Status::OK;
  };
}

TEST(Retry, ACallSucceedsAfterRefusalsAndSaysHowManyAttemptsItTook) {
  for (const int retry_after_ms : {0, 2}) {
    FakeServer server;
    std::atomic<int> refusals = 2;
    RefuseFirst(&server, &refusals, retry_after_ms);
    Client client({.server = server.address(), .retries = {.backoff = 1ms}});
    const auto y = client.MatMul("w", OneRow(), {.dtype = DataType::kInt32});
    ASSERT_TRUE(y.ok()) << y.status().ToString();
    EXPECT_EQ(y->attempts, 3);
    EXPECT_EQ(server.requests().size(), 3u);
    EXPECT_EQ(server.requests()[2].activations().data(), server.requests()[0].activations().data());
  }
}

TEST(Retry, ACallThatIsRefusedToTheEndSaysSo) {
  FakeServer server;
  std::atomic<int> refusals = 1'000'000;
  RefuseFirst(&server, &refusals, 1);
  Client client({.server = server.address(), .retries = {.attempts_max = 3, .backoff = 1ms}});
  const auto y = client.MatMul("w", OneRow(), {.dtype = DataType::kInt32});
  ASSERT_FALSE(y.ok());
  EXPECT_EQ(y.status().reason, "QUEUE_FULL");
  EXPECT_EQ(y.status().retry_after, 1ms);
  EXPECT_EQ(y.status().attempts, 3);
  EXPECT_EQ(server.requests().size(), 3u);
}

TEST(Retry, AFullServerGetsATenthMoreCallsAtMost) {
  FakeServer server;
  std::atomic<int> refusals = 1'000'000;
  RefuseFirst(&server, &refusals, 1);
  Client client({.server = server.address(), .retries = {.backoff = 0ms, .sent_per_accepted = 0}});
  for (int i = 0; i < 100; ++i)
    EXPECT_FALSE(client.MatMul("w", OneRow(), {.dtype = DataType::kInt32}).ok());
  // 10 tokens at the start, 100 calls that bring a tenth each (and the rounding of those at the top).
  EXPECT_GE(server.requests().size(), 100u + 10u);
  EXPECT_LE(server.requests().size(), 100u + 10u + 10u);
}

TEST(Retry, NoRetryWaitsPastTheDeadline) {
  FakeServer server;
  std::atomic<int> refusals = 1'000'000;
  RefuseFirst(&server, &refusals, 60'000);
  Client client({.server = server.address()});
  const auto begin = std::chrono::steady_clock::now();
  const auto y = client.MatMul("w", OneRow(), {.dtype = DataType::kInt32}, {.timeout = 30s});
  EXPECT_EQ(y.status().reason, "QUEUE_FULL");
  EXPECT_EQ(y.status().attempts, 1);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 10s);
}

TEST(Retry, DeletionsAndProbesAreNotRepeatedWhenTheConnectionIsLost) {
  FakeServer server;
  server.on_named = [](const std::string&) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "reset");
  };
  server.on_health = [](const std::string&, int*) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "reset");
  };
  Client client({.server = server.address(), .retries = {.attempts_max = 3, .backoff = 1ms}});
  EXPECT_EQ(client.DeleteWeight("w").status().attempts, 1);
  EXPECT_EQ(client.CheckHealth().status().attempts, 1);
  EXPECT_EQ(server.peers().size(), 2u);
  EXPECT_EQ(client.GetWeight("w").status().attempts, 3) << "a read is";
}

TEST(Retry, AnUploadIsRepeatedOnlyWhenItWasRefused) {
  FakeServer server;
  std::atomic<int> uploads = 0;
  server.on_upload = [&](const ::qmatmul::testing::RecordedUpload& upload,
                         v1::RegisterWeightResponse*) {
    if (upload.chunks == 0)
      return ErrorOf(grpc::StatusCode::NOT_FOUND, "UPLOAD_NEEDED", "not known here");
    return ++uploads == 1 ? ErrorOf(grpc::StatusCode::UNAVAILABLE, "DRAINING", "drains", {}, 1)
                          : grpc::Status(grpc::StatusCode::UNAVAILABLE, "reset");
  };
  Client client({.server = server.address(), .retries = {.backoff = 1ms}});
  const int8_t data[] = {1, 2};
  const auto r = client.RegisterWeight({.id = "w",
                                        .dtype = DataType::kInt8,
                                        .layout = Layout::kKN,
                                        .k = 2,
                                        .n = 1,
                                        .data = std::as_bytes(std::span(data))});
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(uploads, 2) << "the refused one again, the lost one not";
  EXPECT_EQ(r.status().attempts, 2);
}

}  // namespace
}  // namespace qmatmul::client
