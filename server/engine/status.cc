#include "server/engine/status.h"

namespace qmatmul {
namespace {

Code CodeOf(FaultKind kind) {
  switch (kind) {
    case FaultKind::kNone: return Code::kOk;
    case FaultKind::kInvalidArgument: return Code::kInvalidArgument;
    case FaultKind::kFailedPrecondition: return Code::kFailedPrecondition;
    case FaultKind::kResourceExhausted: return Code::kResourceExhausted;
    case FaultKind::kUnimplemented: return Code::kUnimplemented;
    case FaultKind::kInternal: return Code::kInternal;
    case FaultKind::kDeviceLost: return Code::kUnavailable;
  }
  return Code::kInternal;
}

}  // namespace

Status FromFault(const Fault& fault, std::string field) {
  Status status;
  status.code = CodeOf(fault.kind);
  status.reason = fault.reason;
  status.message = fault.message;
  status.field = std::move(field);
  return status;
}

}  // namespace qmatmul
