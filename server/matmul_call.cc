#include "server/matmul_call.h"

#include <functional>

namespace qmatmul {

void MatMulCall::Start(const v1::MatMulRequest& envelope) {
  Engine& engine = context_.engine;
  if (Status s =
          ParseMatMul(envelope, engine.weights(), context_.message_bytes_max, &buffers_, this);
      !s.ok())
    return Refuse(std::move(s));
  if (Status s = engine.Admit(this); !s.ok()) return Refuse(std::move(s));
  if (Status s = AllocateReply(&context_.replies, this, &buffers_); !s.ok())
    return Refuse(std::move(s));
  engine.Submit(this);
}

void MatMulCall::Refuse(Status why) {
  status = std::move(why);
  Complete();
}

void MatMulCall::Complete() {
  // Answer may end this object on another thread: what is needed after it is copied before.
  Metrics& metrics = context_.engine.metrics();
  const Clock& clock = context_.engine.clock();
  const int64_t done_ns = clock.NowNs();
  const int64_t since_ns = admitted_ns;  // 0 when it was refused before
  metrics.Add(status.ok() ? Counter::kRequestsOk : Counter::kRequestsFailed);
  if (buffers_.copied_bytes > 0) metrics.Add(Counter::kCopiedBytes, buffers_.copied_bytes);
  Reply reply;
  if (status.ok()) reply = BuildReply(*this, &buffers_);
  Answer(std::move(reply));
  if (since_ns == 0) return;
  const int64_t end_ns = clock.NowNs();
  metrics.Observe(Histogram::kOutputNs, end_ns - done_ns);
  metrics.Observe(Histogram::kRequestNs, end_ns - since_ns);
}

Status MalformedMessage(std::string_view type) {
  return {Code::kInvalidArgument, "MALFORMED_MESSAGE",
          "the bytes are no message of type qmatmul.v1." + std::string(type) +
              "; client and server may have different versions of the contract",
          "message"};
}

int64_t EngineDeadline(const ServiceContext& context,
                       std::chrono::system_clock::time_point deadline) {
  if (deadline == std::chrono::system_clock::time_point::max()) return kNoDeadline;
  const auto left = deadline - std::chrono::system_clock::now();
  return context.engine.clock().NowNs() +
         std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
}

uint64_t ClientOf(const std::string& peer) { return std::hash<std::string>{}(peer); }

}  // namespace qmatmul
