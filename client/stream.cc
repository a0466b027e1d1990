#include "client/stream.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "client/connections.h"
#include "client/matmul_call.h"
#include "client/message.h"

namespace qmatmul::client {
namespace {

// The stream whose callback this thread is in.
thread_local const void* current_stream = nullptr;

}  // namespace

// gRPC calls the On… functions, one read and one write at a time; OnDone is the last of them.
class MatMulStream::Reactor : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Reactor(std::shared_ptr<Connections> connections, const StreamOptions& options)
      : connections_(std::move(connections)),
        window_(static_cast<size_t>(std::max(1, options.window))),
        timeout_(options.timeout > std::chrono::milliseconds::zero()
                     ? options.timeout
                     : connections_->options.timeout),
        stub_(connections_->Next().channel) {
    if (!options.weight.empty() && CheckId(options.weight).ok())
      context_.AddMetadata("qmatmul-weight", options.weight);
  }

  void Start() {
    stub_.PrepareBidiStreamingCall(&context_, "/qmatmul.v1.MatMulService/StreamMatMul", {}, this);
    // Submit and Close start writes from outside, until the hold is given back.
    AddHold();
    StartRead(&read_);
    StartCall();
  }

  Result<uint64_t> Submit(const Question& question, MatMulCallback callback);
  Status Close();
  void Cancel() { context_.TryCancel(); }

  void OnWriteDone(bool ok) override;
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& ended) override;

 private:
  struct Pending {
    std::vector<Product> products;
    Activations activations;
    MatMulOptions options;
    MatMulCallback callback;
  };

  Status WaitForRoom(std::unique_lock<std::mutex>& lock);
  grpc::WriteOptions TakeNext();
  void Call(MatMulCallback& callback, Result<std::vector<Output>> outputs);

  const std::shared_ptr<Connections> connections_;
  const size_t window_;
  const std::chrono::milliseconds timeout_;
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::ByteBuffer read_, write_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::unordered_map<uint64_t, Pending> pending_;
  std::deque<grpc::ByteBuffer> unsent_;
  uint64_t last_id_ = 0;
  Clock::time_point progress_ = Clock::now();
  bool writing_ = false;
  bool closing_ = false;
  bool held_ = true;
  bool broken_ = false;  // no more writes: the server has ended the stream, or it was cancelled
  bool ended_ = false;
  Status status_;  // why it is broken or ended
};

Status MatMulStream::Reactor::WaitForRoom(std::unique_lock<std::mutex>& lock) {
  // A callback has just made room; waiting there would keep the next one from coming.
  while (current_stream != this && pending_.size() >= window_ && !broken_ && !closing_) {
    const auto until = std::max(progress_, Clock::now() - timeout_) + timeout_;
    if (changed_.wait_until(lock, until) == std::cv_status::timeout &&
        Clock::now() >= progress_ + timeout_)
      return Refusal(Code::kDeadlineExceeded, {},
                     "the stream's window of " + std::to_string(window_) +
                         " requests stayed full for " + std::to_string(timeout_.count()) + " ms");
  }
  if (closing_) return Refusal(Code::kFailedPrecondition, "STREAM_CLOSED", "the stream was closed");
  if (!broken_) return {};
  return status_.ok() ? Refusal(Code::kUnavailable, {}, "the server has ended the stream")
                      : status_;
}

Result<uint64_t> MatMulStream::Reactor::Submit(const Question& question, MatMulCallback callback) {
  if (Status status = CheckQuestion(question); !status.ok()) return status;
  Pending pending{.products = {question.products.begin(), question.products.end()},
                  .activations = *question.activations,
                  .options = {},
                  .callback = std::move(callback)};
  std::unique_lock lock(mutex_);
  if (Status status = WaitForRoom(lock); !status.ok()) return status;
  const uint64_t id = ++last_id_;
  lock.unlock();
  grpc::ByteBuffer request = StreamRequestOf(id, question);
  const int64_t limit = connections_->options.message_bytes_max;
  if (static_cast<int64_t>(request.Length()) > limit)
    return Refusal(Code::kResourceExhausted, "MESSAGE_TOO_LARGE",
                   "the request has " + std::to_string(request.Length()) +
                       " bytes, the limit of a message is " + std::to_string(limit) +
                       "; send fewer rows at a time, or use MatMul, which splits them");
  lock.lock();
  if (broken_ || closing_) return WaitForRoom(lock);
  pending_.emplace(id, std::move(pending));
  unsent_.push_back(std::move(request));
  if (writing_) return id;
  const grpc::WriteOptions how = TakeNext();
  AddHold();  // while held_: not broken, not closing
  lock.unlock();
  StartWrite(&write_, how);
  RemoveHold();
  return id;
}

