#include "client/matmul_call.h"

#include <grpcpp/alarm.h>
#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <future>
#include <utility>

namespace qmatmul::client {
namespace {

using Outputs = std::vector<Output>;

// `learned`: after a reply that did not fit. Before, one row cannot be cut whatever n is.
Result<std::vector<RowRange>> Plan(Connections& connections, const Question& question,
                                   bool learned) {
  std::vector<int64_t> columns(question.products.size());
  if (learned || question.activations->rows > 1)
    for (size_t i = 0; i < columns.size(); ++i)
      columns[i] = connections.ColumnsOf(WidthWeight(question, i));
  return PlanRows(question, columns, connections.options.message_bytes_max);
}

// The reply was too large, by the server's word or by the transport's (which gives no reason), so the
// weights' n would tell how to cut, or that one row is too much. Nobody asks for n before: most replies
// fit.
bool MayBeCut(const Status& status) {
  return status.code == Code::kResourceExhausted &&
         (status.reason.empty() || status.reason == "REPLY_TOO_LARGE");
}

// One piece in the calling thread, with its retries.
Result<Outputs> RunWhole(Connections& connections, const Question& question, Deadline deadline) {
  const grpc::ByteBuffer request = RequestOf(question, question.all());
  grpc::ByteBuffer reply;
  Status status = connections.Invoke(
      deadline, question.route(), Repeatable::kIdempotent,
      [&](Connection& c, grpc::ClientContext* context) {
        return grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
            c.channel.get(), c.matmul_method, context, request, &reply);
      },
      &connections.throttle);
  if (!status.ok()) return status;
  auto outputs = OutputsOf(&reply, question, question.all());
  if (outputs.ok())
    for (Output& output : *outputs) output.attempts = status.attempts;
  return outputs;
}

}  // namespace

Status CheckQuestion(const Question& question) {
  if (question.activations->dynamic && !question.activations->scales.bytes.empty())
    return Refusal(
        Code::kInvalidArgument, "QUANTIZATION_SPEC",
        "activations have both dynamic quantization and static scales; give one of them");
  for (const Product& product : question.products)
    if (Status status = CheckId(product.weight); !status.ok()) return status;
  for (const ChainStep& step : question.options->then)
    if (Status status = CheckId(step.weight); !status.ok()) return status;
  return {};
}

Result<Outputs> RunMatMul(Connections& connections, const Question& question) {
  if (Status status = CheckQuestion(question); !status.ok()) return status;
  const Deadline deadline = connections.DeadlineOf(question.options->timeout);
  const auto plan = Plan(connections, question, /*learned=*/false);
  if (!plan.ok()) return plan.status();
  const bool whole = plan->size() == 1;
  Status status;
  if (whole) {
    auto outputs = RunWhole(connections, question, deadline);
    if (outputs.ok() || !MayBeCut(outputs.status())) return outputs;
    status = outputs.status();
  }
  // Shared: set_value may still be at work when get has returned.
  auto answer = std::make_shared<std::promise<Result<Outputs>>>();
  auto future = answer->get_future();
  auto call = std::make_shared<MatMulCall>(
      connections, question, deadline,
      [answer](Result<Outputs> outputs) { answer->set_value(std::move(outputs)); });
  if (whole) call->StartByLearning(status);
  else call->Start();
  return future.get();
}

MatMulCall::MatMulCall(Connections& connections, const Question& question, Deadline deadline,
                       MatMulDone done)
    : async_call_(connections),
      connections_(connections),
      question_(question),
      deadline_(deadline),
      done_(std::move(done)) {}

void MatMulCall::Start() {
  auto plan = Plan(connections_, question_, !too_large_.ok());
  if (!plan.ok()) {
    Status status = plan.status();
    status.attempts = too_large_.attempts;
    return done_(std::move(status));
  }
  // The weights' n did not tell how to cut it better.
  if (!too_large_.ok() && plan->size() == 1) return done_(too_large_);
  SendParts(std::move(*plan));
}

void MatMulCall::StartByLearning(Status too_large) {
  too_large_ = std::move(too_large);
  Learn(0);
}

// Asks for n of the weights that outputs `output` … are as wide as, one after the other, then plans
// again. A weight that cannot be asked for is left as unknown as it was.
void MatMulCall::Learn(size_t output) {
  if (output == question_.products.size()) return Start();
  struct Asked {
    grpc::ClientContext context;
    v1::GetWeightRequest request;
    v1::Weight weight;
  };
  const std::string& weight = WidthWeight(question_, output);
  auto asked = std::make_shared<Asked>();
  asked->request.set_name(ResourceName(weight));
  Connections::Prepare(&asked->context, deadline_, weight);
  connections_.Next().weights->async()->GetWeight(
      &asked->context, &asked->request, &asked->weight,
      [self = shared_from_this(), asked, output, &weight](const grpc::Status& ended) mutable {
        if (ended.ok()) self->connections_.Learn(weight, asked->weight.n());
        asked.reset();
        self->Learn(output + 1);
      });
}

