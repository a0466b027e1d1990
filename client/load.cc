#include "client/load.h"

#include <absl/synchronization/mutex.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpc/grpc.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "client/convert.h"
#include "client/message.h"
#include "client/throttle.h"
#include "google/rpc/status.pb.h"

namespace qmatmul::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr char kMatMulMethod[] = "/qmatmul.v1.MatMulService/MatMul";
constexpr char kStreamMethod[] = "/qmatmul.v1.MatMulService/StreamMatMul";
constexpr int kConnectionsMax = 256;

constexpr uint32_t LengthTag(int field) {
  return static_cast<uint32_t>(field) << 3 | WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
}
constexpr uint32_t VarintTag(int field) {
  return static_cast<uint32_t>(field) << 3 | WireFormatLite::WIRETYPE_VARINT;
}

bool EnterMessage(CodedInputStream* in, CodedInputStream::Limit* outer) {
  uint32_t length = 0;
  if (!in->ReadVarint32(&length)) return false;
  *outer = in->PushLimit(static_cast<int>(length));
  return true;
}

// Moves to the first field `wanted` of the message that is being read.
bool SkipTo(CodedInputStream* in, uint32_t wanted) {
  for (uint32_t tag = in->ReadTag(); tag != 0; tag = in->ReadTag()) {
    if (tag == wanted) return true;
    if (!WireFormatLite::SkipField(in, tag)) return false;
  }
  return false;
}

bool ReadTimes(CodedInputStream* in, Execution* execution) {
  for (uint32_t tag = in->ReadTag(); tag != 0; tag = in->ReadTag()) {
    uint64_t value = 0;
    int64_t* field = nullptr;
    switch (tag) {
      case VarintTag(v1::Execution::kBatchRowsFieldNumber): field = &execution->batch_rows; break;
      case VarintTag(v1::Execution::kPaddedRowsFieldNumber): field = &execution->padded_rows; break;
      case VarintTag(v1::Execution::kQueueNsFieldNumber): field = &execution->queue_ns; break;
      case VarintTag(v1::Execution::kComputeNsFieldNumber): field = &execution->compute_ns; break;
      default:
        if (!WireFormatLite::SkipField(in, tag)) return false;
        continue;
    }
    if (!in->ReadVarint64(&value)) return false;
    *field = static_cast<int64_t>(value);
  }
  return true;
}

}  // namespace

struct EncodedCall::Parts {
  std::string method;
  grpc::Slice message;
  grpc::ByteBuffer buffer;
  std::string weight;  // the routing header's value
};

struct LoadReply::Parts {
  grpc::ByteBuffer* buffer;
  const Status* status;
  bool stream;  // the buffer is a StreamMatMulResponse
};

EncodedCall EncodedCall::Of(std::string method, std::span<const std::byte> message) {
  auto parts = std::make_shared<Parts>();
  parts->method = std::move(method);
  parts->message = grpc::Slice(message.data(), message.size());
  parts->buffer = grpc::ByteBuffer(&parts->message, 1);
  EncodedCall call;
  call.parts_ = std::move(parts);
  return call;
}

void SetUpProcess() {
  // NOLINTBEGIN(concurrency-mt-unsafe): there is no other thread yet
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  // NOLINTEND(concurrency-mt-unsafe)
  // A tenth of what a small call costs.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
}

EncodedCall EncodedCall::MatMul(std::span<const Product> products, const Activations& activations,
                                const MatMulOptions& options) {
  const Question question{products, &activations, &options};
  grpc::Slice bytes;
  // A slice that borrows the payload must not outlive it; one that is gathered owns it.
  RequestOf(question, question.all()).DumpToSingleSlice(&bytes);
  EncodedCall call = Of(kMatMulMethod, std::as_bytes(std::span(bytes.begin(), bytes.size())));
  auto parts = std::make_shared<Parts>(*call.parts_);
  if (!products.empty()) parts->weight = products[0].weight;
  call.parts_ = std::move(parts);
  return call;
}

EncodedCall EncodedCall::Health() { return Of("/grpc.health.v1.Health/Check", {}); }

std::string EncodedCall::message() const {
  return {reinterpret_cast<const char*>(parts_->message.begin()), parts_->message.size()};
}
size_t EncodedCall::message_bytes() const { return parts_->message.size(); }

LoadReply::LoadReply(Parts* parts, Clock::time_point sent)
    : parts_(parts), sent_(sent), done_(Clock::now()) {}

