// Which rows run next: joined, cut, in turns, within limits, and never those of the dead.
#include "server/engine/batcher.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "tests/engine/engine_fixture.h"

namespace qmatmul {
namespace {

constexpr int64_t kRowNs = 200'000;

// A batcher whose predictor charges kRowNs a row, and the weights that its requests need.
struct BatcherFixture {
  explicit BatcherFixture(BatcherLimits limits = {})
      : batcher(limits, f.clock, [](const Request&, int64_t rows) { return rows * kRowNs; }) {}

  // The rows that the next batch has of each request, in order of their places.
  std::vector<BatchPiece> Take() {
    Batch batch;
    EXPECT_TRUE(batcher.Take(&batch, &dropped));
    batcher.Done();
    return batch.pieces;
  }

  EngineFixture f;
  WeightPtr w = f.Weight("w"), v = f.Weight("v", 3, 2, 7);
  Batcher batcher;
  std::vector<Request*> dropped;
};

std::unique_ptr<TestRequest> Rows(const WeightPtr& weight, int64_t rows, uint64_t client = 0) {
  auto request = std::make_unique<TestRequest>(weight, rows);
  request->client = client;
  return request;
}

TEST(Batcher, JoinsWhatHasTheSameWeightsWhateverItsTypes) {
  BatcherFixture b;
  const auto one = Rows(b.w, 1), two = Rows(b.w, 2), other = Rows(b.v, 3);
  two->outputs[0].epilogue.dtype = DataType::kF32;
  for (Request* r : {one.get(), other.get(), two.get()}) ASSERT_TRUE(b.batcher.Push(r).ok());
  EXPECT_EQ(b.batcher.queued(), 3);
  EXPECT_EQ(b.batcher.queued_rows(), 6);
  const auto first = b.Take();
  ASSERT_EQ(first.size(), 2u);
  EXPECT_EQ(first[0].request, one.get());
  EXPECT_EQ(first[1].request, two.get());
  const auto second = b.Take();
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].request, other.get());
  EXPECT_EQ(b.batcher.queued(), 0);
  EXPECT_EQ(b.batcher.backlog_ns(), 0);
}

TEST(Batcher, KeepsApartWhatCannotShareARun) {
  BatcherFixture b;
  const auto plain = Rows(b.w, 1), forced = Rows(b.w, 1), weight_only = Rows(b.w, 1),
             pair = Rows(b.w, 1), chain = Rows(b.w, 1);
  forced->kernel = kFakeKernel;
  weight_only->arithmetic = Arithmetic::kW8A32;
  pair->weights.push_back(b.v);
  chain->then.push_back({b.v, Arithmetic::kW8A8});
  for (TestRequest* r : {plain.get(), forced.get(), weight_only.get(), pair.get(), chain.get()})
    ASSERT_TRUE(b.batcher.Push(r).ok());
  for (int i = 0; i < 5; ++i) EXPECT_EQ(b.Take().size(), 1u);
}

TEST(Batcher, WeightsTakeTurns) {
  BatcherLimits limits;
  limits.batch_rows_max = 2;
  BatcherFixture b(limits);
  std::vector<std::unique_ptr<TestRequest>> many;
  for (int i = 0; i < 6; ++i) {
    many.push_back(Rows(b.w, 1));
    ASSERT_TRUE(b.batcher.Push(many.back().get()).ok());
  }
  const auto other = Rows(b.v, 1);
  ASSERT_TRUE(b.batcher.Push(other.get()).ok());
  EXPECT_EQ(b.Take().front().request, many[0].get());
  EXPECT_EQ(b.Take().front().request, other.get()) << "not behind all six";
  EXPECT_EQ(b.Take().front().request, many[2].get());
}

TEST(Batcher, ClientsOfOneWeightTakeTurns) {
  BatcherLimits limits;
  limits.batch_rows_max = 4;
  BatcherFixture b(limits);
  std::vector<std::unique_ptr<TestRequest>> greedy;
  for (int i = 0; i < 8; ++i) {
    greedy.push_back(Rows(b.w, 1, /*client=*/1));
    ASSERT_TRUE(b.batcher.Push(greedy.back().get()).ok());
  }
  const auto modest = Rows(b.w, 1, /*client=*/2);
  ASSERT_TRUE(b.batcher.Push(modest.get()).ok());
  const auto pieces = b.Take();
  ASSERT_EQ(pieces.size(), 4u);
  EXPECT_EQ(pieces[0].request, greedy[0].get());
  EXPECT_EQ(pieces[1].request, modest.get());
  EXPECT_EQ(pieces[2].request, greedy[1].get());
}

