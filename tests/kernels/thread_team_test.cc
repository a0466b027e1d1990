// The team of threads: every member runs each job once, nobody before it starts or after it ends, and
// callers of several threads take turns. Plain memory is written between the members on purpose: built
// with ThreadSanitizer, this test is the proof that the team orders it.
#include "kernels/cpu/thread_team.h"

#include <gtest/gtest.h>

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

namespace qmatmul::cpu {
namespace {

class ThreadTeamOf : public testing::TestWithParam<int> {};

TEST_P(ThreadTeamOf, EveryMemberRunsEachJobOnce) {
  for (const int spin_us_max : {0, 50}) {
    ThreadTeam team(GetParam(), spin_us_max);
    ASSERT_EQ(team.size(), GetParam());
    std::vector<int64_t> runs(static_cast<size_t>(team.size()), 0);  // each written by its member
    int64_t sum = 0;
    constexpr int kJobs = 2000;
    for (int i = 0; i < kJobs; ++i) {
      const int count = 1 + i % team.size();
      team.Run(count, [&runs](int member) { ++runs[static_cast<size_t>(member)]; });
      // All of them are back: their writes are seen here without any atomic.
      sum = 0;
      for (const int64_t r : runs) sum += r;
    }
    int64_t wanted = 0;
    for (int i = 0; i < kJobs; ++i) wanted += 1 + i % team.size();
    EXPECT_EQ(sum, wanted);
    EXPECT_EQ(runs[0], kJobs) << "the caller is member 0 of each job";
  }
}

TEST_P(ThreadTeamOf, MembersMeetAtTheBarrier) {
  ThreadTeam team(GetParam(), 0);
  const int count = team.size();
  TeamBarrier barrier(count);
  constexpr int kRounds = 300;
  std::vector<int> progress(static_cast<size_t>(count), 0);
  std::vector<int> seen_behind(static_cast<size_t>(count), 0);
  team.Run(count, [&](int member) {
    for (int round = 1; round <= kRounds; ++round) {
      progress[static_cast<size_t>(member)] = round;
      barrier.Wait();
      for (const int p : progress) seen_behind[static_cast<size_t>(member)] += p != round;
      barrier.Wait();  // nobody goes on before all have looked
    }
  });
  EXPECT_EQ(progress, std::vector<int>(static_cast<size_t>(count), kRounds));
  EXPECT_EQ(seen_behind, std::vector<int>(static_cast<size_t>(count), 0));
}

TEST_P(ThreadTeamOf, ConcurrentCallersTakeTurns) {
  ThreadTeam team(GetParam(), 0);
  const int count = std::min(2, team.size());  // one member jobs do not touch the team at all
  constexpr int kCallers = 4, kJobs = 300;
  int64_t jobs_of_member_1 = 0;  // unguarded: jobs of two callers must never overlap on a member
  std::vector<int64_t> done(kCallers, 0);
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c)
    callers.emplace_back([&, c] {
      for (int i = 0; i < kJobs; ++i)
        team.Run(count, [&](int member) {
          if (member == 1) ++jobs_of_member_1;
          else ++done[static_cast<size_t>(c)];
        });
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(done, std::vector<int64_t>(kCallers, kJobs));
  EXPECT_EQ(jobs_of_member_1, count > 1 ? kCallers * kJobs : 0);
}

// Members that have parked wake for the next job, and a team that nobody called ends at once.
TEST_P(ThreadTeamOf, ParkedMembersWake) {
  { const ThreadTeam idle(GetParam(), 0); }
  ThreadTeam team(GetParam(), 1);
  std::vector<int> runs(static_cast<size_t>(team.size()), 0);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far beyond the spinning
    team.Run(team.size(), [&runs](int member) { ++runs[static_cast<size_t>(member)]; });
  }
  EXPECT_EQ(runs, std::vector<int>(static_cast<size_t>(team.size()), 5));
}

// A caller that is slower or faster than its members waits for the last of them.
TEST_P(ThreadTeamOf, TheSlowestMemberIsWaitedFor) {
  ThreadTeam team(GetParam(), 0);
  for (int slow = 0; slow < team.size(); ++slow) {
    std::vector<int> finished(static_cast<size_t>(team.size()), 0);
    team.Run(team.size(), [&](int member) {
      if (member == slow) std::this_thread::sleep_for(std::chrono::milliseconds(3));
      finished[static_cast<size_t>(member)] = 1;
    });
    EXPECT_EQ(finished, std::vector<int>(static_cast<size_t>(team.size()), 1)) << slow;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadTeamOf, testing::Range(1, 5));

// One member leaves the calling thread alone: its job may even call the team again.
TEST(ThreadTeam, OneMemberNeverLeavesTheCaller) {
  ThreadTeam team(3, 0);
  const std::thread::id caller = std::this_thread::get_id();
  int depth = 0;
  team.Run(3, [&](int member) {
    if (member != 0) return;
    team.Run(1, [&](int inner) {
      EXPECT_EQ(inner, 0);
      EXPECT_EQ(std::this_thread::get_id(), caller);
      ++depth;
    });
  });
  EXPECT_EQ(depth, 1);
}

// Keeps this thread, and those it starts, on the processor it runs on.
class OneProcessor {
 public:
  OneProcessor() {
    sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
  }
  ~OneProcessor() { sched_setaffinity(0, sizeof before_, &before_); }

 private:
  cpu_set_t before_;
};

double ProcessorSeconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// All on one processor: whoever spins keeps the others from what it waits for. These would burn a
// scheduler's slice (milliseconds) a job, up to the 50 ms that they may.
TEST(ThreadTeam, NobodySpinsInTheOthersWay) {
  const OneProcessor here;
  ThreadTeam team(3, 50'000);
  std::vector<int> runs(3, 0), shared(3, 0);
  team.Run(3, [](int) {});  // everybody was seen once
  const double before = ProcessorSeconds();
  for (int i = 0; i < 300; ++i)
    team.Run(3, [&](int member) {
      ++runs[static_cast<size_t>(member)];
      shared[static_cast<size_t>(member)] += team.SharesProcessor(member, 3);
    });
  EXPECT_LT(ProcessorSeconds() - before, 0.3);
  EXPECT_EQ(runs, std::vector<int>(3, 300));
  EXPECT_EQ(shared, std::vector<int>(3, 300));
  bool alone = true;
  team.Run(1, [&](int member) { alone = !team.SharesProcessor(member, 1); });
  EXPECT_TRUE(alone);
}

}  // namespace
}  // namespace qmatmul::cpu
