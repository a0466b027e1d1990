// The reply of a MatMul: its size, its memory, its bytes. Declared in wire.h and wire_fields.h.
#include <cstring>

#include "server/wire.h"
#include "server/wire_fields.h"
#include "server/wire_varint.h"

namespace qmatmul {
namespace {

using Wide = __int128;

std::string Num(int64_t value) { return std::to_string(value); }

// The weight that gives output `i`.
const Weight& WeightOf(const Request& request, size_t i) {
  return request.then.empty() ? *request.weights[i] : *request.then.back().weight;
}

int64_t Columns(const Request& request, size_t i) {
  const int64_t top_k = request.outputs[i].top_k;
  return top_k > 0 ? top_k : WeightOf(request, i).content->spec.n;
}

int64_t RowBytes(const Request& request, size_t i) {
  return Columns(request, i) * BitsOf(request.outputs[i].epilogue.dtype) / 8;
}

int64_t IndexBytes(const SegmentOutput& output) {
  return output.top_k * static_cast<int64_t>(sizeof(int32_t));
}

// A raw sum of float activations means nothing without the scale its row was quantized by.
bool CarriesScales(const Request& request, const SegmentOutput& output) {
  return (IsFloat(request.activations.dtype) || !request.then.empty()) && output.epilogue.raw();
}

void WriteScales(const Request& request, const MatMulBuffers& buffers, v1::Scales* message) {
  const auto rows = static_cast<size_t>(request.activations.rows);
  std::string* data = message->mutable_data();
  message->set_dtype(v1::DATA_TYPE_F32);
  data->resize(rows * sizeof(float));
  for (size_t m = 0; m < rows; ++m) {
    const float scale = buffers.scales_used.empty()
                            ? request.activations.scale(static_cast<int64_t>(m))
                            : buffers.scales_used[m];
    std::memcpy(data->data() + m * sizeof(float), &scale, sizeof scale);
  }
}

// What was done for output `i`.
void DescribeExecution(const Request& request, size_t i, v1::Execution* execution) {
  const Execution& done = request.execution;
  const SegmentOutput& output = request.outputs[i];
  const Weight& weight = WeightOf(request, i);
  const std::string_view kernel = done.kernels[request.then.empty() ? i : request.then.size()];
  execution->mutable_weight()->assign("weights/").append(weight.id);
  execution->set_digest(weight.content->digest);
  execution->set_generation(weight.content->generation);
  execution->set_device(done.device.data(), done.device.size());
  execution->set_kernel(kernel.data(), kernel.size());
  if (!IsFloat(output.epilogue.dtype)) execution->set_overflow(ToWire(output.epilogue.overflow));
  execution->set_batch_rows(done.batch_rows);
  execution->set_padded_rows(done.padded_rows);
  execution->set_queue_ns(done.queue_ns);
  execution->set_compute_ns(done.compute_ns);
  execution->set_overflow_count(output.outcome.overflow_count);
}

// Tags and lengths in front of an output and of its data.
constexpr size_t kHeadsBytesMax = 32;

// The output without its payload, until the thread's next call: the message and its parts keep their
// memory from call to call.
const v1::OutputTensor& DescribeOutput(const Request& request, size_t i,
                                       const MatMulBuffers& buffers) {
  thread_local v1::OutputTensor tensor;
  const SegmentOutput& output = request.outputs[i];
  tensor.set_dtype(ToWire(output.epilogue.dtype));
  tensor.clear_shape();
  tensor.add_shape(request.activations.rows);
  tensor.add_shape(Columns(request, i));
  tensor.clear_activation_scales();
  if (CarriesScales(request, output))
    WriteScales(request, buffers, tensor.mutable_activation_scales());
  tensor.mutable_execution()->Clear();
  DescribeExecution(request, i, tensor.mutable_execution());
  return tensor;
}

bool TakeBlock(ReplyPool* pool, int64_t bytes, ReplyPool::Block* block) {
  if (bytes > 0) *block = pool->Take(bytes);
  return bytes == 0 || *block != nullptr;
}

Status ReplyMemory(int64_t bytes) {
  return Status{Code::kResourceExhausted, "REPLY_MEMORY",
                "no memory for a reply of " + Num(bytes) + " bytes; split the call by rows"}
      .With("value", Num(bytes));
}

}  // namespace

// The reply must pass the same limit as a request, or gRPC would drop a finished answer.
Status MeasureReply(int64_t reply_bytes_max, Request* request) {
  Wide bytes = 0;
  for (size_t i = 0; i < request->outputs.size(); ++i)
    bytes += static_cast<Wide>(request->activations.rows) *
             (RowBytes(*request, i) + IndexBytes(request->outputs[i]));
  if (bytes > reply_bytes_max) {
    const std::string size =
        bytes > INT64_MAX ? "more than 2^63" : Num(static_cast<int64_t>(bytes));
    return Status{Code::kResourceExhausted, "REPLY_TOO_LARGE",
                  "the reply would hold " + size + " bytes, the limit is " + Num(reply_bytes_max) +
                      "; split the call by rows"}
        .With("value", size)
        .With("limit", Num(reply_bytes_max));
  }
  request->bytes = static_cast<int64_t>(bytes);
  for (const ByteSpan& piece : request->activations.bytes)
    request->bytes += static_cast<int64_t>(piece.bytes);
  return {};
}

Status AllocateReply(ReplyPool* pool, Request* request, MatMulBuffers* buffers) {
  const int64_t rows = request->activations.rows;
  bool carries_scales = false;
  buffers->outputs.resize(request->outputs.size());
  for (size_t i = 0; i < request->outputs.size(); ++i) {
    SegmentOutput& output = request->outputs[i];
    MatMulBuffers::Output& memory = buffers->outputs[i];
    const int64_t row_bytes = RowBytes(*request, i);
    memory.data_bytes = rows * row_bytes;
    memory.indices_bytes = rows * IndexBytes(output);
    if (!TakeBlock(pool, memory.data_bytes, &memory.data) ||
        !TakeBlock(pool, memory.indices_bytes, &memory.indices))
      return ReplyMemory(memory.data_bytes + memory.indices_bytes);
    if (memory.data != nullptr) output.view = {ReplyPool::Data(memory.data.get()), row_bytes};
    if (memory.indices != nullptr) output.indices = ReplyPool::Data(memory.indices.get());
    carries_scales = carries_scales || CarriesScales(*request, output);
  }
  const bool computed =
      request->activations.quantization == Quantization::kDynamic || !request->then.empty();
  if (carries_scales && computed) {
    buffers->scales_used.resize(static_cast<size_t>(rows));
    request->scales_used = buffers->scales_used;
  }
  return {};
}

// Each output is written as its small fields, then the payload: in front of it its tag and length.
Reply BuildReply(const Request& request, MatMulBuffers* buffers) {
  Reply pieces;
  for (size_t i = 0; i < request.outputs.size(); ++i) {
    MatMulBuffers::Output& memory = buffers->outputs[i];
    const v1::OutputTensor& tensor = DescribeOutput(request, i, *buffers);
    std::string data_head, indices_head;
    if (memory.data_bytes > 0)
      AppendFieldHead(v1::OutputTensor::kDataFieldNumber, memory.data_bytes, &data_head);
    if (memory.indices_bytes > 0)
      AppendFieldHead(v1::OutputTensor::kIndicesFieldNumber, memory.indices_bytes, &indices_head);
    const size_t fields = tensor.ByteSizeLong();
    const auto rest = static_cast<int64_t>(fields + data_head.size() + indices_head.size());
    std::string head;
    head.reserve(fields + kHeadsBytesMax);
    AppendFieldHead(v1::MatMulResponse::kOutputsFieldNumber,
                    rest + memory.data_bytes + memory.indices_bytes, &head);
    const size_t at = head.size();
    head.resize(at + fields);
    tensor.SerializeWithCachedSizesToArray(reinterpret_cast<uint8_t*>(&head[at]));
    head += data_head;
    pieces.push_back({std::move(head), std::move(memory.data), memory.data_bytes});
    if (memory.indices_bytes > 0)
      pieces.push_back({std::move(indices_head), std::move(memory.indices), memory.indices_bytes});
  }
  return pieces;
}

}  // namespace qmatmul
