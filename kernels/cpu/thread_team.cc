#include "kernels/cpu/thread_team.h"

#include <chrono>
#include <string>

#include <pthread.h>
#include <sched.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace qmatmul::cpu {
namespace {

// About 20 µs: covers the uneven end of a job; longer only burns a core that somebody else may want.
constexpr int kWaitSpins = 1000;
// Looks at who waits for whom cost little beside this many pauses.
constexpr int kLookEvery = 64;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void TeamBarrier::Wait(bool may_spin) {
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_acq_rel);
    phase_.notify_all();
    return;
  }
  for (int i = 0; may_spin && i < kWaitSpins; ++i) {
    if (phase_.load(std::memory_order_acquire) != phase) return;
    Pause();
  }
  while (phase_.load(std::memory_order_acquire) == phase)
    phase_.wait(phase, std::memory_order_acquire);
}

ThreadTeam::ThreadTeam(int size, int spin_us_max) : spin_us_max_(spin_us_max) {
  for (int member = 1; member < size; ++member) {
    auto worker = std::make_unique<Worker>();
    Worker* w = worker.get();
    w->thread = std::thread([this, w, member] { Loop(w, member); });
    pthread_setname_np(w->thread.native_handle(), ("qmm-team-" + std::to_string(member)).c_str());
    workers_.push_back(std::move(worker));
  }
}

ThreadTeam::~ThreadTeam() {
  stop_.store(true, std::memory_order_release);
  for (auto& worker : workers_) {
    worker->ticket.fetch_add(1, std::memory_order_release);
    worker->ticket.notify_one();
    worker->thread.join();
  }
}

void ThreadTeam::Run(int count, const std::function<void(int member)>& job) {
  if (count <= 1) return job(0);
  std::lock_guard lock(running_);
  job_ = &job;
  caller_processor_.store(sched_getcpu(), std::memory_order_relaxed);
  left_.store(count - 1, std::memory_order_relaxed);
  for (int i = 0; i < count - 1; ++i) {
    workers_[i]->ticket.fetch_add(1, std::memory_order_release);
    workers_[i]->ticket.notify_one();
  }
  job(0);
  for (int i = 0; i < kWaitSpins && left_.load(std::memory_order_acquire) > 0; ++i) {
    if (i % kLookEvery == 0 && SharesProcessor(0, count)) break;
    Pause();
  }
  for (int left; (left = left_.load(std::memory_order_acquire)) > 0;)
    left_.wait(left, std::memory_order_acquire);
}

bool ThreadTeam::SharesProcessor(int member, int count) const {
  const int mine = sched_getcpu();
  if (member != 0 && caller_processor_.load(std::memory_order_relaxed) == mine) return true;
  for (int other = 1; other < count; ++other)
    if (other != member &&
        workers_[size_t(other - 1)]->processor.load(std::memory_order_relaxed) == mine)
      return true;
  return false;
}

void ThreadTeam::Loop(Worker* worker, int member) {
  uint32_t seen = 0;
  for (;;) {
    const int processor = sched_getcpu();
    worker->processor.store(processor, std::memory_order_relaxed);
    const bool spins = processor != caller_processor_.load(std::memory_order_relaxed);
    const auto spin_end =
        std::chrono::steady_clock::now() + std::chrono::microseconds(spins ? spin_us_max_ : 0);
    while (worker->ticket.load(std::memory_order_acquire) == seen &&
           std::chrono::steady_clock::now() < spin_end)
      Pause();
    while (worker->ticket.load(std::memory_order_acquire) == seen)
      worker->ticket.wait(seen, std::memory_order_acquire);
    ++seen;
    worker->processor.store(sched_getcpu(), std::memory_order_relaxed);
    if (stop_.load(std::memory_order_acquire)) return;
    (*job_)(member);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
  }
}

}  // namespace qmatmul::cpu
