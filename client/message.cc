#include "client/message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <cstring>
#include <utility>

#include "client/convert.h"
#include "qmatmul/v1/qmatmul.pb.h"

namespace qmatmul::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

// A smaller payload is cheaper to copy than to count references to.
constexpr size_t kBorrowedBytesMin = size_t{64} << 10;

constexpr uint32_t TagOf(int field, WireFormatLite::WireType type) {
  return static_cast<uint32_t>(field) << 3 | static_cast<uint32_t>(type);
}
constexpr uint32_t BytesTag(int field) {
  return TagOf(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
}
constexpr uint32_t kIdTag =
    TagOf(v1::StreamMatMulRequest::kRequestIdFieldNumber, WireFormatLite::WIRETYPE_VARINT);

// The bytes of `all` that belong to the rows: all of them unless there is one piece a row.
template <class T>
std::span<const T> OfRows(std::span<const T> all, int64_t count, RowRange rows, int64_t rows_all) {
  if (count != rows_all || rows.rows() == rows_all) return all;
  const size_t size = all.size() / static_cast<size_t>(rows_all);
  return all.subspan(static_cast<size_t>(rows.begin) * size,
                     static_cast<size_t>(rows.rows()) * size);
}

// Everything but the data.
v1::ActivationTensor TensorOf(const Activations& a, RowRange rows) {
  v1::ActivationTensor tensor;
  tensor.set_dtype(static_cast<v1::DataType>(a.dtype));
  tensor.add_shape(rows.rows());
  tensor.add_shape(a.k);
  if (a.dynamic) {
    tensor.mutable_dynamic();
  } else if (!a.scales.bytes.empty()) {
    const Scales scales(a.scales.dtype, OfRows(a.scales.bytes, a.scales.count(), rows, a.rows));
    ToProto(scales, tensor.mutable_static_scales()->mutable_scales());
  }
  const auto zero_points =
      OfRows(a.zero_points, static_cast<int64_t>(a.zero_points.size()), rows, a.rows);
  tensor.mutable_zero_points()->Add(zero_points.begin(), zero_points.end());
  return tensor;
}

// Everything but the activations.
v1::MatMulRequest HeadOf(const Question& question) {
  v1::MatMulRequest head;
  for (const Product& product : question.products) {
    head.add_weights(ResourceName(product.weight));
    ToProto(product.output, head.add_outputs());
  }
  ToProto(*question.options, head.mutable_options());
  for (const ChainStep& step : question.options->then) ToProto(step, head.add_then());
  return head;
}

// A field's tag and length, in front of `bytes` of content.
size_t FrameBytes(size_t bytes) { return 1 + CodedOutputStream::VarintSize64(bytes); }
uint8_t* PutFrame(int field, size_t bytes, uint8_t* out) {
  out = CodedOutputStream::WriteVarint32ToArray(BytesTag(field), out);
  return CodedOutputStream::WriteVarint64ToArray(bytes, out);
}

void Release(void* owner) { delete static_cast<std::shared_ptr<const void>*>(owner); }

// The payload stands last, so that everything before it is one slice and it is another.
grpc::ByteBuffer Assemble(std::optional<uint64_t> id, const v1::MatMulRequest& head,
                          const v1::ActivationTensor& tensor, std::span<const std::byte> payload,
                          const std::shared_ptr<const void>& owner) {
  const size_t head_bytes = head.ByteSizeLong(), tensor_bytes = tensor.ByteSizeLong();
  const size_t data_bytes =
      tensor_bytes + (payload.empty() ? 0 : FrameBytes(payload.size()) + payload.size());
  const size_t request_bytes = head_bytes + FrameBytes(data_bytes) + data_bytes;
  const size_t message_bytes =
      request_bytes +
      (id ? 1 + CodedOutputStream::VarintSize64(*id) + FrameBytes(request_bytes) : 0);
  const bool borrowed = owner != nullptr && payload.size() >= kBorrowedBytesMin;

  grpc::Slice first(message_bytes - (borrowed ? payload.size() : 0));
  uint8_t* out = const_cast<uint8_t*>(first.begin());  // fresh memory, ours until it is sent
  if (id) {
    out = CodedOutputStream::WriteVarint32ToArray(kIdTag, out);
    out = CodedOutputStream::WriteVarint64ToArray(*id, out);
    out = PutFrame(v1::StreamMatMulRequest::kRequestFieldNumber, request_bytes, out);
  }
  out = head.SerializeWithCachedSizesToArray(out);
  out = PutFrame(v1::MatMulRequest::kActivationsFieldNumber, data_bytes, out);
  out = tensor.SerializeWithCachedSizesToArray(out);
  if (!payload.empty()) out = PutFrame(v1::ActivationTensor::kDataFieldNumber, payload.size(), out);
  if (!borrowed) {
    if (!payload.empty()) std::memcpy(out, payload.data(), payload.size());
    return {&first, 1};
  }
  const grpc::Slice slices[] = {std::move(first),
                                {const_cast<std::byte*>(payload.data()), payload.size(), &Release,
                                 new std::shared_ptr<const void>(owner)}};
  return {slices, 2};
}

Status Malformed(const char* what) {
  return Refusal(Code::kInternal, "REPLY_MALFORMED",
                 std::string("the server's reply is not a ") + what +
                     "; is it a qmatmul server of this version?");
}

// Whether the message, or the part within the limit that is set, ended where it should: an end of the
// whole input within a limit is no proper end.
bool AtEnd(CodedInputStream* input) {
  return input->ConsumedEntireMessage() && input->BytesUntilLimit() <= 0;
}

// One OutputTensor within the limit that is set. What is not data goes through the generated message.
// Where `into` does not fit, its size stays in `misfit`.
bool ReadOutput(CodedInputStream* input, std::span<std::byte> into, Output* output,
                std::optional<uint32_t>* misfit) {
  std::string rest, data;
  {
    google::protobuf::io::StringOutputStream stream(&rest);
    CodedOutputStream rest_output(&stream);
    while (const uint32_t tag = input->ReadTag()) {
      if (tag != BytesTag(v1::OutputTensor::kDataFieldNumber)) {
        if (!WireFormatLite::SkipField(input, tag, &rest_output)) return false;
        continue;
      }
      uint32_t size = 0;
      if (!input->ReadVarint32(&size)) return false;
      misfit->reset();
      if (into.empty()          ? !input->ReadString(&data, static_cast<int>(size))
          : size == into.size() ? !input->ReadRaw(into.data(), static_cast<int>(size))
                                : (*misfit = size, !input->Skip(static_cast<int>(size))))
        return false;
    }
  }
  v1::OutputTensor tensor;
  if (!AtEnd(input) || !tensor.ParseFromString(rest)) return false;
  *output = FromProto(tensor);
  output->bytes = std::move(data);
  return true;
}

// The rows' part of a caller's buffer.
std::span<std::byte> IntoOf(const Product& product, const Question& question, RowRange rows) {
  const int64_t all = question.activations->rows;
  if (rows.rows() == all || all == 0) return product.into;
  const size_t row_bytes = product.into.size() / static_cast<size_t>(all);
  return product.into.subspan(static_cast<size_t>(rows.begin) * row_bytes,
                              static_cast<size_t>(rows.rows()) * row_bytes);
}

Status WrongBuffer(const Output& output, size_t buffer_bytes, size_t result_bytes) {
  return Refusal(Code::kInvalidArgument, "BUFFER_SIZE",
                 "Product::into for weight '" + output.execution.weight + "' has " +
                     std::to_string(buffer_bytes) + " bytes but the result has " +
                     std::to_string(result_bytes) + "; size it as rows * n * element size");
}

// A MatMulResponse within the limit that is set.
Result<std::vector<Output>> ReadResponse(CodedInputStream* input, const Question& question,
                                         RowRange rows) {
  std::vector<Output> outputs;
  Status wrong_buffer;
  while (const uint32_t tag = input->ReadTag()) {
    if (tag != BytesTag(v1::MatMulResponse::kOutputsFieldNumber)) {
      if (!WireFormatLite::SkipField(input, tag)) return Malformed("MatMulResponse");
      continue;
    }
    std::span<std::byte> into;
    if (outputs.size() < question.products.size())
      into = IntoOf(question.products[outputs.size()], question, rows);
    uint32_t size = 0;
    if (!input->ReadVarint32(&size)) return Malformed("MatMulResponse");
    const auto limit = input->PushLimit(static_cast<int>(size));
    // Until data of the right size has come.
    std::optional<uint32_t> misfit;
    if (!into.empty()) misfit = 0;
    outputs.emplace_back();
    if (!ReadOutput(input, into, &outputs.back(), &misfit)) return Malformed("MatMulResponse");
    if (misfit && wrong_buffer.ok())
      wrong_buffer = WrongBuffer(outputs.back(), into.size(), *misfit);
    input->PopLimit(limit);
  }
  if (!AtEnd(input)) return Malformed("MatMulResponse");
  if (outputs.size() != question.products.size())
    return Refusal(Code::kInternal, "OUTPUT_COUNT",
                   "the server sent " + std::to_string(outputs.size()) + " outputs for " +
                       std::to_string(question.products.size()) +
                       " weights; is it a qmatmul server?");
  if (!wrong_buffer.ok()) return wrong_buffer;
  return outputs;
}

}  // namespace

