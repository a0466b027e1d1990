// The parts of a running server and the order in which they start and stop.
//
// Start-up: engine, services, gRPC with health, reflection and channelz, /metrics, then health
// SERVING. Shutdown: BeginDrain (health NOT_SERVING, still serving) → the caller's grace → Shutdown
// (GOAWAY, calls in flight finish, the rest ends).
//
// Thread-safety: Start, BeginDrain and Shutdown are for one thread. Ownership: a Server owns
// everything in it; devices move in.
//
// Invariants
//   1. A call that gRPC accepted is answered, unless the drain takes longer than drain_ms_max.
//   2. When the destructor returns no thread of the server is left.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "server/engine/engine.h"
#include "server/options.h"

namespace qmatmul {

class Server {
 public:
  // Null, and `error` says which address or value is at fault, when it cannot start.
  static std::unique_ptr<Server> Start(const Options& options,
                                       std::vector<std::unique_ptr<Device>> devices,
                                       std::string* error);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // As listened on, with the ports that were found for port 0: "127.0.0.1:8500",
  // "unix:/run/q.sock".
  const std::vector<std::string>& addresses() const { return addresses_; }
  const std::string& http_address() const { return http_address_; }  // empty when there is none
  Engine& engine();

  void BeginDrain();
  // Returns when every accepted call is answered, or after drain_ms_max. True when nothing was cut
  // off.
  bool Shutdown();

 private:
  struct Parts;
  explicit Server(std::unique_ptr<Parts> parts);

  bool StartGrpc(const Options& options, std::string* error);
  bool StartHttp(const Options& options, std::string* error);
  void SetServing(bool serving);
  // True when no call of ours is left, false when the deadline came first.
  bool AwaitCalls(std::chrono::system_clock::time_point deadline);

  std::unique_ptr<Parts> parts_;
  std::vector<std::string> addresses_;
  std::string http_address_;
};

}  // namespace qmatmul