void MatMulCall::SendParts(std::vector<RowRange> rows) {
  const size_t at_once = std::min(rows.size(), connections_.size());
  {
    const std::lock_guard lock(mutex_);
    parts_.assign(rows.size(), {});
    for (size_t i = 0; i < rows.size(); ++i) parts_[i].rows = rows[i];
    underway_.assign(rows.size(), nullptr);
    parts_left_ = rows.size();
    next_part_ = at_once;
    failed_ = false;
  }
  for (size_t i = 0; i < at_once; ++i) Send(i);
}

// On a thread of gRPC's: a callback that asks again at once would go ever deeper into this stack.
void MatMulCall::EndSoon(size_t part, Status refusal) {
  auto alarm = std::make_shared<grpc::Alarm>();
  alarm->Set(std::chrono::system_clock::now(),
             [self = shared_from_this(), part, alarm, refusal = std::move(refusal)](bool) mutable {
               int attempts = 0;
               {
                 const std::lock_guard lock(self->mutex_);
                 attempts = self->parts_[part].status.attempts;
               }
               self->PartEnds(part, std::move(refusal), attempts);
               alarm.reset();  // it holds this function, which holds it
             });
}

void MatMulCall::Send(size_t part) {
  if (!has_failed())
    if (auto refusal = connections_.throttle.Refuse(question_.route(), Clock::now()))
      return EndSoon(part, *std::move(refusal));
  auto attempt = std::make_shared<Attempt>();
  Connections::Prepare(&attempt->context, deadline_, question_.route());
  RowRange rows;
  int attempts = 0;
  bool failed = false;
  {
    const std::lock_guard lock(mutex_);
    underway_[part] = attempt;
    rows = parts_[part].rows;
    attempts = ++parts_[part].status.attempts;
    failed = failed_;
  }
  if (attempts == 1) connections_.retries.CallStarts();
  if (failed) attempt->context.TryCancel();
  attempt->request = RequestOf(question_, rows);
  Connection& connection = connections_.Next();
  grpc::internal::CallbackUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
      connection.channel.get(), connection.matmul_method, &attempt->context, &attempt->request,
      &attempt->reply, [self = shared_from_this(), part](const grpc::Status& ended) {
        // Does not hold the attempt, whose context holds the channel.
        self->Answered(part, ended);
      });
}

void MatMulCall::Answered(size_t part, const grpc::Status& ended) {
  std::shared_ptr<Attempt> attempt;
  RowRange rows;
  int attempts = 0;
  bool failed = false;
  {
    const std::lock_guard lock(mutex_);
    attempt = std::move(underway_[part]);
    rows = parts_[part].rows;
    attempts = parts_[part].status.attempts;
    failed = failed_;
  }
  const Status status = ended.ok() ? Status() : FromGrpc(ended);
  connections_.throttle.Ended(question_.route(), status, Clock::now());
  if (ended.ok()) {
    auto outputs = OutputsOf(&attempt->reply, question_, rows);
    attempt.reset();
    return PartEnds(part, std::move(outputs), attempts);
  }
  attempt.reset();
  const auto wait = failed
                        ? std::nullopt
                        : connections_.retries.Wait(status, Repeatable::kIdempotent, attempts,
                                                    deadline_ - std::chrono::system_clock::now());
  if (!wait) return PartEnds(part, status, attempts);
  auto alarm = std::make_shared<grpc::Alarm>();
  alarm->Set(std::chrono::system_clock::now() +
                 std::chrono::duration_cast<std::chrono::system_clock::duration>(*wait),
             [self = shared_from_this(), part, alarm](bool) mutable {
               self->Send(part);
               alarm.reset();  // it holds this function, which holds it
             });
}

// Under mutex_: parts that were not sent never will be.
void MatMulCall::GiveUpTheRest() {
  failed_ = true;
  parts_left_ -= parts_.size() - next_part_;
  for (; next_part_ < parts_.size(); ++next_part_) {
    parts_[next_part_].cancelled = true;
    parts_[next_part_].status = Refusal(Code::kCancelled, {}, "another part failed");
  }
}

void MatMulCall::PartEnds(size_t part, Result<Outputs> outputs, int attempts) {
  std::optional<size_t> next;
  std::vector<std::shared_ptr<Attempt>> cancel;
  bool last = false;
  {
    const std::lock_guard lock(mutex_);
    Part& ended = parts_[part];
    if (outputs.ok()) {
      ended.outputs = std::move(*outputs);
    } else {
      ended.status = outputs.status();
      ended.cancelled = failed_ && ended.status.code == Code::kCancelled;
      if (!failed_ && !NeedsOtherParts(ended.status)) {
        GiveUpTheRest();
        cancel = underway_;
      }
    }
    ended.status.attempts = attempts;
    if (next_part_ < parts_.size()) next = next_part_++;
    last = --parts_left_ == 0;
  }
  for (const auto& attempt : cancel)
    if (attempt != nullptr) attempt->context.TryCancel();
  if (next) Send(*next);
  if (last) Finish();
}

// Nothing is underway any more.
void MatMulCall::Finish() {
  auto outputs = Join(question_, std::move(parts_));
  if (!outputs.ok() && too_large_.ok() && MayBeCut(outputs.status()))
    return StartByLearning(outputs.status());
  done_(std::move(outputs));
}

}  // namespace qmatmul::client
