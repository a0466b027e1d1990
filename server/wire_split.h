// Takes the payload out of a serialized message without copying it: the pieces in which gRPC received
// the message become a small envelope, which the generated parser reads, and spans of the one bytes
// field that is large.
//
// Why not a parser of our own for all of it: the envelope is a hundred bytes, so the generated parser
// costs nothing there, and what is odd in it (groups, malformed tags, lengths that overrun) gets the
// generated parser's verdict and no second opinion of ours.
//
// Thread-safety: free functions without shared state. Ownership: the payload's spans point into the
// message's pieces.
//
// Invariants
//   1. envelope, with the payload put back as the last field of its path, is equal to the message for
//      every reader of the contract: tests/fuzz compares the two.
//   2. Of several payload fields the last one counts, as protobuf has it.
#pragma once

#include <absl/container/inlined_vector.h>

#include <cstdint>
#include <span>
#include <string>

#include "kernels/matmul.h"

namespace qmatmul {

// The pieces of a message or of a part of it: of a small one, one or two.
using Pieces = absl::InlinedVector<ByteSpan, 4>;

struct SplitMessage {
  std::string envelope;  // the message without its payload
  Pieces payload;        // the payload's pieces, in order
  int64_t payload_bytes = 0;
  bool has_payload = false;

  void Clear();
};

// Field numbers from the message down to its payload.
inline constexpr uint32_t kMatMulPayload[] = {2, 3};           // MatMulRequest.activations.data
inline constexpr uint32_t kStreamMatMulPayload[] = {2, 2, 3};  // StreamMatMulRequest.request.…

// False when something in it is left to the generated parser to judge; `split` is then void.
bool SplitPayload(std::span<const ByteSpan> message, std::span<const uint32_t> path,
                  SplitMessage* split);

}  // namespace qmatmul