grpc::ByteBuffer RequestOf(const Question& question, RowRange rows) {
  const Activations& a = *question.activations;
  const auto payload = rows.rows() == a.rows ? a.data : OfRows(a.data, a.rows, rows, a.rows);
  return Assemble({}, HeadOf(question), TensorOf(a, rows), payload, a.owner);
}

grpc::ByteBuffer StreamRequestOf(uint64_t id, const Question& question) {
  const Activations& a = *question.activations;
  return Assemble(id, HeadOf(question), TensorOf(a, question.all()), a.data, a.owner);
}

Result<std::vector<Output>> OutputsOf(grpc::ByteBuffer* reply, const Question& question,
                                      RowRange rows) {
  grpc::ProtoBufferReader reader(reply);
  if (!reader.status().ok()) return Malformed("MatMulResponse");
  CodedInputStream input(&reader);
  return ReadResponse(&input, question, rows);
}

std::optional<uint64_t> StreamIdOf(grpc::ByteBuffer* reply) {
  grpc::ProtoBufferReader reader(reply);
  if (!reader.status().ok()) return {};
  CodedInputStream input(&reader);
  while (const uint32_t tag = input.ReadTag()) {
    uint64_t id = 0;
    if (tag == kIdTag) return input.ReadVarint64(&id) ? std::optional(id) : std::nullopt;
    if (!WireFormatLite::SkipField(&input, tag)) return {};
  }
  return input.ConsumedEntireMessage() ? std::optional<uint64_t>(0) : std::nullopt;
}

Result<std::vector<Output>> StreamOutputsOf(grpc::ByteBuffer* reply, const Question& question) {
  grpc::ProtoBufferReader reader(reply);
  if (!reader.status().ok()) return Malformed("StreamMatMulResponse");
  CodedInputStream input(&reader);
  while (const uint32_t tag = input.ReadTag()) {
    const bool response = tag == BytesTag(v1::StreamMatMulResponse::kResponseFieldNumber);
    if (!response && tag != BytesTag(v1::StreamMatMulResponse::kErrorFieldNumber)) {
      if (!WireFormatLite::SkipField(&input, tag)) break;
      continue;
    }
    uint32_t size = 0;
    if (!input.ReadVarint32(&size)) break;
    input.PushLimit(static_cast<int>(size));
    if (response) return ReadResponse(&input, question, question.all());
    google::rpc::Status error;
    if (!error.ParseFromCodedStream(&input) || error.code() == 0) break;
    return FromRpc(error);
  }
  return Malformed("StreamMatMulResponse");
}

}  // namespace qmatmul::client
