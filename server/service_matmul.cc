// MatMulService. Declared in service.h.
#include "qmatmul/v1/qmatmul.grpc.pb.h"
#include "server/matmul_call.h"
#include "server/matmul_stream.h"
#include "server/service.h"
#include "server/unary.h"
#include "server/wire.h"
#include "server/wire_bytes.h"

namespace qmatmul {
namespace {

// A unary MatMul. Deletes itself when gRPC is done with the call, and then gives back what it held in
// flight.
class UnaryMatMul final : public PromptUnaryReactor, private MatMulCall {
 public:
  UnaryMatMul(ServiceContext& context, grpc::ByteBuffer* message, grpc::ByteBuffer* reply)
      : MatMulCall(context), count_(context.calls), message_(message), reply_(reply) {}

  void Begin(const grpc::CallbackServerContext& rpc) {
    deadline_ns = EngineDeadline(context_, rpc.deadline());
    client = ClientOf(rpc.peer());
    const v1::MatMulRequest* const envelope = ReadMatMul(message_, buffers());
    if (envelope == nullptr) return Refuse(MalformedMessage("MatMulRequest"));
    Start(*envelope);
  }

  void OnCancel() override { cancelled.store(true, std::memory_order_relaxed); }
  void OnDone() override {
    // gRPC ordered this behind Answer; saying so again costs nothing and lets ThreadSanitizer, which
    // does not see into gRPC, know it.
    (void)answered_.load(std::memory_order_acquire);
    delete this;
  }

 private:
  void Answer(Reply reply) override {
    message_->Clear();  // room for others while the reply is sent
    if (status.ok()) {
      grpc::ByteBuffer message = ToBytes(std::move(reply));
      reply_->Swap(&message);
    }
    const grpc::Status result = ToGrpc(context_, status);
    answered_.store(true, std::memory_order_release);
    Finish(result);
  }

  CallCount count_;
  std::atomic<bool> answered_{false};
  grpc::ByteBuffer* const message_;
  grpc::ByteBuffer* const reply_;
};

// MatMul and StreamMatMul take bytes as they came; the rest takes messages.
using RawMatMulService = v1::MatMulService::WithRawCallbackMethod_MatMul<
    v1::MatMulService::WithRawCallbackMethod_StreamMatMul<
        v1::MatMulService::WithCallbackMethod_Explain<
            v1::MatMulService::WithCallbackMethod_Verify<v1::MatMulService::Service>>>>;

class MatMulService final : public RawMatMulService {
 public:
  explicit MatMulService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* MatMul(grpc::CallbackServerContext* rpc,
                                   const grpc::ByteBuffer* message,
                                   grpc::ByteBuffer* reply) override {
    // gRPC owns the message and looks at it no more; reading it advances nothing in it.
    auto* const call = new UnaryMatMul(context_, const_cast<grpc::ByteBuffer*>(message), reply);
    call->Begin(*rpc);
    return call;
  }

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StreamMatMul(
      grpc::CallbackServerContext* rpc) override {
    return NewMatMulStream(context_, *rpc);
  }

  grpc::ServerUnaryReactor* Explain(grpc::CallbackServerContext*, const v1::ExplainRequest* message,
                                    v1::ExplainResponse* reply) override {
    ExplainQuestion question;
    Plan plan;
    Status status = ParseExplain(*message, context_.engine.weights(), &question);
    if (status.ok()) status = context_.engine.Explain(question.query, &plan);
    if (status.ok()) DescribePlan(plan, reply);
    return UnaryReply::Make(context_, status);
  }

  grpc::ServerUnaryReactor* Verify(grpc::CallbackServerContext*, const v1::VerifyRequest*,
                                   v1::VerifyResponse*) override {
    return UnaryReply::Make(context_, Unimplemented("VERIFY_UNIMPLEMENTED", "Verify"));
  }

 private:
  ServiceContext& context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeMatMulService(ServiceContext& context) {
  return std::make_unique<MatMulService>(context);
}

}  // namespace qmatmul
