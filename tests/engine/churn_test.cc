// Register, multiply and delete of one name at once, through the engine alone: the tsan preset sees every
// thread and every lock of ours, and nothing is suppressed.
#include <gtest/gtest.h>

#include <thread>

#include "tests/engine/engine_fixture.h"

namespace qmatmul {
namespace {

constexpr int64_t kK = 16;
constexpr int64_t kN = 8;
constexpr int kContents = 4;
constexpr int kCallers = 4;
constexpr int kCallsEach = 2'500;

// What a row of ones gives.
std::vector<int32_t> ColumnSums(const std::vector<std::byte>& upload) {
  std::vector<int32_t> sums(kN);
  for (size_t i = 0; i < upload.size(); ++i) sums[i % kN] += static_cast<int8_t>(upload[i]);
  return sums;
}

TEST(Churn, EveryAnswerIsOfOneContent) {
  EngineFixture f;
  WeightStore& store = f.engine->weights();
  const WeightSpec spec = Int8Spec(kK, kN);
  std::vector<std::vector<std::byte>> uploads;
  std::map<std::string, std::vector<int32_t>> expected;  // by digest; read only once callers run
  for (int i = 0; i < kContents; ++i) {
    uploads.push_back(UploadBytes(spec, i * 31));
    RegisterResult result;
    ASSERT_TRUE(f.Register({"w", spec, "", true, ""}, uploads.back(), &result).ok());
    expected[result.weight->content->digest] = ColumnSums(uploads.back());
  }
  std::atomic<bool> stop{false};
  std::atomic<int> exact{0}, wrong{0}, missing{0};
  std::vector<std::thread> churners, callers;
  churners.emplace_back([&] {
    RegisterResult result;
    for (size_t i = 0; !stop; ++i)
      if (!f.Register({"w", spec, "", true, ""}, uploads[i % kContents], &result).ok()) ++wrong;
  });
  churners.emplace_back([&] {
    int64_t freed = 0;
    for (int next = 50; !stop; std::this_thread::yield())
      if (exact >= next && store.Delete("w", &freed).ok()) next = exact + 50;
  });
  for (int t = 0; t < kCallers; ++t)
    callers.emplace_back([&, t] {
      for (int done = 0; done < kCallsEach;) {
        const WeightPtr weight = store.Find("w");
        if (weight == nullptr) {
          ++missing;
          std::this_thread::yield();
          continue;
        }
        f.device->predicted_ns = (done + t) % 2 == 0 ? 1'000 : 1'000'000;  // inline and queued
        TestRequest request(weight, 1);
        ASSERT_TRUE(f.Send(&request).ok());
        request.Await();
        ++(request.status.ok() && request.result() == expected.at(weight->content->digest) ? exact
                                                                                           : wrong);
        ++done;
      }
    });
  for (std::thread& caller : callers) caller.join();
  stop = true;
  for (std::thread& churner : churners) churner.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(exact, kCallers * kCallsEach);
  int64_t freed = 0;
  (void)store.Delete("w", &freed);
  f.engine->Stop();
  EXPECT_EQ(store.bytes(0), 0) << "to the byte";
  EXPECT_EQ(f.device->packed_alive, 0);
}

}  // namespace
}  // namespace qmatmul
