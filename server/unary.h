// A unary call that is answered where it arrives: for the service_*.cc files.
//
// Why not the context's default reactor: a drain must know when the last accepted call has been
// answered, and the default reactor tells nobody.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "server/service.h"

namespace qmatmul {

class UnaryReply final : public grpc::ServerUnaryReactor {
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
