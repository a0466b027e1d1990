#include "server/engine/metrics.h"

#include <gtest/gtest.h>

#include <thread>

namespace qmatmul {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

TEST(Metrics, ThreadsAddUp) {
  Metrics metrics(std::vector<Metrics::KernelKey>{{"cpu", "k"}});
  constexpr int kThreads = 8;
  constexpr int kTimes = 10'000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < kTimes; ++i) {
        metrics.Add(Counter::kRows, 2);
        metrics.Observe(Histogram::kComputeNs, 30'000);
        metrics.AddRun("cpu", "k", 1, 4, 2);
      }
    });
  for (std::thread& thread : threads) thread.join();
  const MetricsReading reading = metrics.Read();
  EXPECT_EQ(reading.at(Counter::kRows), 2 * kThreads * kTimes);
  EXPECT_EQ(reading.at(Histogram::kComputeNs).count(), kThreads * kTimes);
  EXPECT_EQ(reading.at(Histogram::kComputeNs).sum, int64_t{30'000} * kThreads * kTimes);
  EXPECT_EQ(reading.kernels[0].ops, 4 * kThreads * kTimes);
}

TEST(Metrics, BucketsHoldTheirUpperBound) {
  Metrics metrics({});
  const auto bounds = BucketBounds(Histogram::kQueueNs);
  EXPECT_EQ(bounds[0], 10'000);
  EXPECT_EQ(bounds[1], 18'000);
  metrics.Observe(Histogram::kQueueNs, bounds[3]);      // in bucket 3
  metrics.Observe(Histogram::kQueueNs, bounds[3] + 1);  // in bucket 4
  metrics.Observe(Histogram::kQueueNs, bounds.back() + 1);
  const HistogramReading reading = metrics.Read().at(Histogram::kQueueNs);
  EXPECT_EQ(reading.counts[3], 1);
  EXPECT_EQ(reading.counts[4], 1);
  EXPECT_EQ(reading.counts[kBuckets], 1);
}

TEST(Metrics, GopsLooksBackTenSeconds) {
  Metrics metrics(std::vector<Metrics::KernelKey>{{"cpu", "k"}});
  int64_t now_ns = 0;
  metrics.Tick(now_ns);
  metrics.AddRun("cpu", "k", 1, 1000, 10);
  EXPECT_DOUBLE_EQ(metrics.Read().kernels[0].gops_10s, 100.0);
  for (int i = 0; i < 10; ++i) metrics.Tick(now_ns += kSecond);
  metrics.AddRun("cpu", "k", 1, 1000, 100);
  EXPECT_DOUBLE_EQ(metrics.Read().kernels[0].gops_10s, 2000.0 / 110);
  metrics.Tick(now_ns += kSecond);  // the first run was before the window now
  EXPECT_DOUBLE_EQ(metrics.Read().kernels[0].gops_10s, 10.0);
  for (int i = 0; i < 11; ++i) metrics.Tick(now_ns += kSecond);
  EXPECT_DOUBLE_EQ(metrics.Read().kernels[0].gops_10s, 0.0) << "idle";
  EXPECT_DOUBLE_EQ(metrics.Read().kernels[0].gops(), 2000.0 / 110) << "the whole life";
}

TEST(Metrics, ReasonsAreCountedAndCapped) {
  Metrics metrics({});
  metrics.Reject("SHAPE");
  metrics.Reject("SHAPE");
  EXPECT_EQ(metrics.Read().rejected.at("SHAPE"), 2);
  for (int i = 0; i < 1000; ++i) metrics.Reject(std::to_string(i));
  EXPECT_LE(metrics.Read().rejected.size(), 129u);
  EXPECT_GT(metrics.Read().rejected.at("OTHER"), 0);
}

TEST(Metrics, OffMeansNothingIsCounted) {
  Metrics metrics(std::vector<Metrics::KernelKey>{{"cpu", "k"}}, /*enabled=*/false);
  metrics.Add(Counter::kRows);
  metrics.Observe(Histogram::kQueueNs, 1);
  metrics.AddRun("cpu", "k", 1, 1, 1);
  const MetricsReading reading = metrics.Read();
  EXPECT_EQ(reading.at(Counter::kRows), 0);
  EXPECT_EQ(reading.at(Histogram::kQueueNs).count(), 0);
  EXPECT_EQ(reading.kernels[0].runs, 0);
}

}  // namespace
}  // namespace qmatmul
