// The gRPC services of qmatmul.v1: calls in, statuses out, and nothing of what happens between,
// which is wire's (content) and the engine's (work).
//
// Callback API throughout: no thread waits for a call. Computation leaves the callback threads, of
// which there are few, save for calls so short that the hand-off would cost more.
//
// Thread-safety: gRPC calls the services from many threads. Ownership: the context outlives the
// services, the services outlive the server they are registered with.
#pragma once

#include <grpcpp/support/status.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "server/engine/engine.h"
#include "server/engine/loader.h"
#include "server/reply_pool.h"

namespace grpc {
class Service;
}

namespace qmatmul {

// What the services share.
struct ServiceContext {
  Engine& engine;
  Loader& loader;
  ReplyPool& replies;
  int64_t message_bytes_max = 0;
  int64_t stream_requests_max = 0;
  int64_t uploads_max = 0;
  int64_t start_ns = 0;  // of the server, on the engine's clock

  std::atomic<int64_t> calls{0};  // accepted and not yet done, streams included
  std::atomic<int64_t> uploads{0};
  std::atomic<int64_t> refusal_log_ns{0};  // when a refusal was last logged
};

// Counts a call for as long as it lives.
class CallCount {
 public:
  explicit CallCount(std::atomic<int64_t>& count) : count_(count) {
    count_.fetch_add(1, std::memory_order_relaxed);
  }
  ~CallCount() { count_.fetch_sub(1, std::memory_order_release); }
  CallCount(const CallCount&) = delete;
  CallCount& operator=(const CallCount&) = delete;

 private:
  std::atomic<int64_t>& count_;
};

// Counts an error by its reason, and logs it unless another was logged within a second.
void CountRefusal(ServiceContext& context, const Status& status);
// A Status as gRPC sends it; errors are counted.
grpc::Status ToGrpc(ServiceContext& context, const Status& status);

// In the background, between uploads: packs what a device lost there again.
void RestoreWeights(ServiceContext& context);

std::unique_ptr<grpc::Service> MakeWeightService(ServiceContext& context);
std::unique_ptr<grpc::Service> MakeMatMulService(ServiceContext& context);
std::unique_ptr<grpc::Service> MakeInfoService(ServiceContext& context);
std::unique_ptr<grpc::Service> MakeAdminService(ServiceContext& context);

}  // namespace qmatmul
