// A unary call that is answered where it arrives: for the service_*.cc files.
//
// Why not the context's default reactor: a drain must know when the last accepted call has been
// answered, and the default reactor tells nobody.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "server/service.h"

namespace qmatmul {

// OnDone and OnCancel, which must not wait for anything, run where gRPC learns of them. It otherwise hands
// each to a helper thread of its own: a wake-up a call. gRPC calls the override internal; its default
// reactor does the same, but tells nobody of cancels and of the end.
class PromptUnaryReactor : public grpc::ServerUnaryReactor {
 private:
  bool InternalInlineable() final { return true; }
};

class UnaryReply final : public PromptUnaryReactor {
 public:
  // Deletes itself when gRPC is done with the call.
  static grpc::ServerUnaryReactor* Make(ServiceContext& context, const Status& status) {
    auto* const reply = new UnaryReply(context);
    reply->Finish(ToGrpc(context, status));
    return reply;
  }
  void OnDone() override { delete this; }

 private:
  explicit UnaryReply(ServiceContext& context) : count_(context.calls) {}
  CallCount count_;
};

}  // namespace qmatmul
