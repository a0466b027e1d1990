// What is not sent to a server that is full: by a made-up clock, then through the SDK's two ways.
#include "client/throttle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <future>

#include "client/client.h"
#include "tests/client/fake_server.h"

namespace qmatmul::client {
namespace {

using namespace std::chrono_literals;
using ::qmatmul::testing::ErrorOf;
using ::qmatmul::testing::FakeServer;

Status Full() {
  Status status;
  status.code = Code::kUnavailable;
  status.reason = "QUEUE_FULL";
  status.retry_after = 5ms;
  return status;
}

// A server that takes `capacity` calls a second, with a queue of a few, and refuses the rest; `offered` calls a second.
struct Overload {
  OverloadThrottle* throttle;
  OverloadThrottle::Time now{1'000s};
  int64_t sent = 0, accepted = 0;

  void Run(std::chrono::milliseconds time, int offered, int capacity,
           std::string_view weight = "w") {
    double room = 0;
    const auto step = std::chrono::nanoseconds(1s) / offered;
    for (const auto end = now + time; now < end; now += step) {
      room = std::min(5.0, room + static_cast<double>(capacity) / offered);
      if (throttle->Refuse(weight, now)) continue;
      ++sent;
      const bool taken = room >= 1;
      room -= taken ? 1 : 0;
      accepted += taken ? 1 : 0;
      throttle->Ended(weight, taken ? Status() : Full(), now);
    }
  }
};

TEST(Throttle, AServerWithRoomIsSentEverything) {
  OverloadThrottle throttle(2);
  Overload load{&throttle};
  load.Run(3s, 1000, 1000);
  EXPECT_EQ(load.sent, 3000);
}

TEST(Throttle, AFullServerIsSentTwiceWhatItTakesAndStaysFull) {
  OverloadThrottle throttle(2);
  Overload load{&throttle};
  load.Run(2s, 1000, 100);  // the windows fill
  load.sent = load.accepted = 0;
  load.Run(10s, 1000, 100);
  EXPECT_NEAR(static_cast<double>(load.sent), 10 * (2 * 100 + 10), 200);
  EXPECT_GE(load.accepted, 900) << "it must not be starved";
}

TEST(Throttle, AServerWithRoomAgainIsUsedAgainWithinASecond) {
  OverloadThrottle throttle(2);
  Overload load{&throttle};
  load.Run(5s, 1000, 50);
  load.Run(1'200ms, 1000, 1000);
  load.sent = 0;
  load.Run(1s, 1000, 1000);
  EXPECT_EQ(load.sent, 1000);
}

TEST(Throttle, ADeadServerIsStillAskedTenTimesASecond) {
  OverloadThrottle throttle(2);
  Overload load{&throttle};
  load.Run(1s, 1000, 0);
  load.sent = 0;
  load.Run(10s, 1000, 0);
  EXPECT_NEAR(static_cast<double>(load.sent), 100, 20);
}

TEST(Throttle, WeightsAreHeldBackEachForItself) {
  OverloadThrottle throttle(2);
  Overload load{&throttle};
  load.Run(1s, 1000, 10, "busy");
  EXPECT_TRUE(throttle.Refuse("busy", load.now).has_value());
  EXPECT_FALSE(throttle.Refuse("idle", load.now).has_value());
}

TEST(Throttle, OnlyAFullServerCounts) {
  OverloadThrottle throttle(2);
  Status lost, bad, cancelled, draining = Full();
  lost.code = Code::kUnavailable;  // no word when to come back
  bad.code = Code::kInvalidArgument;
  cancelled.code = Code::kCancelled;
  draining.reason = "DRAINING";  // another server behind the same name may have room
  const Status* const all[] = {&lost, &bad, &cancelled, &draining};
  for (int i = 0; i < 1000; ++i) {
    EXPECT_FALSE(throttle.Refuse("w", OverloadThrottle::Time(1'000s)));
    throttle.Ended("w", *all[i % 4], OverloadThrottle::Time(1'000s));
  }
}

TEST(Throttle, CallsThatWereCancelledAreNotAccepted) {
  OverloadThrottle throttle(2);
  const OverloadThrottle::Time now(1'000s);
  Status cancelled;
  cancelled.code = Code::kCancelled;
  for (int i = 0; i < 100; ++i) throttle.Ended("w", i % 2 == 0 ? cancelled : Full(), now);
  int sent = 0;
  for (int i = 0; i < 100; ++i) sent += throttle.Refuse("w", now) ? 0 : 1;
  EXPECT_EQ(sent, 10);
}

TEST(Throttle, ZeroHoldsNothingBack) {
  OverloadThrottle throttle(0);
  Overload load{&throttle};
  load.Run(1s, 1000, 0);
  EXPECT_EQ(load.sent, 1000);
}

TEST(Throttle, TheErrorSaysWhatWasSeen) {
  OverloadThrottle throttle(2);
  Overload load{&throttle};
  load.Run(50ms, 1000, 0);
  const auto refusal = throttle.Refuse("w", load.now);
  ASSERT_TRUE(refusal.has_value());
  EXPECT_EQ(refusal->code, Code::kUnavailable);
  EXPECT_EQ(refusal->reason, "CLIENT_THROTTLED");
  EXPECT_EQ(refusal->retry_after.count(), 0) << "nothing is retried for it";
  EXPECT_NE(refusal->message.find("took 0 and refused"), std::string::npos) << refusal->message;
}

Activations OneRow() {
  static const int8_t kRow[] = {1, 2, 3};
  return {.dtype = DataType::kInt8, .rows = 1, .k = 3, .data = std::as_bytes(std::span(kRow))};
}

// A call that is held back must not end on the stack of the callback that asked.
TEST(Throttle, ACallbackMayAskAgainAtOnce) {
  FakeServer server;
  server.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse*) {
    return ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "512 rows wait", {}, 1);
  };
  Client client({.server = server.address(), .retries = {.attempts_max = 1}});
  const std::vector<Product> products = {{.weight = "w", .output = {.dtype = DataType::kInt32}}};
  const Activations row = OneRow();
  std::promise<void> ended;
  int left = 300, deepest = 0;
  thread_local int depth = 0;
  MatMulCallback again = [&](auto outputs) {
    EXPECT_EQ(outputs.status().code, Code::kUnavailable);
    if (--left == 0) return ended.set_value();
    deepest = std::max(deepest, ++depth);
    client.MatMulAsync(products, row, {}, again);
    --depth;
  };
  client.MatMulAsync(products, row, {}, again);
  ended.get_future().wait();
  EXPECT_EQ(deepest, 1);
}

// Both ways of the SDK, against a server that refuses everything.
TEST(Throttle, TheClientStopsSending) {
  for (const bool async : {false, true}) {
    FakeServer server;
    server.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse*) {
      return ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "512 rows wait", {}, 1);
    };
    Client client({.server = server.address(), .retries = {.attempts_max = 1}});
    const std::vector<Product> products = {{.weight = "w", .output = {.dtype = DataType::kInt32}}};
    int throttled = 0;
    for (int i = 0; i < 200; ++i) {
      Status status;
      if (async) {
        std::promise<Status> ended;
        client.MatMulAsync(products, OneRow(), {},
                           [&](auto outputs) { ended.set_value(outputs.status()); });
        status = ended.get_future().get();
      } else {
        status = client.MatMul(products, OneRow(), {}).status();
      }
      EXPECT_EQ(status.code, Code::kUnavailable);
      EXPECT_EQ(status.attempts, status.reason == "CLIENT_THROTTLED" ? 0 : 1);
      throttled += status.reason == "CLIENT_THROTTLED" ? 1 : 0;
    }
    // Ten a second, and the machine may be slow.
    EXPECT_GT(throttled, 100) << async;
    EXPECT_EQ(server.requests().size(), static_cast<size_t>(200 - throttled));
  }
}

}  // namespace
}  // namespace qmatmul::client
