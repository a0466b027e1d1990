// Register, MatMul and delete of one name at once: every reply is exact for one of the contents the
// name ever had, or NOT_FOUND. Meant for the tsan preset, true in all.
#include <gtest/gtest.h>

#include <thread>

#include "tests/support/test_server.h"

namespace qmatmul {
namespace {

constexpr int64_t kK = 32;
constexpr int64_t kN = 16;
constexpr int64_t kRows = 2;
constexpr int kContents = 4;
constexpr int kCallers = 8;
constexpr int kReplies = 12'000;

TEST(Churn, EveryReplyIsExactOrNotFound) {
  TestServer server;
  std::vector<std::string> contents, expected;
  const std::string a = PatternBytes(kRows * kK, 100);
  for (uint32_t i = 0; i < kContents; ++i) {
    contents.push_back(PatternBytes(kK * kN, i));
    expected.push_back(Int32Product(a, contents.back(), kRows, kK, kN));
  }
  std::map<std::string, std::string>
      expected_by_digest;  // filled before the callers start, then read only
  for (int i = 0; i < kContents; ++i) {
    v1::WeightSpec spec = Int8Message("w", kK, kN);
    spec.set_replace(true);
    v1::RegisterWeightResponse reply;
    ASSERT_TRUE(server.Register(spec, contents[static_cast<size_t>(i)], &reply).ok());
    expected_by_digest[reply.weight().digest()] = expected[static_cast<size_t>(i)];
  }

  std::atomic<int> left{kReplies}, exact{0}, not_found{0}, wrong{0}, failed{0};
  std::atomic<bool> stop{false};
  std::atomic<int64_t> registrations{0}, deletions{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t)
    threads.emplace_back([&, t] {
      for (uint32_t i = static_cast<uint32_t>(t); !stop; ++i) {
        v1::WeightSpec spec = Int8Message("w", kK, kN);
        spec.set_replace(true);
        if (server.Register(spec, contents[i % kContents]).ok()) ++registrations;
      }
    });
  threads.emplace_back([&] {
    while (!stop) {
      if (server.Delete("weights/w").ok()) ++deletions;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  std::vector<std::thread> callers;
  for (int t = 0; t < kCallers; ++t)
    callers.emplace_back([&] {
      const v1::MatMulRequest request = Int8Request("w", kRows, kK, a);
      while (left.fetch_sub(1) > 0) {
        v1::MatMulResponse reply;
        const grpc::Status status = server.MatMul(request, &reply);
        if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
          ++not_found;
        } else if (!status.ok()) {
          ++failed;
          ADD_FAILURE() << status.error_code() << " " << status.error_message();
        } else {
          // The digest in the reply names the content the numbers must be of: no mix.
          const auto row = expected_by_digest.find(reply.outputs(0).execution().digest());
          const bool right =
              row != expected_by_digest.end() && row->second == reply.outputs(0).data();
          ++(right ? exact : wrong);
        }
      }
    });
  for (std::thread& caller : callers) caller.join();
  stop = true;
  for (std::thread& thread : threads) thread.join();

  std::printf(
      "churn: %d exact, %d NOT_FOUND, %d wrong, %d failed; %ld registrations, %ld deletions\n",
      exact.load(), not_found.load(), wrong.load(), failed.load(), registrations.load(),
      deletions.load());
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(exact + not_found, kReplies);
  EXPECT_GE(exact, kReplies / 2);
  EXPECT_GT(registrations, 0);
  EXPECT_GT(deletions, 0);

  (void)server.Delete("weights/w");
  EXPECT_TRUE(server.server->Shutdown());
  EXPECT_EQ(server.server->engine().weights().bytes(0), 0) << "to the byte";
}

}  // namespace
}  // namespace qmatmul
