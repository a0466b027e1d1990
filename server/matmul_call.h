// One MatMul from the bytes of its request to its answer: what a unary call and a message of a stream
// have in common. The engine sees the Request in it.
//
// Thread-safety: Start is called once; Answer comes from any thread, perhaps before Start returns.
// Ownership: whoever makes it keeps the request's bytes as they are until Answer.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <vector>

#include "server/engine/request.h"
#include "server/service.h"
#include "server/wire.h"

namespace qmatmul {

class MatMulCall : public Request {
 public:
  // The request is `envelope` and the payload that buffers() knows; `deadline_ns` and `client` are set.
  void Start(const v1::MatMulRequest& envelope);
  void Refuse(Status why);

  MatMulBuffers* buffers() { return &buffers_; }

 protected:
  explicit MatMulCall(ServiceContext& context) : context_(context) {}
  // The answer is there: `status`, and with OK the pieces of the reply. Called exactly once, with no
  // lock held; it may end this object.
  virtual void Answer(Reply reply) = 0;

  ServiceContext& context_;

 private:
  void Complete() final;

  MatMulBuffers buffers_;
};

// The message was no such message: what protobuf's parser will not say.
Status MalformedMessage(std::string_view type);
// A moment of the wall clock on the engine's.
int64_t EngineDeadline(const ServiceContext& context,
                       std::chrono::system_clock::time_point deadline);
// Who calls, for turns: one number a connection.
uint64_t ClientOf(const std::string& peer);

}  // namespace qmatmul