const Status& LoadReply::status() const { return *parts_->status; }
size_t LoadReply::bytes() const { return parts_->buffer->Length(); }

bool LoadReply::ReadExecution(Execution* execution) const {
  if (!ok() || !parts_->buffer->Valid()) return false;
  grpc::ProtoBufferReader reader(parts_->buffer);
  CodedInputStream in(&reader);
  constexpr int kPath[] = {v1::StreamMatMulResponse::kResponseFieldNumber,
                           v1::MatMulResponse::kOutputsFieldNumber,
                           v1::OutputTensor::kExecutionFieldNumber};
  for (int field : std::span(kPath).subspan(parts_->stream ? 0 : 1)) {
    CodedInputStream::Limit outer;
    if (!SkipTo(&in, LengthTag(field)) || !EnterMessage(&in, &outer)) return false;
  }
  return ReadTimes(&in, execution);
}

Result<std::vector<Output>> LoadReply::Outputs() const {
  if (!ok()) return status();
  grpc::ProtoBufferReader reader(parts_->buffer);
  v1::StreamMatMulResponse wrapped;
  v1::MatMulResponse* response = wrapped.mutable_response();
  const bool parsed = parts_->stream ? wrapped.ParseFromZeroCopyStream(&reader)
                                     : response->ParseFromZeroCopyStream(&reader);
  response = wrapped.mutable_response();
  if (!parsed) {
    Status broken;
    broken.code = Code::kInternal;
    broken.message = "a reply of " + std::to_string(bytes()) + " bytes is not a MatMulResponse";
    return broken;
  }
  std::vector<Output> outputs;
  for (v1::OutputTensor& tensor : *response->mutable_outputs()) {
    outputs.push_back(FromProto(tensor));
    outputs.back().bytes = std::move(*tensor.mutable_data());
  }
  return outputs;
}

// ---- Sending ----

struct LoadClient::Parts {
  explicit Parts(LoadOptions load_options)
      : options(std::move(load_options)), throttle(options.sent_per_accepted) {}

  void Begin() { in_flight.fetch_add(1, std::memory_order_relaxed); }
  void End() {
    // The last one leaves under the lock: who drains may destroy this right after.
    int64_t count = in_flight.load(std::memory_order_relaxed);
    while (count > 1)
      if (in_flight.compare_exchange_weak(count, count - 1, std::memory_order_acq_rel)) return;
    const std::lock_guard lock(mutex);
    in_flight.fetch_sub(1, std::memory_order_acq_rel);
    idle.notify_all();
  }
  // Null when this call is never held back: no clock is read for it.
  OverloadThrottle* ThrottleOf(const std::string& weight) {
    return options.sent_per_accepted > 0 && !weight.empty() ? &throttle : nullptr;
  }
  // Code, times and reply to the caller. The caller of this ends the call.
  static void Tell(const LoadDone& done, grpc::ByteBuffer* buffer, const Status& status,
                   bool is_stream, LoadReply::Clock::time_point sent) {
    LoadReply::Parts reply{buffer, &status, is_stream};
    done(LoadReply(&reply, sent));
  }

  LoadOptions options;
  OverloadThrottle throttle;
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs;
  std::atomic<uint64_t> next{0};
  std::atomic<int64_t> in_flight{0};
  std::mutex mutex;  // guards what follows
  std::condition_variable idle;
  std::vector<Stream*> streams;  // one a connection; null: none open
  int open_streams = 0;
};

// One call and all it needs while it is in flight; deletes itself.
struct LoadClient::Unary {
  grpc::ClientContext context;
  grpc::ByteBuffer reply;
  std::shared_ptr<const EncodedCall::Parts> call;
  LoadDone done;
  LoadReply::Clock::time_point sent;
  Parts* owner = nullptr;
};

