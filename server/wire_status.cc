// Errors on the wire. Declared in wire.h.
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/wire.h"

namespace qmatmul {
namespace {

constexpr char kDomain[] = "qmatmul";

}  // namespace

Status WeightUnknown(std::string_view id) {
  const std::string name = "weights/" + std::string(id);
  return Status{Code::kNotFound, "WEIGHT_UNKNOWN",
                "no weight is named " + name + "; ListWeights shows those there are"}
      .With("value", name);
}

Status Unimplemented(std::string reason, const std::string& what, std::string field) {
  return {Code::kUnimplemented, std::move(reason),
          what + " is not implemented by this server version", std::move(field)};
}

std::string StatusDetails(const Status& status) {
  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code));
  details.set_message(status.message);
  google::rpc::ErrorInfo info;
  info.set_reason(status.reason);
  info.set_domain(kDomain);
  for (const auto& [key, value] : status.metadata) (*info.mutable_metadata())[key] = value;
  details.add_details()->PackFrom(info);
  if (status.code == Code::kInvalidArgument) {
    google::rpc::BadRequest bad;
    auto* violation = bad.add_field_violations();
    violation->set_field(status.field);
    violation->set_description(status.message);
    violation->set_reason(status.reason);
    details.add_details()->PackFrom(bad);
  }
  if (status.code == Code::kUnavailable) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(status.retry_after_ns / 1'000'000'000);
    retry.mutable_retry_delay()->set_nanos(
        static_cast<int32_t>(status.retry_after_ns % 1'000'000'000));
    details.add_details()->PackFrom(retry);
  }
  return details.SerializeAsString();
}

}  // namespace qmatmul
