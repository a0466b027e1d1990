#include "client/connections.h"

#include <grpc/grpc.h>

#include <algorithm>
#include <thread>
#include <utility>

namespace qmatmul::client {
namespace {

constexpr int kConnectionsMax = 64;
// Weights whose columns are remembered; beyond it all are forgotten and learned anew when they matter.
constexpr size_t kColumnsMax = 4096;

// Keeps gRPC running to the end of the process. When its last object goes, grpc_shutdown joins a thread
// that may sit in a poll of 10 s: seen here, every third process took 10 s to end.
void KeepGrpc() {
  static const bool kept = (grpc_init(), true);
  (void)kept;
}

// Two clients of one process must not share connections either, so each pool counts on.
int NextConnectionNumber() {
  static std::atomic<int> next{0};
  return next.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

Status CheckId(std::string_view id) {
  if (std::all_of(id.begin(), id.end(), [](char c) { return c >= 0x20 && c <= 0x7e; })) return {};
  return Refusal(Code::kInvalidArgument, "WEIGHT_ID",
                 "a weight id of " + std::to_string(id.size()) +
                     " bytes has some that are not printable ASCII; use A-Z a-z 0-9 . _ -");
}

Connection::Connection(std::shared_ptr<grpc::Channel> its_channel)
    : channel(std::move(its_channel)),
      matmul_method("/qmatmul.v1.MatMulService/MatMul", grpc::internal::RpcMethod::NORMAL_RPC,
                    channel),
      weights(v1::WeightService::NewStub(channel)),
      matmul(v1::MatMulService::NewStub(channel)),
      info(v1::InfoService::NewStub(channel)),
      admin(v1::AdminService::NewStub(channel)),
      health(grpc::health::v1::Health::NewStub(channel)) {}

Connections::Connections(ClientOptions client_options)
    : options(std::move(client_options)),
      retries(options.retries),
      throttle(options.retries.sent_per_accepted) {
  KeepGrpc();
  const int count = std::clamp(options.connections, 1, kConnectionsMax);
  for (int i = 0; i < count; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt("qmatmul.connection", NextConnectionNumber());
    const int limit =
        static_cast<int>(std::clamp<int64_t>(options.message_bytes_max, 1, INT32_MAX));
    arguments.SetMaxReceiveMessageSize(limit);
    arguments.SetMaxSendMessageSize(limit);
    arguments.SetUserAgentPrefix("qmatmul-cpp/" + std::string(Version()));
    pool_.emplace_back(
        grpc::CreateCustomChannel(options.server, grpc::InsecureChannelCredentials(), arguments));
  }
}

Deadline Connections::DeadlineOf(std::chrono::milliseconds timeout) const {
  if (timeout <= std::chrono::milliseconds::zero()) timeout = options.timeout;
  return std::chrono::system_clock::now() + timeout;
}

void Connections::Prepare(grpc::ClientContext* context, Deadline deadline,
                          std::string_view weight) {
  context->set_deadline(deadline);
  // Balancers hash it, so that a replica keeps its share of the weights.
  if (!weight.empty()) context->AddMetadata("qmatmul-weight", std::string(weight));
}

bool Connections::WaitToRepeat(const Status& status, Repeatable repeatable, Deadline deadline) {
  const auto wait = retries.Wait(status, repeatable, status.attempts,
                                 deadline - std::chrono::system_clock::now());
  if (wait) std::this_thread::sleep_for(*wait);
  return wait.has_value();
}

int64_t Connections::ColumnsOf(const std::string& weight) {
  const std::lock_guard lock(columns_mutex_);
  const auto found = columns_.find(weight);
  return found == columns_.end() ? 0 : found->second;
}

void Connections::Learn(const std::string& weight, int64_t columns) {
  const std::lock_guard lock(columns_mutex_);
  if (columns_.size() >= kColumnsMax) columns_.clear();
  columns_[weight] = columns;
}

Connections::AsyncCall::AsyncCall(Connections& connections) : connections_(connections) {
  const std::lock_guard lock(connections_.async_mutex_);
  ++connections_.async_calls_;
}

Connections::AsyncCall::~AsyncCall() {
  const std::lock_guard lock(connections_.async_mutex_);
  // Under the lock: once it is free, the connections may be gone.
  if (--connections_.async_calls_ == 0) connections_.async_ended_.notify_all();
}

void Connections::WaitForAsyncCalls() {
  std::unique_lock lock(async_mutex_);
  async_ended_.wait(lock, [this] { return async_calls_ == 0; });
}

}  // namespace qmatmul::client
