// Messages of qmatmul.v1 ↔ what the engine understands. Every refusal of a request's content is
// made here (or, for an upload's bytes, in engine/weight_upload.cc); what comes out has been
// checked once and is trusted from then on.
//
// Thread-safety: free functions without shared state. Ownership: views in a Request point into the
// payload it was read from and into its MatMulBuffers, which the caller keeps until the request is
// completed; the envelope may go at once.
//
// Invariants
//   1. A request that passes has sizes that agree with its bytes and its weights, and values that
//      docs/numerics.md §0 admits; only the range of float activations is left to Device::Run,
//      which reads them anyway.
//   2. Sizes are multiplied only after they have been bounded.
//   3. A refusal names the field, the value and the limit, and carries exactly one ErrorInfo.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/engine/engine.h"
#include "server/engine/request.h"
#include "server/engine/status.h"
#include "server/engine/weight_store.h"
#include "server/field_path.h"
#include "server/reply_pool.h"
#include "server/wire_split.h"

namespace qmatmul::v1 {
class ExplainRequest;
class ExplainResponse;
class MatMulRequest;
class MatMulResponse;
class Weight;
class WeightSpec;
}  // namespace qmatmul::v1

namespace qmatmul {

// A chunk of an upload is at most this (CHUNK_TOO_LARGE). Part of the contract, so no option.
inline constexpr int64_t kChunkBytesMax = int64_t{1} << 20;

// What the views of a Request point into, beside the payload.
struct MatMulBuffers {
  // Where one output goes: its elements, and for top_k its columns.
  struct Output {
    ReplyPool::Block data;
    ReplyPool::Block indices;
    int64_t data_bytes = 0;
    int64_t indices_bytes = 0;
  };
  Pieces payload;
  std::string gathered;      // the payload, when it could not be left where it was
  int64_t copied_bytes = 0;  // of the payload, beyond the one gather that packing is
  std::string device;
  std::string kernel;
  std::vector<float> scales;
  std::vector<int32_t> zero_points;
  std::vector<float> scales_used;
  absl::InlinedVector<Output, 1> outputs;
};

// `envelope` is the message without its payload, which is in buffers->payload (wire_split.h). The
// answers' sizes are known from here on: request->bytes is input and output.
//   kInvalidArgument   a field of the message
//   kNotFound          WEIGHT_UNKNOWN
//   kResourceExhausted REPLY_TOO_LARGE
//   kUnimplemented     VERIFY_UNIMPLEMENTED
Status ParseMatMul(const v1::MatMulRequest& envelope, const WeightStore& weights,
                   int64_t reply_bytes_max, MatMulBuffers* buffers, Request* request);
// Takes memory for the answer and points the request's output views into it. After ParseMatMul and
// admission. kResourceExhausted REPLY_MEMORY.
Status AllocateReply(ReplyPool* pool, Request* request, MatMulBuffers* buffers);

// A stretch of a serialized MatMulResponse: bytes of `head`, then `bytes` of the block, if any.
struct ReplyPiece {
  std::string head;
  ReplyPool::Block block;
  int64_t bytes = 0;
};
using Reply = absl::InlinedVector<ReplyPiece, 1>;
// The serialized MatMulResponse, with what was done in it; takes the blocks. After the request was
// completed without error.
Reply BuildReply(const Request& request, MatMulBuffers* buffers);

// What an Explain asks; `query`'s views point into the message and into `weights`.
struct ExplainQuestion {
  WeightPtrs weights;
  RouteQuery query;
  Arithmetic arithmetic = Arithmetic::kW8A8;
};
Status ParseExplain(const v1::ExplainRequest& message, const WeightStore& weights,
                    ExplainQuestion* question);
void DescribePlan(const Plan& plan, v1::ExplainResponse* reply);

// --- Weights. ---
// WEIGHT_ID when `name` is not "weights/" and an id.
Status ParseWeightName(const std::string& name, const FieldPath& field, std::string_view* id);
bool IsWeightId(std::string_view id);
Status ParseRegistration(const v1::WeightSpec& message, Registration* registration);
Status CheckChunk(size_t bytes);
void DescribeWeight(const Weight& weight, v1::Weight* message);

// --- Errors. ---
Status WeightUnknown(std::string_view id);
// What this version does not do yet, by name.
Status Unimplemented(std::string reason, const std::string& what, std::string field = {});
// The serialized google.rpc.Status (ErrorInfo, BadRequest, RetryInfo) that travels beside code and
// message.
std::string StatusDetails(const Status& status);

}  // namespace qmatmul
