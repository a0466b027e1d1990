#include "server/matmul_stream.h"

#include <grpcpp/server_context.h>

#include <deque>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "qmatmul/v1/qmatmul.pb.h"
#include "server/matmul_call.h"
#include "server/wire_bytes.h"

namespace qmatmul {
namespace {

class MatMulStream;

// One request of a stream; it holds its room in flight until its reply has been sent.
class StreamedMatMul final : public MatMulCall {
 public:
  StreamedMatMul(ServiceContext& context, MatMulStream& stream)
      : MatMulCall(context), stream_(stream) {}

  uint64_t request_id = 0;
  grpc::ByteBuffer message;
  grpc::ByteBuffer reply;

 private:
  void Answer(Reply pieces) override;

  MatMulStream& stream_;
};

class MatMulStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  MatMulStream(ServiceContext& context, const grpc::CallbackServerContext& rpc)
      : context_(context),
        count_(context.calls),
        deadline_ns_(EngineDeadline(context, rpc.deadline())),
        client_(ClientOf(rpc.peer())) {
    StartRead(&incoming_);
  }

  // The answer of one of its requests is there.
  void Send(StreamedMatMul* call) {
    std::unique_lock lock(mutex_);
    ready_.emplace_back(call);
    StartNextWrite();
    Unlock(std::move(lock));
  }

  void OnReadDone(bool ok) override {
    if (!ok) {  // the client has no more, or is gone
      std::unique_lock lock(mutex_);
      reading_ended_ = true;
      return Unlock(std::move(lock));
    }
    auto call = std::make_unique<StreamedMatMul>(context_, *this);
    call->message.Swap(&incoming_);
    call->deadline_ns = deadline_ns_;
    call->client = client_;
    const v1::StreamMatMulRequest* const envelope =
        ReadStreamMatMul(&call->message, call->buffers());
    if (envelope != nullptr) call->request_id = envelope->request_id();
    bool reads_on = false;
    {
      std::unique_lock lock(mutex_);
      if (envelope == nullptr) return End(MalformedMessage("StreamMatMulRequest"), std::move(lock));
      if (!in_flight_.emplace(call->request_id, call.get()).second)
        return End(IdInFlight(call->request_id), std::move(lock));
      reads_on = ++open_ < context_.stream_requests_max;
      reading_paused_ = !reads_on;
      // A broken stream answers nobody, so no answer that goes out would start the reading again.
      reading_ended_ = reading_ended_ || (reading_paused_ && is_broken_);
      call->cancelled.store(is_broken_,
                            std::memory_order_relaxed);  // what came after the cancel, too
      ++starting_;
    }
    // Reading goes on before this one is computed, which may happen here.
    if (reads_on) StartRead(&incoming_);
    call.release()->Start(envelope->request());
    std::unique_lock lock(mutex_);
    --starting_;
    Unlock(std::move(lock));
  }

  void OnWriteDone(bool ok) override {
    std::unique_lock lock(mutex_);
    ready_.pop_front();
    --open_;
    is_writing_ = false;
    is_broken_ = is_broken_ || !ok;
    StartNextWrite();
    if (reading_paused_ && !reading_ended_) {
      reading_paused_ = false;
      StartRead(&incoming_);
    }
    Unlock(std::move(lock));
  }

  void OnCancel() override {
    std::unique_lock lock(mutex_);
    is_broken_ = true;
    // No read is under way that would tell of the end.
    reading_ended_ = reading_ended_ || reading_paused_;
    CancelAll();
    Unlock(std::move(lock));
  }

  void OnDone() override {
    std::unique_lock lock(mutex_);
    is_done_ = true;
    Unlock(std::move(lock));
  }

 private:
  Status IdInFlight(uint64_t request_id) const {
    return {Code::kInvalidArgument, "REQUEST_ID_IN_FLIGHT",
            "request_id " + std::to_string(request_id) +
                " is in flight on this stream already; an id is free again when its reply has come",
            "request_id"};
  }

  // The stream ends with an error.
  void End(const Status& status, std::unique_lock<std::mutex> lock) {
    if (!ending_.has_value()) ending_ = ToGrpc(context_, status);
    reading_ended_ = true;
    CancelAll();
    Unlock(std::move(lock));
  }

  void CancelAll() {
    for (const auto& [id, call] : in_flight_)
      call->cancelled.store(true, std::memory_order_relaxed);
  }

  // One write at a time: a reader that is slow is waited for here, with a bounded queue behind it.
  void StartNextWrite() {
    if (is_writing_) return;
    if (is_broken_ || ending_.has_value()) {  // nobody will read them
      for (const auto& call : ready_) in_flight_.erase(call->request_id);
      open_ -= static_cast<int64_t>(ready_.size());
      ready_.clear();
      return;
    }
    if (ready_.empty()) return;
    is_writing_ = true;
    // The client may use the id again as soon as it has the reply, which is before OnWriteDone.
    in_flight_.erase(ready_.front()->request_id);
    grpc::WriteOptions options;
    if (ready_.size() > 1) options.set_buffer_hint();  // the next one follows at once
    StartWrite(&ready_.front()->reply, options);
  }

  // Leaves with the lock: finishes the call when nothing is left to do, and ends this object when gRPC
  // is done with it too.
  void Unlock(std::unique_lock<std::mutex> lock) {
    const bool idle = open_ == 0 && starting_ == 0;
    const bool finishes = !is_finished_ && reading_ended_ && idle;
    is_finished_ = is_finished_ || finishes;
    const bool ends = is_done_ && idle;
    lock.unlock();
    if (finishes) Finish(ending_.value_or(grpc::Status::OK));
    if (ends) delete this;
  }

  ServiceContext& context_;
  CallCount count_;
  const int64_t deadline_ns_;
  const uint64_t client_;
  grpc::ByteBuffer incoming_;
  std::mutex mutex_;                                         // guards what follows
  std::unordered_map<uint64_t, StreamedMatMul*> in_flight_;  // read, and not yet being answered
  std::deque<std::unique_ptr<StreamedMatMul>> ready_;        // to be sent, the front one first
  int64_t open_ = 0;                                         // read, and not yet sent
  int64_t starting_ = 0;  // calls of OnReadDone that are not through
  std::optional<grpc::Status> ending_;
  bool is_writing_ = false;
  bool is_broken_ = false;
  bool reading_paused_ = false;
  bool reading_ended_ = false;
  bool is_finished_ = false;
  bool is_done_ = false;
};

void StreamedMatMul::Answer(Reply pieces) {
  message.Clear();
  if (status.ok()) {
    reply = ToStreamBytes(request_id, std::move(pieces));
  } else {
    CountRefusal(context_, status);
    reply = ToStreamBytes(request_id, status);
  }
  stream_.Send(this);
}

}  // namespace

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* NewMatMulStream(
    ServiceContext& context, const grpc::CallbackServerContext& rpc) {
  return new MatMulStream(context, rpc);
}

}  // namespace qmatmul