TEST(Batcher, ALargeRequestIsCutSoThatASmallOneWaitsForATile) {
  BatcherLimits limits;
  limits.tile_ns_max = 16 * kRowNs;
  limits.batch_ns_max = 128 * kRowNs;
  BatcherFixture b(limits);
  const auto large = Rows(b.w, 300, 1), small = Rows(b.w, 2, 2);
  ASSERT_TRUE(b.batcher.Push(large.get()).ok());
  const auto alone = b.Take();
  ASSERT_EQ(alone.size(), 1u);
  EXPECT_EQ(alone[0].rows, 128) << "nobody else is there: as much as a batch may cost";
  ASSERT_TRUE(b.batcher.Push(small.get()).ok());
  const auto mixed = b.Take();
  ASSERT_EQ(mixed.size(), 2u);
  EXPECT_EQ(mixed[0].request, small.get()) << "it is the small one's turn";
  EXPECT_EQ(mixed[1].row_begin, 128);
  EXPECT_EQ(mixed[1].rows, 16);
  EXPECT_EQ(b.Take()[0].rows, 16) << "another small one may come";
  b.f.clock.Advance(2'000'000'000);
  const auto rest = b.Take();
  EXPECT_EQ(rest[0].row_begin, 160);
  EXPECT_EQ(rest[0].rows, 128);
  EXPECT_EQ(b.Take()[0].rows, 12);
  EXPECT_EQ(b.batcher.queued(), 0);
}

TEST(Batcher, BesideATileEverybodyHasAsMuchAsIt) {
  BatcherLimits limits;
  limits.tile_ns_max = 16 * kRowNs;
  limits.batch_ns_max = 128 * kRowNs;
  BatcherFixture b(limits);
  const auto giant = Rows(b.w, 1000, 1), medium = Rows(b.w, 100, 2);
  std::vector<std::unique_ptr<TestRequest>> small;
  for (int i = 0; i < 50; ++i) small.push_back(Rows(b.w, 1, 3));
  for (Request* r : {giant.get(), medium.get()}) ASSERT_TRUE(b.batcher.Push(r).ok());
  for (const auto& r : small) ASSERT_TRUE(b.batcher.Push(r.get()).ok());
  std::map<uint64_t, int64_t> rows;  // by client
  for (const BatchPiece& piece : b.Take()) rows[piece.request->client] += piece.rows;
  EXPECT_EQ(rows[1], 16) << "a tile of the giant";
  EXPECT_EQ(rows[2], 100) << "what fits in a batch is not cut";
  EXPECT_GE(rows[3], 12) << "as much as a batch still holds";
  rows.clear();
  for (const BatchPiece& piece : b.Take()) rows[piece.request->client] += piece.rows;
  EXPECT_EQ(rows[1], 16);
  EXPECT_EQ(rows[3], 16);
}

TEST(Batcher, LargeRequestsTakeTurnsWithTheTile) {
  BatcherLimits limits;
  limits.tile_ns_max = 16 * kRowNs;
  limits.batch_ns_max = 128 * kRowNs;
  BatcherFixture b(limits);
  const auto one = Rows(b.w, 1000, 1), two = Rows(b.w, 1000, 2), small = Rows(b.w, 1, 3);
  for (Request* r : {one.get(), two.get(), small.get()}) ASSERT_TRUE(b.batcher.Push(r).ok());
  std::map<uint64_t, int64_t> rows;  // by client
  for (int i = 0; i < 6; ++i)
    for (const BatchPiece& piece : b.Take()) rows[piece.request->client] += piece.rows;
  EXPECT_EQ(rows[1], 48);
  EXPECT_EQ(rows[2], 48);
}

TEST(Batcher, EveryRowIsTakenOnce) {
  BatcherLimits limits;
  limits.batch_rows_max = 48;
  limits.tile_ns_max = 16 * kRowNs;
  BatcherFixture b(limits);
  std::vector<std::unique_ptr<TestRequest>> requests;
  for (int i = 0; i < 60; ++i) {
    requests.push_back(
        Rows(i % 3 == 0 ? b.v : b.w, 1 + (i * 37) % 101, static_cast<uint64_t>(i % 5)));
    ASSERT_TRUE(b.batcher.Push(requests.back().get()).ok());
  }
  std::map<Request*, int64_t> next_row;
  while (b.batcher.queued() > 0) {
    int64_t rows = 0;
    for (const BatchPiece& piece : b.Take()) {
      EXPECT_EQ(piece.row_begin, next_row[piece.request]);
      next_row[piece.request] += piece.rows;
      rows += piece.rows;
    }
    EXPECT_LE(rows, 48);
    EXPECT_GT(rows, 0);
  }
  for (const auto& request : requests)
    EXPECT_EQ(next_row[request.get()], request->activations.rows);
  EXPECT_EQ(b.batcher.queued_rows(), 0);
  EXPECT_EQ(b.batcher.backlog_ns(), 0);
}

TEST(Batcher, TheDeadAreDroppedAndNotTaken) {
  BatcherFixture b;
  const auto late = Rows(b.w, 1), gone = Rows(b.w, 1), alive = Rows(b.w, 1);
  late->deadline_ns = b.f.clock.NowNs() + 100 * kRowNs;
  for (TestRequest* r : {late.get(), gone.get(), alive.get()}) ASSERT_TRUE(b.batcher.Push(r).ok());
  b.f.clock.Advance(101 * kRowNs);
  gone->cancelled = true;
  const auto pieces = b.Take();
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].request, alive.get());
  EXPECT_EQ(b.dropped, (std::vector<Request*>{late.get(), gone.get()}));
}

