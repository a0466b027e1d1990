// What the engine and the wire answer when they do not answer with a result.
//
// A Status is a plain value. Its code means one thing each, as qmatmul.proto lists them; its reason
// is an UPPER_SNAKE word that clients may rely on; its message names the offending value, the limit
// and the way out. It becomes a grpc::Status once, at the edge (server/wire.h).
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/matmul.h"

namespace qmatmul {

// The numbers are gRPC's, so that the edge need not translate.
enum class Code : uint8_t {
  kOk = 0,
  kCancelled = 1,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
};

struct [[nodiscard]] Status {
  Code code = Code::kOk;
  std::string reason = {};
  std::string message = {};
  std::string field = {};  // path of the offending request field, "activations.shape"; may be empty
  std::vector<std::pair<std::string, std::string>> metadata =
      {};                      // "value", "limit", "current_digest", …
  int64_t retry_after_ns = 0;  // kUnavailable: when to try again

  bool ok() const { return code == Code::kOk; }
  Status&& With(std::string key, std::string value) && {
    metadata.emplace_back(std::move(key), std::move(value));
    return std::move(*this);
  }
};

// A fault of a device as a Status: the one place where the two meet.
Status FromFault(const Fault& fault, std::string field = {});

}  // namespace qmatmul