// Under mutex_, with something unsent. gRPC's own functions are called without it: they may call back.
grpc::WriteOptions MatMulStream::Reactor::TakeNext() {
  writing_ = true;
  write_.Swap(&unsent_.front());
  unsent_.pop_front();
  grpc::WriteOptions how;
  // More follows at once: the transport may send them together.
  if (!unsent_.empty()) how.set_buffer_hint();
  return how;
}

void MatMulStream::Reactor::OnWriteDone(bool ok) {
  std::unique_lock lock(mutex_);
  writing_ = false;
  if (!ok || broken_) return;  // OnReadDone and OnDone say why
  if (!unsent_.empty()) {
    const grpc::WriteOptions how = TakeNext();
    lock.unlock();
    StartWrite(&write_, how);
  } else if (closing_) {
    lock.unlock();
    StartWritesDone();
  }
}

void MatMulStream::Reactor::Call(MatMulCallback& callback, Result<std::vector<Output>> outputs) {
  const void* outer = std::exchange(current_stream, this);
  callback(std::move(outputs));
  current_stream = outer;
}

void MatMulStream::Reactor::OnReadDone(bool ok) {
  if (!ok) {
    std::unique_lock lock(mutex_);
    broken_ = true;
    const bool held = std::exchange(held_, false);
    changed_.notify_all();
    lock.unlock();
    if (held) RemoveHold();
    return;
  }
  Pending pending;
  const auto id = StreamIdOf(&read_);
  {
    const std::lock_guard lock(mutex_);
    const auto found = id ? pending_.find(*id) : pending_.end();
    if (found != pending_.end()) {
      pending = std::move(found->second);
      pending_.erase(found);
    } else if (status_.ok()) {
      status_ = Refusal(
          Code::kInternal, "REPLY_MALFORMED",
          id ? "the server answered request " + std::to_string(*id) + ", which is not underway"
             : "the server's reply is not a StreamMatMulResponse");
      context_.TryCancel();
    }
    progress_ = Clock::now();
    changed_.notify_one();
  }
  if (pending.callback) {
    const Question question{pending.products, &pending.activations, &pending.options};
    Call(pending.callback, StreamOutputsOf(&read_, question));
  }
  read_.Clear();
  StartRead(&read_);
}

void MatMulStream::Reactor::OnDone(const grpc::Status& ended) {
  std::unordered_map<uint64_t, Pending> unanswered;
  Status status;
  {
    const std::lock_guard lock(mutex_);
    broken_ = true;
    if (status_.ok() && !ended.ok()) status_ = FromGrpc(ended);
    unanswered.swap(pending_);
    if (status_.ok() && !unanswered.empty())
      status_ = Refusal(Code::kInternal, "STREAM_ENDED",
                        "the server ended the stream with " + std::to_string(unanswered.size()) +
                            " requests unanswered");
    status = status_;
  }
  for (auto& [id, pending] : unanswered) Call(pending.callback, status);
  // Under the lock: once it is free, this may be gone.
  const std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

Status MatMulStream::Reactor::Close() {
  std::unique_lock lock(mutex_);
  progress_ = Clock::now();
  const bool finish = !std::exchange(closing_, true) && !broken_ && !writing_ && unsent_.empty();
  const bool held = std::exchange(held_, false);
  changed_.notify_all();
  lock.unlock();
  // `finish` only with the hold, as it is set once and goes with broken_ or here.
  if (finish) StartWritesDone();
  if (held) RemoveHold();
  lock.lock();
  while (!ended_) {
    const auto until = progress_ + timeout_;
    if (changed_.wait_until(lock, until) != std::cv_status::timeout || ended_ ||
        Clock::now() < progress_ + timeout_)
      continue;
    if (status_.ok())
      status_ = Refusal(Code::kDeadlineExceeded, {},
                        "no reply came for " + std::to_string(timeout_.count()) + " ms, with " +
                            std::to_string(pending_.size()) + " requests unanswered");
    context_.TryCancel();
    changed_.wait(lock, [this] { return ended_; });
  }
  return status_;
}

MatMulStream::MatMulStream(std::shared_ptr<Connections> connections, const StreamOptions& options)
    : reactor_(std::make_unique<Reactor>(std::move(connections), options)) {
  reactor_->Start();
}

MatMulStream::~MatMulStream() {
  reactor_->Cancel();
  (void)reactor_->Close();
}

Result<uint64_t> MatMulStream::Submit(std::span<const Product> products,
                                      const Activations& activations, const MatMulOptions& options,
                                      MatMulCallback callback) {
  return reactor_->Submit(Question{products, &activations, &options}, std::move(callback));
}

Status MatMulStream::Close() { return reactor_->Close(); }

}  // namespace qmatmul::client
