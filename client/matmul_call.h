// One MatMul from the question to the answer: planned by size, sent in one piece or in parts by
// rows, retried, joined.
//
// Private to client/. Two ways to run it: in the calling thread while it is one piece, which spares
// a hand-off between threads, and as a chain of gRPC callbacks. Owned by its own callbacks; the
// connections wait for it.
//
// Invariants
//   1. At most one part a connection is underway.
//   2. `done` is called exactly once, on one of gRPC's threads (or in Start, when nothing is sent).
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "client/connections.h"
#include "client/message.h"
#include "client/split.h"

namespace qmatmul::client {

using MatMulDone = std::function<void(Result<std::vector<Output>>)>;

// What every request must pass before it is looked at further.
Status CheckQuestion(const Question& question);

// In the calling thread.
Result<std::vector<Output>> RunMatMul(Connections& connections, const Question& question);

class MatMulCall : public std::enable_shared_from_this<MatMulCall> {
 public:
  // What `question` borrows lives until `done` is called.
  MatMulCall(Connections& connections, const Question& question, Deadline deadline,
             MatMulDone done);

  void Start();
  // After `too_large`, the answer to the call in one piece: asks for the weights' n, by which it may
  // be cut.
  void StartByLearning(Status too_large);

 private:
  // One attempt of one part.
  struct Attempt {
    grpc::ClientContext context;
    grpc::ByteBuffer request, reply;
  };

  void SendParts(std::vector<RowRange> rows);
  void Send(size_t part);
  void EndSoon(size_t part, Status refusal);
  bool has_failed() {
    const std::lock_guard lock(mutex_);
    return failed_;
  }
  void Answered(size_t part, const grpc::Status& ended);
  void PartEnds(size_t part, Result<std::vector<Output>> outputs, int attempts);
  void GiveUpTheRest();
  void Learn(size_t output);
  void Finish();

  Connections::AsyncCall async_call_;  // the first, so that it goes last
  Connections& connections_;
  const Question question_;
  const Deadline deadline_;
  MatMulDone done_;
  Status too_large_;  // ok until the weights' n were asked for

  std::mutex mutex_;  // guards what follows
  std::vector<Part> parts_;
  std::vector<std::shared_ptr<Attempt>> underway_;  // by part; empty when it is not
  size_t next_part_ = 0;
  size_t parts_left_ = 0;
  bool failed_ = false;
};

}  // namespace qmatmul::client
