// The connections of one client: a small pool of channels that are used by turns, and what every
// call on them shares: deadlines, the routing header, retries, and the columns of the weights that
// were asked for.
//
// Private to client/. Thread-safe. Held by the client and by its streams.
//
// Invariants
//   1. Every call has a deadline, retries included.
//   2. A connection is never shared with another client: gRPC would share those of equal arguments.
//   3. Channels are not destroyed on a thread of gRPC's: the last one joins those threads (gRPC 1.51;
//      seen as an abort). So no callback may hold what holds a channel, a ClientContext among them,
//      when it lets go of its AsyncCall; and the client waits for all of those.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "client/client.h"
#include "client/convert.h"
#include "client/retry.h"
#include "client/throttle.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "qmatmul/v1/qmatmul.grpc.pb.h"

namespace qmatmul::client {

using Deadline = std::chrono::system_clock::time_point;
using Clock = std::chrono::steady_clock;

// One connection of the pool, with a stub of each service on it.
struct Connection {
  explicit Connection(std::shared_ptr<grpc::Channel> its_channel);

  std::shared_ptr<grpc::Channel> channel;
  // For raw bytes instead of messages.
  grpc::internal::RpcMethod matmul_method;
  std::unique_ptr<v1::WeightService::Stub> weights;
  std::unique_ptr<v1::MatMulService::Stub> matmul;
  std::unique_ptr<v1::InfoService::Stub> info;
  std::unique_ptr<v1::AdminService::Stub> admin;
  std::unique_ptr<grpc::health::v1::Health::Stub> health;
};

// The one rule of an id that cannot be left to the server: other bytes neither fit the routing header
// nor a proto3 string, and the call would die inside the transport.
Status CheckId(std::string_view id);

class Connections {
 public:
  explicit Connections(ClientOptions client_options);

  Connection& Next() { return pool_[next_.fetch_add(1, std::memory_order_relaxed) % pool_.size()]; }
  size_t size() const { return pool_.size(); }

  // 0: the client's timeout.
  Deadline DeadlineOf(std::chrono::milliseconds timeout) const;
  static void Prepare(grpc::ClientContext* context, Deadline deadline, std::string_view weight);

  // Every blocking call that fits one attempt in one function goes through here: routing header,
  // connection, errors, retries. `call(connection, context)` is one attempt. `its_throttle`: a MatMul's.
  template <class Call>
  Status Invoke(Deadline deadline, std::string_view weight, Repeatable repeatable, Call call,
                OverloadThrottle* its_throttle = nullptr) {
    if (Status status = CheckId(weight); !status.ok()) return status;
    for (int attempts = 1;; ++attempts) {
      if (auto refusal =
              its_throttle != nullptr ? its_throttle->Refuse(weight, Clock::now()) : std::nullopt) {
        refusal->attempts = attempts - 1;
        return *std::move(refusal);
      }
      if (attempts == 1) retries.CallStarts();
      grpc::ClientContext context;
      Prepare(&context, deadline, weight);
      const grpc::Status ended = call(Next(), &context);
      Status status = ended.ok() ? Status() : FromGrpc(ended);
      if (its_throttle != nullptr) its_throttle->Ended(weight, status, Clock::now());
      status.attempts = attempts;
      if (status.ok()) return status;
      if (!WaitToRepeat(status, repeatable, deadline)) return status;
    }
  }

  // An idempotent call with the client's timeout.
  template <class Call>
  Status Ask(std::string_view weight, Call call) {
    return Invoke(DeadlineOf({}), weight, Repeatable::kIdempotent, std::move(call));
  }

  // n of a weight as last learned; 0 when nobody asked.
  int64_t ColumnsOf(const std::string& weight);
  void Learn(const std::string& weight, int64_t columns);

  // One asynchronous call, from its start until nothing of it is left.
  class AsyncCall {
   public:
    explicit AsyncCall(Connections& connections);
    ~AsyncCall();
    AsyncCall(const AsyncCall&) = delete;
    AsyncCall& operator=(const AsyncCall&) = delete;

   private:
    Connections& connections_;
  };
  void WaitForAsyncCalls();

  const ClientOptions options;
  RetryPolicy retries;
  OverloadThrottle throttle;

 private:
  // Sleeps until the next attempt; false when there is to be none.
  bool WaitToRepeat(const Status& status, Repeatable repeatable, Deadline deadline);

  std::vector<Connection> pool_;
  std::atomic<unsigned> next_{0};

  std::mutex async_mutex_;  // guards async_calls_
  std::condition_variable async_ended_;
  int async_calls_ = 0;

  std::mutex columns_mutex_;  // guards columns_
  std::unordered_map<std::string, int64_t> columns_;
};

}  // namespace qmatmul::client
