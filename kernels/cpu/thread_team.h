// A persistent team of threads for one device. The caller is member 0, so a team of one never
// leaves the calling thread. Idle members spin for a bounded time and then park on a futex.
//
// Nobody spins for one who is queued on the same processor, as happens where all are busy: the wait would
// last exactly as long as the spinning.
//
// Why not a thread a call: spawning one costs more than a small product.
//
// Thread-safety: Run may be called from any thread; one job runs at a time, others wait their turn.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace qmatmul::cpu {

// All members of one job wait for each other. Reusable. Spins briefly, then parks; parks at once when told
// not to spin.
class TeamBarrier {
 public:
  explicit TeamBarrier(int members) : members_(members) {}
  void Wait(bool may_spin = true);

 private:
  const int members_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> phase_{0};
};

// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): left_ has a cache line of its own
class ThreadTeam {
 public:
  ThreadTeam(int size, int spin_us_max);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }
  // Calls job(member) for members 0 … count - 1 at once, 0 on this thread, and returns when all
  // have. 1 <= count <= size(). With count 1 the team is not touched and nothing is waited for.
  void Run(int count, const std::function<void(int member)>& job);
  // Within a job of `count` members: whether another of them was last seen on this thread's processor, so
  // that it can only go on when this one makes room.
  bool SharesProcessor(int member, int count) const;

 private:
  struct alignas(64) Worker {
    std::atomic<uint32_t> ticket{0};  // moves on for each job, and at the end
    std::atomic<int> processor{-1};   // where it was last seen
    std::thread thread;
  };
  void Loop(Worker* worker, int member);

  const int spin_us_max_;
  std::mutex running_;
  std::vector<std::unique_ptr<Worker>> workers_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<int> caller_processor_{-1};
  alignas(64) std::atomic<int> left_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace qmatmul::cpu
