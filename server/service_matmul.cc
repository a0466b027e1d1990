// MatMulService. Declared in service.h.
#include "qmatmul/v1/qmatmul.grpc.pb.h"
#include "server/service.h"
#include "server/unary.h"
#include "server/wire.h"

namespace qmatmul {
namespace {

// One MatMul from its message to its reply; the engine sees the Request in it. Deletes itself when
// gRPC is done with the call, and then gives back what it held in flight.
class MatMulCall final : public grpc::ServerUnaryReactor, private Request {
 public:
  MatMulCall(ServiceContext& context, const v1::MatMulRequest& message, v1::MatMulResponse* reply)
      : context_(context), count_(context.calls), message_(message), reply_(reply) {}

  void Start(const grpc::CallbackServerContext& rpc) {
    deadline_ns = EngineDeadline(rpc.deadline());
    Engine& engine = context_.engine;
    status = ParseMatMul(message_, engine.weights(), context_.message_bytes_max, &buffers_, this);
    if (status.ok()) status = engine.Admit(this);
    if (!status.ok()) return Complete();
    AllocateReply(this, &buffers_, reply_);
    engine.Submit(this);
  }

  void OnCancel() override { cancelled.store(true, std::memory_order_relaxed); }
  void OnDone() override { delete this; }

 private:
  void Complete() override {
    // Finish may end this object on another thread: what is needed after it is copied before.
    Metrics& metrics = context_.engine.metrics();
    const Clock& clock = context_.engine.clock();
    const int64_t done_ns = clock.NowNs();
    const int64_t since_ns = admitted_ns;  // 0 when it was refused before
    metrics.Add(status.ok() ? Counter::kRequestsOk : Counter::kRequestsFailed);
    if (status.ok()) {
      // gRPC gathered the request's payload into one string, and copies the reply's out of another.
      metrics.Add(Counter::kCopiedBytes, bytes);
      DescribeExecution(*this, buffers_, reply_);
    }
    Finish(ToGrpc(context_, status));
    const int64_t end_ns = clock.NowNs();
    if (since_ns == 0) return;
    metrics.Observe(Histogram::kOutputNs, end_ns - done_ns);
    metrics.Observe(Histogram::kRequestNs, end_ns - since_ns);
  }

  int64_t EngineDeadline(std::chrono::system_clock::time_point deadline) const {
    if (deadline == std::chrono::system_clock::time_point::max())
      return std::numeric_limits<int64_t>::max();
    const auto left = deadline - std::chrono::system_clock::now();
    return context_.engine.clock().NowNs() +
           std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
  }

  ServiceContext& context_;
  CallCount count_;
  const v1::MatMulRequest& message_;
  v1::MatMulResponse* const reply_;
  MatMulBuffers buffers_;
};

// A stream that is refused as a whole.
class RefusedStream final
    : public grpc::ServerBidiReactor<v1::StreamMatMulRequest, v1::StreamMatMulResponse> {
 public:
  RefusedStream(ServiceContext& context, const Status& status) : count_(context.calls) {
    Finish(ToGrpc(context, status));
  }
  void OnDone() override { delete this; }

 private:
  CallCount count_;
};

class MatMulService final : public v1::MatMulService::CallbackService {
 public:
  explicit MatMulService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* MatMul(grpc::CallbackServerContext* rpc,
                                   const v1::MatMulRequest* message,
                                   v1::MatMulResponse* reply) override {
    auto* const call = new MatMulCall(context_, *message, reply);
    call->Start(*rpc);
    return call;
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

  grpc::ServerBidiReactor<v1::StreamMatMulRequest, v1::StreamMatMulResponse>* StreamMatMul(
      grpc::CallbackServerContext*) override {
    return new RefusedStream(context_, Unimplemented("STREAM_UNIMPLEMENTED", "StreamMatMul"));
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
