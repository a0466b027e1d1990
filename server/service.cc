#include "server/service.h"

#include "server/log.h"
#include "server/wire.h"

namespace qmatmul {
namespace {

constexpr int64_t kRefusalLogEveryNs = 1'000'000'000;

}  // namespace

grpc::Status ToGrpc(ServiceContext& context, const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  context.engine.metrics().Reject(status.reason);
  const int64_t now_ns = context.engine.clock().NowNs();
  int64_t last_ns = context.refusal_log_ns.load(std::memory_order_relaxed);
  if (now_ns - last_ns >= kRefusalLogEveryNs &&
      context.refusal_log_ns.compare_exchange_strong(last_ns, now_ns, std::memory_order_relaxed))
    Log(LogLevel::kWarn, "refused: " + status.reason + ": " + status.message);
  return {static_cast<grpc::StatusCode>(status.code), status.message, StatusDetails(status)};
}

}  // namespace qmatmul
