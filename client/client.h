// The C++ client of a qmatmul server: register weights once, multiply by them as often as you like.
//
//   qmatmul::client::Client client({.server = "127.0.0.1:8500"});
//   auto y = client.MatMul("q_proj", activations, {.dtype = DataType::kF32}, options);
//   if (!y.ok()) std::cerr << y.status().ToString();
//   else use(y->As<float>());
//
// It exists so that a caller needs no generated code: neither this header nor the ones it includes
// shows a type of protobuf, gRPC or Abseil. client/examples/first_call.cc is a whole program.
//
// Thread-safety: every method may be called from any thread at once; calls spread over a small pool
// of connections by turns. Ownership: arguments are borrowed for the call, those of MatMulAsync until
// its callback; results own their memory. Destroy the client after its last blocking call has
// returned; the destructor waits for the callbacks of the others.
//
// Invariants
//   1. No method throws; what goes wrong is in the Status (std::bad_alloc excepted).
//   2. Every call has a deadline, retries included, so every call returns.
//   3. Constructing a client does no I/O: a server that is not there shows at the first call, as
//      UNAVAILABLE.
//   4. A MatMul of more rows than fit one message is sent in parts, at most one a connection at a
//      time, and its answer is that of one call, byte for byte.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/retry_options.h"
#include "client/status.h"
#include "client/stream.h"
#include "client/types.h"

namespace qmatmul::client {

struct ClientOptions {
  std::string server = "127.0.0.1:8500";  // host:port, or unix:/path
  // One connection moves about 1 GB/s at best; more of them help large tensors and many threads.
  int connections = 2;
  std::chrono::milliseconds timeout{30'000};          // every call but an upload
  std::chrono::milliseconds upload_timeout{600'000};  // one RegisterWeight with its chunks
  // Both directions; the server's default is the same.
  int64_t message_bytes_max = int64_t{64} << 20;
  // What UNAVAILABLE means here: a server that is full or draining says when to come back, and then
  // every call does; a lost connection is tried again where twice is as good as once (not uploads,
  // DeleteWeight and RearmKernel; health is asked for once).
  RetryOptions retries = {};
};

class Client {
 public:
  explicit Client(ClientOptions options = {});
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  const ClientOptions& options() const;

  // Asks first whether the content is known, by its digest, and uploads only if it is not.
  Result<Registration> RegisterWeight(const WeightUpload& weight,
                                      const UploadProgress& progress = {});
  Result<WeightInfo> GetWeight(std::string_view id);
  // All of them, ordered by name.
  Result<std::vector<WeightInfo>> ListWeights();
  // The device bytes that this frees.
  Result<int64_t> DeleteWeight(std::string_view id);

  // One activation tensor times one weight.
  Result<Output> MatMul(std::string_view weight, const Activations& activations,
                        const OutputSpec& output, const MatMulOptions& options = {});
  // … times 1 … 16 weights that share K; one output each, by position.
  //   kResourceExhausted ROW_TOO_LARGE    one row does not fit a message
  //   kAborted           WEIGHT_REPLACED  the weight changed between the parts of a split call
  //   otherwise what the server says; of a split call, with the rows of the whole
  Result<std::vector<Output>> MatMul(std::span<const Product> products,
                                     const Activations& activations,
                                     const MatMulOptions& options = {});
  // The same without a thread that waits. `products` and `options` are copied; what the activations,
  // the scales, the zero points and Product::into point to lives until `callback` is called. That is
  // once, on one of gRPC's few threads (here, when nothing was sent): it may move the outputs on, wake
  // a thread, call MatMulAsync again; it must not block, compute for long, call a blocking method or
  // destroy the client.
  void MatMulAsync(std::span<const Product> products, const Activations& activations,
                   const MatMulOptions& options, MatMulCallback callback);
  std::unique_ptr<MatMulStream> OpenStream(const StreamOptions& options = {});
  // What would run for `rows` rows, and why, without running it.
  Result<Explanation> Explain(std::span<const Product> products, int64_t rows, DataType activations,
                              const MatMulOptions& options = {});

  Result<std::vector<DeviceInfo>> ListDevices();
  Result<std::vector<KernelInfo>> ListKernels();
  Result<Statistics> GetStatistics();
  // Takes back a kernel that the server put aside, by the key that ListKernels gives as its reason's
  // first word. kNotFound QUARANTINE_UNKNOWN.
  Status RearmKernel(std::string_view key);
  // grpc.health.v1; the empty service is the server as a whole. A service that the server does not
  // know is kServiceUnknown, not an error.
  Result<Health> CheckHealth(std::string_view service = {});

 private:
  std::shared_ptr<Connections> connections_;
};

// This library's version, "0.1.0".
std::string_view Version();

}  // namespace qmatmul::client
