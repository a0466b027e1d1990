// What a server computes, in plain loops: for tests of what the SDK makes of whole answers and of
// parts of them. A weight "n7" has 7 columns, whatever the request's k is. Thread-safe, without state.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <string>

#include "qmatmul/v1/qmatmul.pb.h"

namespace qmatmul::testing {

// Answers as MatMul does: INT8 activations with zero points and static scales; INT32, INT8 (saturated,
// or refused with OVERFLOW) and F32 outputs; top_k; a chain, whose steps are told apart but are no
// products. A reply of more than `reply_bytes_max` is refused as the server refuses it.
grpc::Status FakeProduct(const v1::MatMulRequest& request, v1::MatMulResponse* response,
                         int64_t reply_bytes_max = int64_t{64} << 20);

// n of "weights/n7" or "n7".
int64_t FakeColumns(const std::string& name);

}  // namespace qmatmul::testing
