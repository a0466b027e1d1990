// Many MatMuls over one stream: no call is set up for each, and replies come when they are ready, in
// any order. For many small requests; one stream uses one connection and, at the server, one reader.
//
//   auto stream = client.OpenStream({.window = 32});
//   for (…) stream->Submit(products, activations, options, [](auto outputs) { … });
//   Status status = stream->Close();
//
// Thread-safety: Submit and Close may be called from any thread at once. Callbacks of one stream run
// one at a time, on one of gRPC's threads, which they must not hold up: no blocking call of this
// client, no Close; Submit is fine there. Ownership: Submit has read its arguments when it returns,
// `owner`ed activations and Product::into excepted, which it uses until the callback. A stream may
// outlive its client.
//
// Invariants
//   1. Every Submit that returned an id calls its callback exactly once, before Close returns.
//   2. At most `window` requests are underway; a callback may submit one for the one it answers.
//   3. No wait is endless: a stream that makes no progress for `timeout` is cancelled.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/status.h"
#include "client/types.h"

namespace qmatmul::client {

class Connections;

// The answer to a MatMul that was not waited for.
using MatMulCallback = std::function<void(Result<std::vector<Output>> outputs)>;

struct StreamOptions {
  int window = 64;
  // Longest wait for a reply in Submit (with the window full) and Close. 0: the client's timeout.
  std::chrono::milliseconds timeout{0};
  std::string weight = {};  // balancers route the whole stream by it
};

class MatMulStream {
 public:
  // Client::OpenStream makes it.
  MatMulStream(std::shared_ptr<Connections> connections, const StreamOptions& options);
  // Cancels what is still underway: its callbacks get kCancelled.
  ~MatMulStream();
  MatMulStream(const MatMulStream&) = delete;
  MatMulStream& operator=(const MatMulStream&) = delete;

  // The request's number. Its errors go to the callback and leave the stream as it is; UNAVAILABLE
  // is not retried here. A request that is too large for one message is not split but refused.
  //   kDeadlineExceeded   the window stayed full for `timeout`
  //   kResourceExhausted  MESSAGE_TOO_LARGE
  //   otherwise           why the stream has ended
  // MatMulOptions::timeout plays no part.
  Result<uint64_t> Submit(std::span<const Product> products, const Activations& activations,
                          const MatMulOptions& options, MatMulCallback callback);
  // Waits for all replies. How the stream ended.
  Status Close();

 private:
  class Reactor;
  std::unique_ptr<Reactor> reactor_;
};

}  // namespace qmatmul::client
