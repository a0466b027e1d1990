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
bool ReadMessage(std::span<const ByteSpan> message, v1::MatMulRequest* envelope,
                 MatMulBuffers* buffers);
bool ReadMessage(std::span<const ByteSpan> message, v1::StreamMatMulRequest* envelope,
                 MatMulBuffers* buffers);

// The same of a byte buffer, into an envelope that this thread keeps from call to call, so that its
// strings and parts are not allocated anew. Good until the thread's next call; null when `bytes` are no
// such message.
const v1::MatMulRequest* ReadMatMul(grpc::ByteBuffer* bytes, MatMulBuffers* buffers);
const v1::StreamMatMulRequest* ReadStreamMatMul(grpc::ByteBuffer* bytes, MatMulBuffers* buffers);

// A serialized MatMulResponse.
grpc::ByteBuffer ToBytes(Reply reply);
// A serialized StreamMatMulResponse around it.
grpc::ByteBuffer ToStreamBytes(uint64_t request_id, Reply reply);
// … or around an error.
grpc::ByteBuffer ToStreamBytes(uint64_t request_id, const Status& status);

}  // namespace qmatmul
