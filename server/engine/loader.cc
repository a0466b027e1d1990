#include "server/engine/loader.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

namespace qmatmul {
namespace {

constexpr int kNice = 10;

}  // namespace

Loader::Loader() : thread_([this] { Loop(); }) {
  pthread_setname_np(thread_.native_handle(), "loader");
}

Loader::~Loader() { Stop(); }

bool Loader::Post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return false;
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
  return true;
}

void Loader::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Loader::Loop() {
  // On Linux a nice value belongs to a thread. Failing to be nice is no failure.
  (void)setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNice);
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopped_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    const std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    lock.lock();
  }
}

}  // namespace qmatmul
