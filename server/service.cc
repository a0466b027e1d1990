#include "server/service.h"

#include "server/log.h"
#include "server/wire.h"

namespace qmatmul {
namespace {

constexpr int64_t kRefusalLogEveryNs = 1'000'000'000;

}  // namespace

void CountRefusal(ServiceContext& context, const Status& status) {
  // The question whether an upload is needed has a proper answer; it is not refused.
  if (status.ok() || status.reason == "UPLOAD_NEEDED") return;
  context.engine.metrics().Reject(status.reason);
  const int64_t now_ns = context.engine.clock().NowNs();
  int64_t last_ns = context.refusal_log_ns.load(std::memory_order_relaxed);
  if (now_ns - last_ns >= kRefusalLogEveryNs &&
      context.refusal_log_ns.compare_exchange_strong(last_ns, now_ns, std::memory_order_relaxed))
    Log(LogLevel::kWarn, "refused: " + status.reason + ": " + status.message);
}

grpc::Status ToGrpc(ServiceContext& context, const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  CountRefusal(context, status);
  return {static_cast<grpc::StatusCode>(status.code), status.message, StatusDetails(status)};
}

void RestoreWeights(ServiceContext& context) {
  (void)context.loader.Post([&context] {
    Status status;
    std::string what;
    if (!context.engine.weights().RestoreNext(&what, &status)) return;
    if (status.ok()) Log(LogLevel::kInfo, "packed again: " + what);
    else Log(LogLevel::kWarn, "not packed again: " + what + ": " + status.message);
    RestoreWeights(context);
  });
}

}  // namespace qmatmul