TEST(Batcher, LimitsRefuseAndNameThemselves) {
  BatcherLimits limits;
  limits.rows_max = 20;
  limits.weight_rows_max = 10;
  limits.requests_max = 4;
  BatcherFixture b(limits);
  const auto nine = Rows(b.w, 9), two = Rows(b.w, 2), huge = Rows(b.v, 30);
  ASSERT_TRUE(b.batcher.Push(nine.get()).ok());
  Status status = b.batcher.Push(two.get());
  EXPECT_EQ(status.reason, "QUEUE_FULL");
  EXPECT_NE(status.message.find("queue_weight_rows_max is 10"), std::string::npos)
      << status.message;
  EXPECT_EQ(status.retry_after_ns, 9 * kRowNs) << "what is ahead";
  status = b.batcher.Push(huge.get());
  EXPECT_NE(status.message.find("queue_rows_max is 20"), std::string::npos) << status.message;
  b.Take();
  EXPECT_TRUE(b.batcher.Push(huge.get()).ok()) << "one may always wait";
}

// So that a server that was overloaded is itself again as soon as the load is gone.
TEST(Batcher, WorkThatWaitsIsLimitedByItsTime) {
  BatcherLimits limits;
  limits.queue_ns_max = 100 * kRowNs;
  BatcherFixture b(limits);
  std::vector<std::unique_ptr<TestRequest>> few;
  for (int64_t i = 0; i < kFewRequests; ++i) {
    few.push_back(Rows(b.w, 3));
    ASSERT_TRUE(b.batcher.Push(few.back().get()).ok()) << "a few may wait however long they take";
  }
  const auto more = Rows(b.w, 1);
  const Status status = b.batcher.Push(more.get());
  EXPECT_EQ(status.reason, "QUEUE_FULL");
  EXPECT_NE(status.message.find("queue_ms_max"), std::string::npos) << status.message;
  EXPECT_EQ(status.retry_after_ns, 3 * kFewRequests * kRowNs);
  b.Take();
  b.Take();
  EXPECT_TRUE(b.batcher.Push(more.get()).ok());
}

TEST(Batcher, AGiantOfAnotherClientIsNoReasonToRefuse) {
  BatcherLimits limits;
  limits.queue_ns_max = 100 * kRowNs;
  BatcherFixture b(limits);
  const auto giant = Rows(b.w, 1000, /*client=*/1);
  ASSERT_TRUE(b.batcher.Push(giant.get()).ok());
  std::vector<std::unique_ptr<TestRequest>> small;
  // The giant has as much before each of them as their own client has, and no more.
  for (int i = 0; i < 50; ++i) {
    small.push_back(Rows(b.w, 1, /*client=*/2));
    ASSERT_TRUE(b.batcher.Push(small.back().get()).ok()) << i;
  }
  for (int i = 50; i < 63; ++i)
    small.push_back(Rows(b.w, 1, /*client=*/3 + static_cast<uint64_t>(i)));
  for (size_t i = 50; i < small.size(); ++i)
    ASSERT_TRUE(b.batcher.Push(small[i].get()).ok()) << "few wait so far";
  EXPECT_EQ(b.batcher.queued(), kFewRequests);
  const auto fair = Rows(b.w, 1, /*client=*/99), greedy = Rows(b.w, 1, /*client=*/2);
  EXPECT_TRUE(b.batcher.Push(fair.get()).ok());
  EXPECT_EQ(b.batcher.Push(greedy.get()).reason, "QUEUE_FULL");
}

