// How a call of the C++ SDK ended: Status says what went wrong in words a program can branch on
// (code, reason, metadata) and words a person can act on (message); Result<T> is a value or such a
// Status.
//
// Both are plain values: copy, move and keep them freely. Neither is synchronised.
//
// Invariants
//   1. A Status is ok() exactly when its code is kOk; then every other field but `attempts` is empty.
//   2. A Result holds a value exactly when its status is ok().
#pragma once

#include <cassert>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qmatmul::client {

// The codes of gRPC, by its numbers. What each means here is said at the top of qmatmul.proto.
enum class Code : uint8_t {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

// "INVALID_ARGUMENT", …
std::string_view NameOf(Code code);

// One field of the request that was refused, and why.
struct FieldViolation {
  std::string field;
  std::string description;
};

struct [[nodiscard]] Status {
  Code code = Code::kOk;
  // UPPER_SNAKE word of the server's google.rpc.ErrorInfo ("K_MISMATCH"); empty when the transport
  // itself failed (server not reached, message over the limit, deadline passed).
  std::string reason;
  std::string message;
  // ErrorInfo's metadata: the offending value and the limit, by name.
  std::map<std::string, std::string> metadata;
  std::vector<FieldViolation> fields;
  // How long the server asks to wait before the same call is tried again; 0 when it does not say.
  std::chrono::milliseconds retry_after{0};
  // Calls that were made until it ended so; 0 when it was refused before anything was sent.
  int attempts = 0;

  bool ok() const { return code == Code::kOk; }
  // "INVALID_ARGUMENT K_MISMATCH: …" on one line; "OK" when ok().
  std::string ToString() const;
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT: meant to be implicit
  Result(Status status) : status_(std::move(status)) {  // NOLINT: meant to be implicit
    assert(!status_.ok());
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  // The caller has looked at ok() first.
  T& operator*() { return assert(ok()), *value_; }
  const T& operator*() const { return assert(ok()), *value_; }
  T* operator->() { return assert(ok()), &*value_; }
  const T* operator->() const { return assert(ok()), &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace qmatmul::client