// One StreamMatMul. Deletes itself when it has ended; the owner forgets it then.
struct LoadClient::Stream final : grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
  struct Pending {
    LoadDone done;
    LoadReply::Clock::time_point sent;
  };

  Stream(Parts* parts, size_t connection) : owner(parts), index(connection) {
    owner->stubs[index]->PrepareBidiStreamingCall(&context, kStreamMethod, {}, this);
    AddHold();  // writes start from outside a reaction
    StartRead(&incoming);
    StartCall();
  }

  // The owner's mutex is held, here and in Close.
  void Send(const EncodedCall::Parts& call, LoadDone done) {
    const uint64_t id = next_id++;
    pending.emplace(id, Pending{std::move(done), LoadReply::Clock::now()});
    unsent.push_back(Wrap(id, call.message));
    WriteNext();
  }
  void WriteNext() {
    if (writing || unsent.empty()) return;
    writing = true;
    outgoing.Swap(&unsent.front());
    unsent.pop_front();
    // While more wait, gRPC may keep this one until they come: one write to the socket for several.
    StartWrite(&outgoing,
               unsent.empty() ? grpc::WriteOptions() : grpc::WriteOptions().set_buffer_hint());
  }
  void Close() {
    if (closing) return;
    closing = true;
    StartWritesDone();
    RemoveHold();
  }

  // {request_id, request} around the bytes of a request, which are shared.
  static grpc::ByteBuffer Wrap(uint64_t id, const grpc::Slice& message) {
    uint8_t head[32];
    uint8_t* at = head;
    const auto put = [&at](uint64_t value) {
      for (; value > 127; value >>= 7) *at++ = static_cast<uint8_t>(value | 128);
      *at++ = static_cast<uint8_t>(value);
    };
    put(VarintTag(v1::StreamMatMulRequest::kRequestIdFieldNumber));
    put(id);
    put(LengthTag(v1::StreamMatMulRequest::kRequestFieldNumber));
    put(message.size());
    const grpc::Slice slices[] = {grpc::Slice(head, static_cast<size_t>(at - head)), message};
    return {slices, 2};
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(owner->mutex);
    writing = false;
    if (ok) WriteNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      const std::lock_guard lock(owner->mutex);
      if (owner->streams[index] == this) owner->streams[index] = nullptr;
      if (!closing) RemoveHold();
      closing = true;
      return;
    }
    grpc::ByteBuffer reply;
    reply.Swap(&incoming);
    StartRead(&incoming);
    uint64_t id = 0;
    Status status;
    if (!ReadHead(&reply, &id, &status)) return context.TryCancel();
    Pending call;
    {
      const std::lock_guard lock(owner->mutex);
      const auto found = pending.find(id);
      if (found == pending.end()) return context.TryCancel();
      call = std::move(found->second);
      pending.erase(found);
    }
    Parts::Tell(call.done, &reply, status, true, call.sent);
    owner->End();
  }

  // The id, and the error of this one request if that is what came.
  static bool ReadHead(grpc::ByteBuffer* reply, uint64_t* id, Status* status) {
    grpc::ProtoBufferReader reader(reply);
    CodedInputStream in(&reader);
    for (uint32_t tag = in.ReadTag(); tag != 0; tag = in.ReadTag()) {
      if (tag == VarintTag(v1::StreamMatMulResponse::kRequestIdFieldNumber)) {
        if (!in.ReadVarint64(id)) return false;
      } else if (tag == LengthTag(v1::StreamMatMulResponse::kErrorFieldNumber)) {
        CodedInputStream::Limit outer;
        google::rpc::Status error;
        if (!EnterMessage(&in, &outer) || !error.ParseFromCodedStream(&in)) return false;
        in.PopLimit(outer);
        *status = FromRpc(error);
      } else if (!WireFormatLite::SkipField(&in, tag)) {
        return false;
      }
    }
    return true;
  }

  void OnDone(const grpc::Status& status) override {
    std::unordered_map<uint64_t, Pending> lost;
    {
      const std::lock_guard lock(owner->mutex);
      lost.swap(pending);
    }
    const Status why = !status.ok()
                           ? FromGrpc(status)
                           : Refusal(Code::kUnknown, {}, "the server ended the stream early");
    grpc::ByteBuffer none;
    for (auto& [id, call] : lost) Parts::Tell(call.done, &none, why, true, call.sent);
    Parts* const parts = owner;
    delete this;  // first, as in Send
    for (size_t i = 0; i < lost.size(); ++i) parts->End();
    const std::lock_guard lock(parts->mutex);
    --parts->open_streams;
    parts->idle.notify_all();
  }

  Parts* owner;
  size_t index;
  grpc::ClientContext context;
  grpc::ByteBuffer incoming, outgoing;
  // Guarded by the owner's mutex.
  std::unordered_map<uint64_t, Pending> pending;
  std::deque<grpc::ByteBuffer> unsent;
  uint64_t next_id = 1;
  bool writing = false;
  bool closing = false;
};

