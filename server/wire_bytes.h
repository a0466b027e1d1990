// gRPC's byte buffers ↔ envelopes, payload spans and reply pieces: where the bytes of MatMul enter and
// leave. Everything else on the wire goes through the generated code.
//
// Thread-safety: free functions without shared state. Ownership: spans point into the byte buffer,
// which the caller keeps as it is until the request is completed; slices own their blocks.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <span>
#include <vector>

#include "server/wire.h"

namespace qmatmul::v1 {
class StreamMatMulRequest;
}

namespace qmatmul {

// Reads the message without its payload into `envelope`, and where the payload lies into `buffers`.
// False when it is not such a message.
bool ReadMessage(grpc::ByteBuffer* bytes, v1::MatMulRequest* envelope, MatMulBuffers* buffers);
bool ReadMessage(grpc::ByteBuffer* bytes, v1::StreamMatMulRequest* envelope,
                 MatMulBuffers* buffers);

// The same from the pieces of a message, for those who have no byte buffer.
bool ReadMessage(std::span<const ByteSpan> message, v1::MatMulRequest* envelope,
                 MatMulBuffers* buffers);
bool ReadMessage(std::span<const ByteSpan> message, v1::StreamMatMulRequest* envelope,
                 MatMulBuffers* buffers);

// A serialized MatMulResponse.
grpc::ByteBuffer ToBytes(std::vector<ReplyPiece> reply);
// A serialized StreamMatMulResponse around it.
grpc::ByteBuffer ToStreamBytes(uint64_t request_id, std::vector<ReplyPiece> reply);
// … or around an error.
grpc::ByteBuffer ToStreamBytes(uint64_t request_id, const Status& status);

}  // namespace qmatmul
