// The thread that hashes and packs uploads, so that loading weights blocks neither RPC threads nor
// compute.
//
// Why one thread at low priority: uploads are as fast as the network, and requests in flight are
// worth more than the next weight.
//
// Thread-safety: all methods may be called from any thread, Stop once. Ownership: tasks are moved
// in.
//
// Invariant: a task that Post took is run, in the order it came. The queue needs no limit of its
// own: each upload has at most one task waiting, and uploads are limited.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace qmatmul {

class Loader {
 public:
  Loader();
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // False when stopped; the task is then not run.
  bool Post(std::function<void()> task);
  // Runs what was posted, then ends the thread.
  void Stop();

 private:
  void Loop();

  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopped_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace qmatmul
