#include "server/engine/engine.h"

#include <gtest/gtest.h>

#include "tests/engine/engine_fixture.h"

namespace qmatmul {
namespace {

constexpr int64_t kShortNs = 10'000;
constexpr int64_t kLongNs = 1'000'000;

TEST(Engine, LongWorkIsQueuedAndShortWorkRunsHere) {
  EngineFixture f;
  const WeightPtr weight = f.Weight("w");
  TestRequest queued(weight, 2);
  f.device->predicted_ns = kLongNs;
  ASSERT_TRUE(f.Send(&queued).ok());
  queued.Await();
  EXPECT_EQ(f.device->threads_max, 0) << "the whole team";

  TestRequest inlined(weight, 2);
  f.device->predicted_ns = kShortNs;
  ASSERT_TRUE(f.Send(&inlined).ok());
  EXPECT_EQ(inlined.completions(), 1) << "completed before Submit returned";
  EXPECT_EQ(f.device->threads_max, 1) << "this thread alone";
  EXPECT_EQ(inlined.result(), queued.result());
  EXPECT_EQ(f.engine->metrics().Read().at(Counter::kInlineRuns), 1);
}

TEST(Engine, ShortWorkDoesNotWaitForLong) {
  EngineFixture f;
  const WeightPtr weight = f.Weight("w");
  f.device->CloseGate();
  TestRequest slow(weight, 1), small(weight, 1);
  ASSERT_TRUE(f.Send(&slow).ok());
  f.device->AwaitRuns(1);
  f.device->predicted_ns = kShortNs;
  ASSERT_TRUE(f.Send(&small).ok());
  EXPECT_EQ(small.completions(), 1);
  EXPECT_EQ(slow.completions(), 0);
  f.device->OpenGate();
  slow.Await();
}

TEST(Engine, SaysWhatWasDone) {
  EngineFixture f;
  TestRequest request(f.Weight("w"), 2);
  ASSERT_TRUE(f.Send(&request).ok());
  request.Await();
  ASSERT_TRUE(request.status.ok()) << request.status.message;
  // Activations are all 1, so each result is its column's sum.
  EXPECT_EQ(request.result(), (std::vector<int32_t>{0 + 2 + 4, 1 + 3 + 5, 6, 9}));
  EXPECT_EQ(request.execution.device, "cpu");
  EXPECT_EQ(request.execution.kernels[0], kFakeKernel);
  EXPECT_EQ(request.execution.batch_rows, 2);
  const MetricsReading reading = f.engine->metrics().Read();
  EXPECT_EQ(reading.at(Counter::kRows), 2);
  EXPECT_EQ(reading.kernels.back().kernel, kFakeKernel);
  EXPECT_EQ(reading.kernels.back().ops, 2 * 2 * 3 * 2);
}

TEST(Engine, RowsOfZeroAreServed) {
  EngineFixture f;
  TestRequest request(f.Weight("w"), 0);
  ASSERT_TRUE(f.Send(&request).ok());
  request.Await();
  EXPECT_TRUE(request.status.ok());
  EXPECT_EQ(f.device->runs, 0);
}

TEST(Engine, FullQueueRefusesAtOnceAndSaysWhenToComeBack) {
  EngineOptions options;
  options.batcher.requests_max = 2;
  EngineFixture f(options);
  const WeightPtr weight = f.Weight("w");
  f.device->CloseGate();
  TestRequest running(weight, 1), first(weight, 1), second(weight, 1), refused(weight, 1);
  ASSERT_TRUE(f.Send(&running).ok());
  f.device->AwaitRuns(1);
  ASSERT_TRUE(f.Send(&first).ok());
  ASSERT_TRUE(f.Send(&second).ok());
  EXPECT_EQ(f.engine->queued(0), 2);
  ASSERT_TRUE(f.Send(&refused).ok());
  EXPECT_EQ(refused.completions(), 1);
  EXPECT_EQ(refused.status.code, Code::kUnavailable);
  EXPECT_EQ(refused.status.reason, "QUEUE_FULL");
  EXPECT_GE(refused.status.retry_after_ns, 2 * kLongNs)
      << "a run is under way, and another waits for both";
  f.device->OpenGate();
  for (TestRequest* r : {&running, &first, &second}) {
    r->Await();
    EXPECT_TRUE(r->status.ok());
  }
}

TEST(Engine, BytesInFlightAreBoundedAndComeBack) {
  EngineOptions options;
  EngineFixture probe;
  options.in_flight_bytes_max = TestRequest(probe.Weight("w"), 1).bytes;
  EngineFixture f(options);
  const WeightPtr weight = f.Weight("w");
  {
    TestRequest first(weight, 1), second(weight, 1);
    ASSERT_TRUE(f.engine->Admit(&first).ok());
    const Status status = f.engine->Admit(&second);
    EXPECT_EQ(status.code, Code::kUnavailable);
    EXPECT_EQ(status.reason, "IN_FLIGHT_BYTES");
    EXPECT_GT(status.retry_after_ns, 0);
    EXPECT_EQ(f.engine->requests_in_flight(), 1);
  }
  EXPECT_EQ(f.engine->requests_in_flight(), 0);
  EXPECT_EQ(f.engine->bytes_in_flight(), 0);
}

TEST(Engine, ExpiredAndCancelledWorkNeverReachesTheDevice) {
  EngineFixture f;
  const WeightPtr weight = f.Weight("w");
  f.device->CloseGate();
  TestRequest running(weight, 1), late(weight, 1), cancelled(weight, 1);
  ASSERT_TRUE(f.Send(&running).ok());
  f.device->AwaitRuns(1);
  late.deadline_ns = f.clock.NowNs() + 10 * kLongNs;
  ASSERT_TRUE(f.Send(&late).ok());
  ASSERT_TRUE(f.Send(&cancelled).ok());
  f.clock.Advance(11 * kLongNs);
  cancelled.cancelled = true;
  f.device->OpenGate();
  for (TestRequest* request : {&running, &late, &cancelled}) request->Await();
  EXPECT_EQ(late.status.code, Code::kDeadlineExceeded);
  EXPECT_EQ(cancelled.status.code, Code::kCancelled);
  EXPECT_EQ(f.device->runs, 1);
  EXPECT_EQ(f.engine->metrics().Read().at(Counter::kExpired), 2);
}

TEST(Engine, QueueTimeIsMeasuredFromAdmission) {
  EngineFixture f;
  const WeightPtr weight = f.Weight("w");
  f.device->CloseGate();
  TestRequest running(weight, 1), waiting(weight, 1);
  ASSERT_TRUE(f.Send(&running).ok());
  f.device->AwaitRuns(1);
  ASSERT_TRUE(f.Send(&waiting).ok());
  f.clock.Advance(5'000'000);
  f.device->OpenGate();
  running.Await();
  waiting.Await();
  EXPECT_EQ(waiting.execution.queue_ns, 5'000'000);
}

TEST(Engine, OverflowErrorNamesTheFirstResultThatDoesNotFit) {
  EngineFixture f;
  TestRequest request(f.Weight("w", 60, 2), 1);  // column sums beyond int8
  request.outputs[0].epilogue.dtype = DataType::kInt8;
  request.outputs[0].epilogue.overflow = Overflow::kError;
  request.outputs[0].view.row_bytes = 2;
  ASSERT_TRUE(f.Send(&request).ok());
  request.Await();
  ASSERT_EQ(request.status.code, Code::kOutOfRange);
  EXPECT_EQ(request.status.reason, "OVERFLOW");
  EXPECT_EQ(request.status.metadata[0], std::pair(std::string("row"), std::string("0")));
  EXPECT_GT(f.engine->metrics().Read().at(Counter::kOutputOverflows), 0);
}

TEST(Engine, ABadSegmentFailsItsRequestOnly) {
  EngineFixture f;
  TestRequest request(f.Weight("w"), 1);
  request.activations.dtype = DataType::kF32;  // which the fake device refuses
  ASSERT_TRUE(f.Send(&request).ok());
  request.Await();
  EXPECT_EQ(request.status.code, Code::kInvalidArgument);
  EXPECT_EQ(request.status.reason, "ACTIVATION_RANGE");
  EXPECT_EQ(request.status.field, "activations.data");
}

TEST(Engine, RequestsThatWaitTogetherRunTogetherAndKeepTheirOwnAnswers) {
  EngineFixture f;
  const WeightPtr weight = f.Weight("w");
  f.device->CloseGate();
  TestRequest running(weight, 1), one(weight, 1), bad(weight, 2), three(weight, 3);
  ASSERT_TRUE(f.Send(&running).ok());
  f.device->AwaitRuns(1);
  bad.activations.dtype = DataType::kF32;
  for (TestRequest* request : {&one, &bad, &three}) ASSERT_TRUE(f.Send(request).ok());
  EXPECT_EQ(f.engine->queued_rows(0), 6);
  f.device->OpenGate();
  for (TestRequest* request : {&running, &one, &bad, &three}) request->Await();
  EXPECT_TRUE(one.status.ok());
  EXPECT_EQ(bad.status.reason, "ACTIVATION_RANGE");
  EXPECT_EQ(three.result().size(), 6u);
  EXPECT_EQ(three.result()[4], 6);
  EXPECT_EQ(three.execution.batch_rows, 6);
  EXPECT_EQ(f.device->runs, 2);
}

TEST(Engine, ALargeRequestIsCutAndItsAnswerShowsNoSeam) {
  EngineOptions options;
  options.batcher.batch_rows_max = 8;
  EngineFixture f(options);
  TestRequest large(f.Weight("w"), 21);
  ASSERT_TRUE(f.Send(&large).ok());
  large.Await();
  ASSERT_TRUE(large.status.ok()) << large.status.message;
  EXPECT_EQ(f.device->runs, 3);
  EXPECT_EQ(large.completions(), 1);
  for (size_t m = 0; m < 21; ++m) {
    EXPECT_EQ(large.result()[2 * m], 6) << m;
    EXPECT_EQ(large.result()[2 * m + 1], 9) << m;
  }
  EXPECT_EQ(large.execution.batch_rows, 8);
  EXPECT_EQ(large.execution.compute_ns, 3000) << "of all three";
}

TEST(Engine, ACutRequestThatFailsIsCompletedOnceAndNotComputedFurther) {
  EngineOptions options;
  options.batcher.batch_rows_max = 8;
  EngineFixture f(options);
  TestRequest large(f.Weight("w"), 80);
  large.activations.dtype = DataType::kF32;  // which the fake device refuses
  ASSERT_TRUE(f.Send(&large).ok());
  large.Await();
  EXPECT_EQ(large.status.reason, "ACTIVATION_RANGE");
  f.engine->Stop();
  EXPECT_EQ(large.completions(), 1);
  EXPECT_EQ(f.device->runs, 1);
  EXPECT_EQ(f.engine->queued(0), 0);
  EXPECT_EQ(f.engine->queued_rows(0), 0);
}

TEST(Engine, ADeadlineThatCannotBeKeptIsRefusedAtOnce) {
  EngineFixture f;
  const WeightPtr weight = f.Weight("w");
  f.device->predicted_ns = kLongNs;
  TestRequest hopeless(weight, 1), feasible(weight, 1);
  hopeless.deadline_ns = f.clock.NowNs() + kLongNs - 1;
  ASSERT_TRUE(f.Send(&hopeless).ok());
  EXPECT_EQ(hopeless.completions(), 1);
  EXPECT_EQ(hopeless.status.code, Code::kDeadlineExceeded);
  EXPECT_EQ(hopeless.status.reason, "DEADLINE_UNREACHABLE");
  EXPECT_EQ(f.device->runs, 0);
  feasible.deadline_ns = f.clock.NowNs() + kLongNs;
  ASSERT_TRUE(f.Send(&feasible).ok());
  feasible.Await();
  EXPECT_TRUE(feasible.status.ok()) << feasible.status.message;
}

TEST(Engine, AnAnswerThatComesTooLateIsNotSent) {
  EngineFixture f;
  const WeightPtr weight = f.Weight("w");
  f.device->CloseGate();
  TestRequest late(weight, 1), cancelled(weight, 1);
  late.deadline_ns = f.clock.NowNs() + 2 * kLongNs;
  ASSERT_TRUE(f.Send(&late).ok());
  f.device->AwaitRuns(1);
  f.clock.Advance(3 * kLongNs);
  f.device->OpenGate();
  late.Await();
  EXPECT_EQ(late.status.code, Code::kDeadlineExceeded);
  f.device->CloseGate();
  ASSERT_TRUE(f.Send(&cancelled).ok());
  f.device->AwaitRuns(2);
  cancelled.cancelled = true;
  f.device->OpenGate();
  cancelled.Await();
  EXPECT_EQ(cancelled.status.code, Code::kCancelled);
  EXPECT_EQ(f.engine->metrics().Read().at(Counter::kExpired), 2);
}

TEST(Engine, WhatIsHeldIsComputedOnRelease) {
  EngineFixture f;
  const WeightPtr weight = f.Weight("w");
  f.device->predicted_ns = kShortNs;  // would run inline
  TestRequest held(weight, 1);
  f.engine->Hold(true);
  ASSERT_TRUE(f.Send(&held).ok());
  EXPECT_EQ(f.engine->queued(0), 1);
  EXPECT_EQ(held.completions(), 0);
  f.engine->Hold(false);
  held.Await();
  EXPECT_TRUE(held.status.ok()) << held.status.message;
}

TEST(Engine, StopComputesWhatIsQueuedAndRefusesTheRest) {
  EngineFixture f;
  const WeightPtr weight = f.Weight("w");
  TestRequest first(weight, 1), second(weight, 1), after(weight, 1);
  ASSERT_TRUE(f.Send(&first).ok());
  ASSERT_TRUE(f.Send(&second).ok());
  f.engine->Stop();
  EXPECT_EQ(first.completions(), 1);
  EXPECT_EQ(second.completions(), 1);
  EXPECT_TRUE(second.status.ok());
  EXPECT_EQ(f.engine->Admit(&after).reason, "DRAINING");
}

TEST(Engine, DeletingAWeightDoesNotTouchRequestsInFlight) {
  EngineFixture f;
  auto request = std::make_unique<TestRequest>(f.Weight("w"), 1);
  f.device->CloseGate();
  ASSERT_TRUE(f.Send(request.get()).ok());
  f.device->AwaitRuns(1);
  int64_t freed = 0;
  ASSERT_TRUE(f.engine->weights().Delete("w", &freed).ok());
  EXPECT_GT(freed, 0);
  EXPECT_EQ(f.device->packed_alive, 1);
  f.device->OpenGate();
  request->Await();
  EXPECT_EQ(request->result(), (std::vector<int32_t>{6, 9}));
  f.engine->Stop();
  request.reset();
  EXPECT_EQ(f.device->packed_alive, 0);
}

}  // namespace
}  // namespace qmatmul