TEST(Batcher, BytesOfOneWeightAreLimited) {
  BatcherLimits limits;
  limits.weight_bytes_max = 40;
  BatcherFixture b(limits);
  const auto one = Rows(b.w, 3), two = Rows(b.w, 1), other = Rows(b.v, 1);  // 11 bytes a row
  ASSERT_TRUE(b.batcher.Push(one.get()).ok());
  const Status status = b.batcher.Push(two.get());
  EXPECT_NE(status.message.find("queue_weight_bytes_max is 40"), std::string::npos)
      << status.message;
  EXPECT_TRUE(b.batcher.Push(other.get()).ok());
}

TEST(Batcher, ADelayWaitsForMoreAndNoLonger) {
  BatcherLimits limits;
  limits.delay_ns_max = 20'000'000;
  limits.batch_rows_max = 2;
  BatcherFixture b(limits);
  const auto one = Rows(b.w, 1), two = Rows(b.w, 1), three = Rows(b.w, 1);
  ASSERT_TRUE(b.batcher.Push(one.get()).ok());
  std::thread later([&] { ASSERT_TRUE(b.batcher.Push(two.get()).ok()); });
  EXPECT_EQ(b.Take().size(), 2u) << "full, so it did not wait for the clock, which stands still";
  later.join();
  ASSERT_TRUE(b.batcher.Push(three.get()).ok());
  b.f.clock.Advance(limits.delay_ns_max);
  EXPECT_EQ(b.Take().size(), 1u);
}

TEST(Batcher, HeldRequestsWaitUntilReleasedOrStopped) {
  BatcherFixture b;
  const auto one = Rows(b.w, 1), two = Rows(b.w, 1);
  std::atomic<bool> released{false};
  b.batcher.Hold(true);
  ASSERT_TRUE(b.batcher.Push(one.get()).ok());
  std::thread taker([&] {
    EXPECT_EQ(b.Take().size(), 2u) << "what came while held is taken in";
    EXPECT_TRUE(released);
  });
  ASSERT_TRUE(b.batcher.Push(two.get()).ok());
  released = true;
  b.batcher.Hold(false);
  taker.join();
  const auto last = Rows(b.w, 1);
  b.batcher.Hold(true);
  ASSERT_TRUE(b.batcher.Push(last.get()).ok());
  b.batcher.Stop();
  EXPECT_EQ(b.Take().size(), 1u) << "a stop hands out what is held";
}

TEST(Batcher, StopHandsOutTheRestAndRefusesMore) {
  BatcherFixture b;
  const auto one = Rows(b.w, 1), two = Rows(b.w, 1);
  ASSERT_TRUE(b.batcher.Push(one.get()).ok());
  b.batcher.Stop();
  EXPECT_EQ(b.batcher.Push(two.get()).reason, "DRAINING");
  EXPECT_EQ(b.Take().size(), 1u);
  Batch batch;
  EXPECT_FALSE(b.batcher.Take(&batch, &b.dropped));
}

TEST(Batcher, OthersTurnsCountForADeadlineAndNoMore) {
  BatcherLimits limits;
  limits.batch_ns_max = 10 * kRowNs;
  BatcherFixture b(limits);
  const auto crowd = Rows(b.v, 1000), first = Rows(b.w, 1), hopeless = Rows(b.w, 1);
  ASSERT_TRUE(b.batcher.Push(crowd.get()).ok());
  first->deadline_ns = b.f.clock.NowNs() + 20 * kRowNs;
  EXPECT_TRUE(b.batcher.Push(first.get()).ok()) << "the crowd takes one turn, not all it needs";
  hopeless->deadline_ns = b.f.clock.NowNs() + 5 * kRowNs;
  EXPECT_EQ(b.batcher.Push(hopeless.get()).reason, "DEADLINE_UNREACHABLE");
}

}  // namespace
}  // namespace qmatmul
