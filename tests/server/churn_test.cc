// Register, MatMul and delete of one name at once: every reply is exact for one of the contents the
// name ever had, or NOT_FOUND. Meant for the tsan preset, true in all.
#include <gtest/gtest.h>

#include <thread>

#include "tests/server/test_server.h"

namespace qmatmul {
namespace {

constexpr int64_t kK = 32;
constexpr int64_t kN = 16;
constexpr int64_t kRows = 2;
constexpr int kContents = 4;
constexpr int kCallers = 8;
constexpr int kReplies = 12'000;
constexpr int kExactPerDeletion = 150;

// One name, its contents in turn, and what callers got of it.
class Churn : public testing::Test {
 protected:
  void SetUp() override {
    for (uint32_t i = 0; i < kContents; ++i) {
      contents_.push_back(PatternBytes(kK * kN, i));
      v1::RegisterWeightResponse reply;
      ASSERT_TRUE(Bind(i, &reply));
      expected_[reply.weight().digest()] = Int32Product(input_, contents_.back(), kRows, kK, kN);
    }
  }

  bool Bind(uint32_t content, v1::RegisterWeightResponse* reply = nullptr) {
    v1::WeightSpec spec = Int8Message("w", kK, kN);
    spec.set_replace(true);
    return server_.Register(spec, contents_[content % kContents], reply).ok();
  }
  void KeepBinding(uint32_t first) {
    for (uint32_t i = first; !stop_; ++i)
      if (Bind(i)) ++registrations_;
  }
  // One deletion for so many exact replies, so that a slow machine deletes more slowly too.
  void KeepDeleting() {
    for (int next = kExactPerDeletion; !stop_;) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      if (exact_ < next) continue;
      if (server_.Delete("weights/w").ok()) ++deletions_;
      next = exact_ + kExactPerDeletion;
    }
  }
  void Call() {
    const v1::MatMulRequest request = Int8Request("w", kRows, kK, input_);
    while (left_.fetch_sub(1) > 0) {
      v1::MatMulResponse reply;
      const grpc::Status status = server_.MatMul(request, &reply);
      if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
        ++not_found_;
        std::this_thread::sleep_for(std::chrono::microseconds(500));  // leave room to register
      } else if (!status.ok()) {
        ++failed_;
        ADD_FAILURE() << status.error_code() << " " << status.error_message();
      } else {
        // The digest in the reply names the content that the numbers must be of: no mix.
        const auto row = expected_.find(reply.outputs(0).execution().digest());
        const bool right = row != expected_.end() && row->second == reply.outputs(0).data();
        ++(right ? exact_ : wrong_);
      }
    }
  }

  TestServer server_;
  const std::string input_ = PatternBytes(kRows * kK, 100);
  std::vector<std::string> contents_;
  std::map<std::string, std::string> expected_;  // by digest; read only once callers run
  std::atomic<int> left_{kReplies}, exact_{0}, not_found_{0}, wrong_{0}, failed_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> registrations_{0}, deletions_{0};
};

TEST_F(Churn, EveryReplyIsExactOrNotFound) {
  std::vector<std::thread> churners, callers;
  for (uint32_t t = 0; t < 2; ++t) churners.emplace_back([this, t] { KeepBinding(t); });
  churners.emplace_back([this] { KeepDeleting(); });
  for (int t = 0; t < kCallers; ++t) callers.emplace_back([this] { Call(); });
  for (std::thread& caller : callers) caller.join();
  stop_ = true;
  for (std::thread& churner : churners) churner.join();

  std::printf(
      "churn: %d exact, %d NOT_FOUND, %d wrong, %d failed; %ld registrations, %ld deletions\n",
      exact_.load(), not_found_.load(), wrong_.load(), failed_.load(), registrations_.load(),
      deletions_.load());
  EXPECT_EQ(wrong_, 0);
  EXPECT_EQ(failed_, 0);
  EXPECT_EQ(exact_ + not_found_, kReplies);
  EXPECT_GE(exact_, kReplies / 2);
  EXPECT_GT(registrations_, 0);
  EXPECT_GT(deletions_, 0);

  (void)server_.Delete("weights/w");
  EXPECT_TRUE(server_.server->Shutdown());
  EXPECT_EQ(server_.server->engine().weights().bytes(0), 0) << "to the byte";
}

}  // namespace
}  // namespace qmatmul
