// A client for load: messages encoded once and sent any number of times as bytes, many in flight,
// replies handed over as they arrive.
//
//   LoadClient client({.server = "127.0.0.1:8500", .connections = 2});
//   const EncodedCall call = EncodedCall::MatMul(products, activations);
//   client.Send(call, [](const LoadReply& reply) { … });
//   client.Drain();
//
// It exists because client.h measures itself: one blocking thread a call, a message built and
// another parsed each time. Here a call costs little more than the transport, so that what is
// measured is the server. The words are the SDK's (Product, Activations); no type of protobuf or
// gRPC shows.
//
// Thread-safety: Send from any thread, also from within a `done` (but not of a call that was held back).
// `done` is called exactly once a call, on a thread of gRPC, or in Send when the call is held back; it must
// not block. Ownership: an EncodedCall may go once Send has
// returned; a LoadReply lives as long as its `done` runs. Destroying the client drains it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/status.h"
#include "client/types.h"

namespace qmatmul::client {

// A method and the bytes of its request. Copies share the bytes.
class EncodedCall {
 public:
  static EncodedCall MatMul(std::span<const Product> products, const Activations& activations,
                            const MatMulOptions& options = {});
  // grpc.health.v1.Health/Check of the server as a whole: the least that a call can be.
  static EncodedCall Health();
  // `method` is "/package.Service/Method".
  static EncodedCall Of(std::string method, std::span<const std::byte> message);

  std::string message() const;
  size_t message_bytes() const;

 private:
  friend class LoadClient;
  struct Parts;
  std::shared_ptr<const Parts> parts_;
};

class LoadReply {
 public:
  using Clock = std::chrono::steady_clock;

  const Status& status() const;
  Code code() const { return status().code; }
  bool ok() const { return status().ok(); }
  size_t bytes() const;
  Clock::time_point sent() const { return sent_; }
  Clock::time_point done() const { return done_; }
  // batch_rows, padded_rows, queue_ns and compute_ns of the first output, read without touching the
  // result's own bytes. False: not a reply of MatMul.
  bool ReadExecution(Execution* execution) const;
  // The whole of a MatMul's reply, copied.
  Result<std::vector<Output>> Outputs() const;

 private:
  friend class LoadClient;
  struct Parts;
  LoadReply(Parts* parts, Clock::time_point sent);
  Parts* parts_;
  Clock::time_point sent_, done_;
};

using LoadDone = std::function<void(const LoadReply&)>;

// For the first line of a program that makes many or large calls: memory of replies stays in the heap, which
// malloc would map and unmap with each of them, and Debian's Abseil does not look for deadlocks at each lock of gRPC's.
// Process-wide, so that no library does it for its caller. An echo of 256 KiB and 1 MiB is answered 1.6 times as often.
void SetUpProcess();

struct LoadOptions {
  std::string server = "127.0.0.1:8500";  // host:port, or unix:/path
  int connections = 1;                    // calls take them by turns
  // MatMul calls go over one StreamMatMul a connection instead of a call each.
  bool stream = false;
  std::chrono::milliseconds timeout{30'000};  // a call's deadline; how long Drain waits for streams
  int64_t message_bytes_max = int64_t{64} << 20;  // both directions
  // MatMuls are held back as the SDK does it while the server refuses them (RetryOptions); 0: all are sent.
  // Not those of streams.
  double sent_per_accepted = 0;
  bool routing_header = false;  // `qmatmul-weight`, for balancers; the SDK always sends it
};

class LoadClient {
 public:
  explicit LoadClient(LoadOptions options);
  ~LoadClient();
  LoadClient(const LoadClient&) = delete;
  LoadClient& operator=(const LoadClient&) = delete;

  const LoadOptions& options() const;
  // kUnavailable when a connection did not come up within `wait`.
  Status Connect(std::chrono::milliseconds wait);
  // A call that is held back has its `done` here and now.
  void Send(const EncodedCall& call, LoadDone done);
  int64_t in_flight() const;
  // Returns when every call sent so far has had its `done`.
  void Drain();

 private:
  struct Unary;
  struct Stream;
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace qmatmul::client
