#include "client/load_run.h"

#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>

namespace qmatmul::client {
namespace {

using Clock = LoadReply::Clock;
using std::chrono::nanoseconds;

// The calls of a run repeat after so many draws; a share of 1 in 10,000 is still there once.
constexpr size_t kOrderCount = 16'384;
// At a higher rate sends that are due within so long leave together, and are late by that at most: a wake-up for each
// would take a tenth of two cores, which are the server's as well where both share a machine.
constexpr double kWakesPerSecondMax = 10'000;
constexpr auto kWakeEvery = std::chrono::microseconds(250);
// Memory bound of an open loop that the server cannot follow. Reaching it delays the sends, which
// then count as late.
constexpr int64_t kInFlightMax = 32'768;
constexpr auto kProgressEvery = std::chrono::milliseconds(200);

int64_t Ns(Clock::duration duration) {
  return std::chrono::duration_cast<nanoseconds>(duration).count();
}

void RaiseTo(int64_t value, std::atomic<int64_t>* most) {
  int64_t seen = most->load(std::memory_order_relaxed);
  while (value > seen && !most->compare_exchange_weak(seen, value, std::memory_order_relaxed)) {}
}

class Run {
 public:
  Run(LoadClient* client, const LoadPlan& plan)
      : client_(client),
        plan_(plan),
        order_(DrawOrder(plan.items, kOrderCount, plan.seed)),
        result_(std::make_unique<LoadResult>()),
        check_every_(plan.check_share > 0 ? std::max<int64_t>(1, std::llround(1 / plan.check_share))
                                          : 0) {
    for (const LoadItem& item : plan.items) result_->by_rows[item.rows];
  }

  std::unique_ptr<LoadResult> Go() {
    const auto unix_start = std::chrono::system_clock::now().time_since_epoch();
    result_->unix_start_ns = std::chrono::duration_cast<nanoseconds>(unix_start).count();
    start_ = Clock::now();
    // With a number of calls to make, the window ends with the last of them.
    end_ = plan_.calls_max > 0 && plan_.seconds <= 0
               ? Clock::time_point::max()
               : start_ + nanoseconds(static_cast<int64_t>(plan_.seconds * 1e9));
    if (plan_.rate > 0) SendAtRate();
    else SendInTurns();
    client_->Drain();
    return Finish();
  }

 private:
  // The next call's number; false when all have been sent or the time is over.
  bool Take(int64_t* number) {
    if (Clock::now() >= end_) return false;
    *number = sent_.fetch_add(1, std::memory_order_relaxed);
    if (plan_.calls_max == 0 || *number < plan_.calls_max) return true;
    sent_.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }

  void SendInTurns() {
    const int64_t count = std::max<int64_t>(plan_.in_flight, 1);
    {
      const std::lock_guard lock(mutex_);
      lanes_ = count;
    }
    for (int64_t i = 0; i < count; ++i) NextInLane();
    std::unique_lock lock(mutex_);
    while (!ended_.wait_for(lock, kProgressEvery, [this] { return lanes_ == 0; })) {
      lock.unlock();
      Progress();
      lock.lock();
    }
  }

  // One lane of the closed loop: the reply of a call sends the next.
  void NextInLane() {
    int64_t number = 0;
    if (!Take(&number)) {
      const std::lock_guard lock(mutex_);
      if (--lanes_ == 0) ended_.notify_all();
      return;
    }
    const uint32_t item = order_[static_cast<size_t>(number) % order_.size()];
    client_->Send(plan_.items[item].call, [this, item, number](const LoadReply& reply) {
      Record(item, number, reply.sent(), reply);
      NextInLane();
    });
  }

  void SendAtRate() {
    prctl(PR_SET_TIMERSLACK, 1);  // of this thread: the default is 50 us
    std::mt19937_64 random(plan_.seed);
    std::exponential_distribution<double> gap(plan_.rate);
    Clock::time_point intended = start_, shown = start_, woken = start_;
    const auto wake_every = plan_.rate > kWakesPerSecondMax ? kWakeEvery : nanoseconds(0);
    for (int64_t number = 0; intended < end_; ++number) {
      if (plan_.calls_max > 0 && number >= plan_.calls_max) break;
      WaitForRoom();
      if (Clock::now() < intended) {
        woken = std::max(intended, woken + wake_every);
        std::this_thread::sleep_until(woken);
      }
      const uint32_t item = order_[static_cast<size_t>(number) % order_.size()];
      const auto now = Clock::now();
      if (const int64_t late = Ns(now - intended); late > kLateNs) {
        ++result_->late;
        result_->late_max_ns = std::max(result_->late_max_ns, late);
      }
      sent_.fetch_add(1, std::memory_order_relaxed);
      client_->Send(plan_.items[item].call, [this, item, number, intended](const LoadReply& reply) {
        Record(item, number, intended, reply);
      });
      if (now - shown >= kProgressEvery) {
        shown = now;
        Progress();
      }
      const double seconds = plan_.poisson ? gap(random) : 1 / plan_.rate;
      intended += nanoseconds(static_cast<int64_t>(seconds * 1e9));
    }
  }

