// A MatMul on the wire: its request as slices, of which the payload is the last and may be the
// caller's own memory, and its reply read from the transport's slices straight to where the results
// go. The generated messages would copy a payload twice on its way out and once more on its way in.
//
// Private to client/. Free functions without state.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "client/status.h"
#include "client/types.h"

namespace qmatmul::client {

// Rows [begin, end) of a call.
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t rows() const { return end - begin; }
};

// What a MatMul was asked for; borrowed.
struct Question {
  std::span<const Product> products;
  const Activations* activations = nullptr;
  const MatMulOptions* options = nullptr;

  RowRange all() const { return {0, activations->rows}; }
  // The weight that balancers hash.
  std::string_view route() const {
    return products.empty() ? std::string_view() : products.front().weight;
  }
};

// MatMulRequest of some of the rows. What only the server minds is not looked at; but a part of the
// rows must have come from PlanRows.
grpc::ByteBuffer RequestOf(const Question& question, RowRange rows);
// All rows as a StreamMatMulRequest.
grpc::ByteBuffer StreamRequestOf(uint64_t id, const Question& question);

// The outputs of a MatMulResponse to those rows. Results go to Product::into (to the rows' part of
// it) where that is given.
//   kInvalidArgument  BUFFER_SIZE
//   kInternal         OUTPUT_COUNT, REPLY_MALFORMED
Result<std::vector<Output>> OutputsOf(grpc::ByteBuffer* reply, const Question& question,
                                      RowRange rows);

// A StreamMatMulResponse, in two steps: whose it is, and then what it holds. An id that is not there
// is 0, as proto3 has it.
std::optional<uint64_t> StreamIdOf(grpc::ByteBuffer* reply);
Result<std::vector<Output>> StreamOutputsOf(grpc::ByteBuffer* reply, const Question& question);

}  // namespace qmatmul::client
