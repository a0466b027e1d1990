// StreamMatMul: many MatMuls over one call, each answered when it is ready.
//
// Flow control: a stream has at most stream_requests_max requests that are not answered and sent; the
// next is read when one has gone out. So a client that does not read its replies stops its own stream
// and nothing else, and what it holds is bounded.
//
// Errors: a request's error is its answer and the stream goes on. An id that is in flight already, or
// bytes that are no message, end the stream, since replies could no longer be told apart; what is in
// flight is then cancelled.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "server/service.h"

namespace qmatmul {

// Deletes itself when gRPC is done with the call and the last of its requests is completed.
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* NewMatMulStream(
    ServiceContext& context, const grpc::CallbackServerContext& rpc);

}  // namespace qmatmul