  void WaitForRoom() {
    while (client_->in_flight() >= kInFlightMax)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  void Record(uint32_t index, int64_t number, Clock::time_point intended, const LoadReply& reply) {
    const LoadItem& item = plan_.items[index];
    const int64_t latency = Ns(reply.done() - intended);
    if (plan_.keep_calls) Keep(item, intended, reply);
    if (!reply.ok()) {
      result_->error_latency_ns.Record(latency);
      failed_.fetch_add(1, std::memory_order_relaxed);
      return RecordError(reply.status());
    }
    LoadOfRows& of_rows = result_->by_rows.find(item.rows)->second;
    result_->latency_ns.Record(latency);
    of_rows.latency_ns.Record(latency);
    ok_.fetch_add(1, std::memory_order_relaxed);
    RaiseTo(Ns(reply.done() - start_), &last_done_ns_);
    // A closed loop's window ends with its last reply: the server was busy until then. An open loop's
    // is the time of its sends: what a server answers long after is no rate.
    if (plan_.rate <= 0 || reply.done() <= end_) {
      ok_in_window_.fetch_add(1, std::memory_order_relaxed);
      rows_in_window_.fetch_add(item.rows, std::memory_order_relaxed);
      ops_in_window_.fetch_add(item.ops, std::memory_order_relaxed);
      if (plan_.latency_limit_s > 0 && static_cast<double>(latency) <= plan_.latency_limit_s * 1e9)
        in_limit_.fetch_add(1, std::memory_order_relaxed);
    }
    request_bytes_.fetch_add(static_cast<int64_t>(item.call.message_bytes()),
                             std::memory_order_relaxed);
    reply_bytes_.fetch_add(static_cast<int64_t>(reply.bytes()), std::memory_order_relaxed);
    Execution execution;
    if (reply.ReadExecution(&execution)) {
      result_->queue_ns.Record(execution.queue_ns);
      result_->compute_ns.Record(execution.compute_ns);
      of_rows.queue_ns.Record(execution.queue_ns);
      of_rows.compute_ns.Record(execution.compute_ns);
      batch_rows_.fetch_add(execution.batch_rows, std::memory_order_relaxed);
    }
    if (check_every_ > 0 && number % check_every_ == 0 && plan_.check) {
      checked_.fetch_add(1, std::memory_order_relaxed);
      if (!plan_.check(index, reply)) wrong_.fetch_add(1, std::memory_order_relaxed);
    }
  }

  void RecordError(const Status& status) {
    std::string name(NameOf(status.code));
    if (!status.reason.empty()) name += " " + status.reason;
    const std::lock_guard lock(mutex_);
    ++result_->errors[name];
    if (result_->first_error.empty()) result_->first_error = status.ToString();
  }

  void Keep(const LoadItem& item, Clock::time_point intended, const LoadReply& reply) {
    const LoadedCall call{Ns(intended - start_), Ns(reply.sent() - start_),
                          Ns(reply.done() - start_), item.rows, reply.code()};
    const std::lock_guard lock(mutex_);
    result_->calls.push_back(call);
  }

  void Progress() {
    if (plan_.progress)
      plan_.progress({static_cast<double>(Ns(Clock::now() - start_)) / 1e9, ok_.load(),
                      failed_.load(), client_->in_flight()});
  }

  std::unique_ptr<LoadResult> Finish() {
    LoadResult& r = *result_;
    r.sent = sent_.load();
    r.ok = ok_.load();
    r.failed = failed_.load();
    r.ok_in_window = ok_in_window_.load();
    r.rows_in_window = rows_in_window_.load();
    r.ops_in_window = ops_in_window_.load();
    r.in_limit = in_limit_.load();
    r.checked = checked_.load();
    r.wrong = wrong_.load();
    const double last = static_cast<double>(last_done_ns_.load()) / 1e9;
    const bool counted = plan_.calls_max > 0 && r.sent >= plan_.calls_max;
    r.seconds = plan_.rate <= 0 || counted ? last : plan_.seconds;
    const auto mean = [](const std::atomic<int64_t>& sum, int64_t count) {
      return count > 0 ? static_cast<double>(sum.load()) / static_cast<double>(count) : 0;
    };
    r.batch_rows_mean = mean(batch_rows_, r.queue_ns.count());
    r.request_bytes_mean = mean(request_bytes_, r.ok);
    r.reply_bytes_mean = mean(reply_bytes_, r.ok);
    return std::move(result_);
  }

  LoadClient* client_;
  const LoadPlan& plan_;
  const std::vector<uint32_t> order_;
  std::unique_ptr<LoadResult> result_;
  const int64_t check_every_;
  Clock::time_point start_, end_;
  std::atomic<int64_t> sent_{0}, ok_{0}, failed_{0}, ok_in_window_{0}, rows_in_window_{0};
  std::atomic<int64_t> in_limit_{0}, checked_{0}, wrong_{0}, batch_rows_{0}, last_done_ns_{0};
  std::atomic<int64_t> request_bytes_{0}, reply_bytes_{0};
  std::atomic<double> ops_in_window_{0};
  std::mutex mutex_;  // guards what follows, and the result's errors and calls
  std::condition_variable ended_;
  int64_t lanes_ = 0;
};

}  // namespace

std::vector<uint32_t> DrawOrder(const std::vector<LoadItem>& items, size_t count, uint64_t seed) {
  double total = 0;
  for (const LoadItem& item : items) total += item.share;
  std::vector<uint32_t> order;
  double until = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    until += items[i].share / total;
    const auto end = static_cast<size_t>(std::llround(until * static_cast<double>(count)));
    while (order.size() < std::min(end, count)) order.push_back(static_cast<uint32_t>(i));
  }
  order.resize(count, static_cast<uint32_t>(items.size() - 1));
  std::mt19937_64 random(seed);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

std::unique_ptr<LoadResult> RunLoad(LoadClient* client, const LoadPlan& plan) {
  // A call that is held back ends in Send, where a closed loop would send the next.
  assert(plan.rate > 0 || client->options().sent_per_accepted <= 0);
  return Run(client, plan).Go();
}

}  // namespace qmatmul::client