LoadClient::LoadClient(LoadOptions options) : parts_(std::make_unique<Parts>(std::move(options))) {
  grpc_init();  // never shut down: see KeepGrpc in client.cc
  const int limit =
      static_cast<int>(std::clamp<int64_t>(parts_->options.message_bytes_max, 1, INT32_MAX));
  const int count = std::clamp(parts_->options.connections, 1, kConnectionsMax);
  for (int i = 0; i < count; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt("qmatmul.load_connection", i);  // equal arguments would share one connection
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxReceiveMessageSize(limit);
    arguments.SetMaxSendMessageSize(limit);
    parts_->channels.push_back(grpc::CreateCustomChannel(
        parts_->options.server, grpc::InsecureChannelCredentials(), arguments));
    parts_->stubs.push_back(std::make_unique<grpc::GenericStub>(parts_->channels.back()));
  }
  parts_->streams.resize(parts_->stubs.size());
}

LoadClient::~LoadClient() {
  Drain();
  std::unique_lock lock(parts_->mutex);
  for (Stream* stream : parts_->streams)
    if (stream != nullptr) stream->Close();
  parts_->idle.wait(lock, [this] { return parts_->open_streams == 0; });
}

const LoadOptions& LoadClient::options() const { return parts_->options; }
int64_t LoadClient::in_flight() const { return parts_->in_flight.load(); }

Status LoadClient::Connect(std::chrono::milliseconds wait) {
  const auto until = std::chrono::system_clock::now() + wait;
  for (const auto& channel : parts_->channels) {
    if (channel->WaitForConnected(until)) continue;
    Status status;
    status.code = Code::kUnavailable;
    status.message = "no connection to " + parts_->options.server + " within " +
                     std::to_string(wait.count()) + " ms";
    return status;
  }
  return {};
}

void LoadClient::Send(const EncodedCall& call, LoadDone done) {
  Parts& parts = *parts_;
  parts.Begin();
  const size_t connection = parts.next.fetch_add(1, std::memory_order_relaxed) % parts.stubs.size();
  if (parts.options.stream && call.parts_->method == kMatMulMethod) {
    const std::lock_guard lock(parts.mutex);
    Stream*& stream = parts.streams[connection];
    if (stream == nullptr) {
      ++parts.open_streams;
      stream = new Stream(&parts, connection);
    }
    return stream->Send(*call.parts_, std::move(done));
  }
  if (OverloadThrottle* throttle = parts.ThrottleOf(call.parts_->weight)) {
    const auto now = LoadReply::Clock::now();
    if (const auto refusal = throttle->Refuse(call.parts_->weight, now)) {
      grpc::ByteBuffer none;
      Parts::Tell(done, &none, *refusal, false, now);
      return parts.End();
    }
  }
  auto* unary = new Unary;
  unary->call = call.parts_;
  unary->done = std::move(done);
  unary->owner = &parts;
  unary->context.set_deadline(std::chrono::system_clock::now() + parts.options.timeout);
  if (parts.options.routing_header && !call.parts_->weight.empty())
    unary->context.AddMetadata("qmatmul-weight", call.parts_->weight);
  unary->sent = LoadReply::Clock::now();
  parts.stubs[connection]->UnaryCall(
      &unary->context, unary->call->method, {}, &unary->call->buffer, &unary->reply,
      [unary](const grpc::Status& status) {
        const Status told = status.ok() ? Status() : FromGrpc(status);
        if (OverloadThrottle* throttle = unary->owner->ThrottleOf(unary->call->weight))
          throttle->Ended(unary->call->weight, told, LoadReply::Clock::now());
        Parts::Tell(unary->done, &unary->reply, told, false, unary->sent);
        // Before the call ends: its context holds the channel, and a channel whose last holder is a
        // thread of gRPC's own callback queue makes that thread wait for itself.
        Parts* const owner = unary->owner;
        delete unary;
        owner->End();
      });
}

void LoadClient::Drain() {
  std::unique_lock lock(parts_->mutex);
  const auto idle = [this] { return parts_->in_flight.load() == 0; };
  if (!parts_->options.stream) return parts_->idle.wait(lock, idle);
  if (parts_->idle.wait_for(lock, parts_->options.timeout, idle)) return;
  for (Stream* stream : parts_->streams)
    if (stream != nullptr) stream->context.TryCancel();
  parts_->idle.wait(lock, idle);
}

}  // namespace qmatmul::client
