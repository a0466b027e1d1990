#include "server/wire_bytes.h"

#include <grpcpp/support/proto_buffer_reader.h>

#include <cstring>
#include <memory>

#include "qmatmul/v1/qmatmul.pb.h"
#include "server/wire_split.h"
#include "server/wire_varint.h"

namespace qmatmul {
namespace {

Pieces SpansOf(grpc::ByteBuffer* bytes) {
  Pieces spans;
  grpc::ProtoBufferReader reader(bytes);
  const void* data = nullptr;
  int size = 0;
  while (reader.Next(&data, &size))
    spans.push_back({static_cast<const std::byte*>(data), static_cast<size_t>(size)});
  return spans;
}

v1::ActivationTensor* ActivationsOf(v1::MatMulRequest* envelope) {
  return envelope->has_activations() ? envelope->mutable_activations() : nullptr;
}
v1::ActivationTensor* ActivationsOf(v1::StreamMatMulRequest* envelope) {
  return envelope->has_request() ? ActivationsOf(envelope->mutable_request()) : nullptr;
}

// The generated parser's way, for messages that are written oddly: right, and not fast.
template <class Message>
bool ReadGathered(std::span<const ByteSpan> message, Message* envelope, MatMulBuffers* buffers) {
  std::string whole;
  for (const ByteSpan& piece : message)
    whole.append(reinterpret_cast<const char*>(piece.data), piece.bytes);
  if (!envelope->ParseFromString(whole)) return false;
  v1::ActivationTensor* const activations = ActivationsOf(envelope);
  if (activations == nullptr) return true;
  buffers->gathered = std::move(*activations->mutable_data());
  activations->clear_data();
  buffers->payload = {
      {reinterpret_cast<const std::byte*>(buffers->gathered.data()), buffers->gathered.size()}};
  buffers->copied_bytes += 2 * static_cast<int64_t>(buffers->gathered.size());
  return true;
}

// More than most envelopes have, so that one does not grow byte by byte.
constexpr size_t kEnvelopeBytes = 256;

template <class Message>
bool Read(std::span<const ByteSpan> message, std::span<const uint32_t> path, Message* envelope,
          MatMulBuffers* buffers) {
  SplitMessage split;
  split.envelope.reserve(kEnvelopeBytes);
  if (!SplitPayload(message, path, &split)) return ReadGathered(message, envelope, buffers);
  if (!envelope->ParseFromString(split.envelope)) return false;
  buffers->payload = std::move(split.payload);
  return true;
}

// Larger messages may have large envelopes, whose memory is not worth keeping.
constexpr size_t kKeptBytesMax = 64 << 10;

template <class Message>
const Message* ReadKept(grpc::ByteBuffer* bytes, MatMulBuffers* buffers) {
  thread_local std::unique_ptr<Message> kept;
  thread_local bool is_large = false;
  if (kept == nullptr || is_large) kept = std::make_unique<Message>();
  is_large = bytes->Length() > kKeptBytesMax;
  // NOLINTNEXTLINE(clang-analyzer-cplusplus.NewDelete): it lives as long as the thread
  return ReadMessage(SpansOf(bytes), kept.get(), buffers) ? kept.get() : nullptr;
}

using Slices = absl::InlinedVector<grpc::Slice, 2>;

// The bytes before a block's data are free for what the wire puts in front of it, so that both go out as
// one slice.
void AppendPieces(Reply reply, Slices* slices) {
  for (ReplyPiece& piece : reply) {
    const bool fits = piece.block != nullptr && piece.head.size() <= ReplyPool::kHeadBytes;
    if (!fits && !piece.head.empty()) slices->emplace_back(piece.head);
    if (piece.block == nullptr) continue;
    ReplyPool::Header* const block = piece.block.release();
    const size_t head_bytes = fits ? piece.head.size() : 0;
    std::byte* const begin = ReplyPool::Data(block) - head_bytes;
    std::memcpy(begin, piece.head.data(), head_bytes);
    slices->emplace_back(
        begin, head_bytes + static_cast<size_t>(piece.bytes),
        [](void* released) { ReplyPool::Release(static_cast<ReplyPool::Header*>(released)); },
        block);
  }
}

int64_t BytesOf(const Reply& reply) {
  int64_t bytes = 0;
  for (const ReplyPiece& piece : reply)
    bytes += static_cast<int64_t>(piece.head.size()) + piece.bytes;
  return bytes;
}

}  // namespace

bool ReadMessage(std::span<const ByteSpan> message, v1::MatMulRequest* envelope,
                 MatMulBuffers* buffers) {
  return Read(message, kMatMulPayload, envelope, buffers);
}

bool ReadMessage(std::span<const ByteSpan> message, v1::StreamMatMulRequest* envelope,
                 MatMulBuffers* buffers) {
  return Read(message, kStreamMatMulPayload, envelope, buffers);
}

const v1::MatMulRequest* ReadMatMul(grpc::ByteBuffer* bytes, MatMulBuffers* buffers) {
  return ReadKept<v1::MatMulRequest>(bytes, buffers);
}

const v1::StreamMatMulRequest* ReadStreamMatMul(grpc::ByteBuffer* bytes, MatMulBuffers* buffers) {
  return ReadKept<v1::StreamMatMulRequest>(bytes, buffers);
}

grpc::ByteBuffer ToBytes(Reply reply) {
  Slices slices;
  AppendPieces(std::move(reply), &slices);
  if (slices.empty()) slices.emplace_back();  // a message of no bytes is a message
  return {slices.data(), slices.size()};
}

grpc::ByteBuffer ToStreamBytes(uint64_t request_id, Reply reply) {
  std::string head;
  if (request_id != 0) {
    AppendVarint(v1::StreamMatMulResponse::kRequestIdFieldNumber << 3, &head);
    AppendVarint(request_id, &head);
  }
  AppendFieldHead(v1::StreamMatMulResponse::kResponseFieldNumber, BytesOf(reply), &head);
  if (reply.empty()) reply.emplace_back();
  reply.front().head.insert(0, head);
  Slices slices;
  AppendPieces(std::move(reply), &slices);
  return {slices.data(), slices.size()};
}

grpc::ByteBuffer ToStreamBytes(uint64_t request_id, const Status& status) {
  v1::StreamMatMulResponse message;
  message.set_request_id(request_id);
  message.mutable_error()->ParseFromString(StatusDetails(status));
  grpc::Slice slice(message.SerializeAsString());
  return {&slice, 1};
}

}  // namespace qmatmul
