#include "client/convert.h"

#include <cstring>

#include "google/rpc/error_details.pb.h"

namespace qmatmul::client {
namespace {

constexpr std::string_view kPrefix = "weights/";

// The SDK's enumerators have the proto's numbers, so that converting is a cast in both directions.
static_assert(static_cast<int>(DataType::kInt8) == v1::DATA_TYPE_INT8);
static_assert(static_cast<int>(DataType::kBF16) == v1::DATA_TYPE_BF16);
static_assert(static_cast<int>(DataType::kInt2) == v1::DATA_TYPE_INT2);
static_assert(v1::DataType_MAX == v1::DATA_TYPE_INT2);
static_assert(static_cast<int>(Layout::kNK) == v1::LAYOUT_NK);
static_assert(static_cast<int>(Overflow::kSaturate) == v1::OVERFLOW_SATURATE);
static_assert(static_cast<int>(Overflow::kError) == v1::OVERFLOW_ERROR);
static_assert(static_cast<int>(Activation::kRelu) == v1::ACTIVATION_RELU);
static_assert(static_cast<int>(Arithmetic::kW8A8) == v1::ARITHMETIC_W8A8);
static_assert(static_cast<int>(Arithmetic::kW8A32) == v1::ARITHMETIC_W8A32);

v1::DataType ProtoOf(DataType dtype) { return static_cast<v1::DataType>(dtype); }
DataType TypeOf(v1::DataType dtype) { return static_cast<DataType>(dtype); }

template <class T>
std::vector<T> Values(const std::string& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

Execution FromProto(const v1::Execution& e) {
  return {.weight = IdOf(e.weight()),
          .digest = e.digest(),
          .generation = e.generation(),
          .device = e.device(),
          .kernel = e.kernel(),
          .overflow = static_cast<Overflow>(e.overflow()),
          .batch_rows = e.batch_rows(),
          .padded_rows = e.padded_rows(),
          .queue_ns = e.queue_ns(),
          .compute_ns = e.compute_ns(),
          .verified = e.verified(),
          .overflow_count = e.overflow_count()};
}

void AddDetail(const google::protobuf::Any& any, Status* status) {
  google::rpc::ErrorInfo info;
  google::rpc::RetryInfo retry;
  google::rpc::BadRequest bad_request;
  if (any.UnpackTo(&info)) {
    status->reason = info.reason();
    for (const auto& [key, value] : info.metadata()) status->metadata[key] = value;
  } else if (any.UnpackTo(&retry)) {
    status->retry_after = std::chrono::milliseconds(retry.retry_delay().seconds() * 1000 +
                                                    retry.retry_delay().nanos() / 1'000'000);
  } else if (any.UnpackTo(&bad_request)) {
    for (const auto& violation : bad_request.field_violations())
      status->fields.push_back({violation.field(), violation.description()});
  }
}

}  // namespace

Status Refusal(Code code, std::string reason, std::string message) {
  Status status;
  status.code = code;
  status.reason = std::move(reason);
  status.message = std::move(message);
  return status;
}

Status FromRpc(const google::rpc::Status& status) {
  Status result;
  const int code = status.code();
  result.code = code > 0 && code <= static_cast<int>(Code::kUnauthenticated)
                    ? static_cast<Code>(code)
                    : Code::kUnknown;
  result.message = status.message();
  result.attempts = 1;
  for (const auto& any : status.details()) AddDetail(any, &result);
  return result;
}

Status FromGrpc(const grpc::Status& status) {
  google::rpc::Status details;
  // What cannot be read leaves an error without details.
  if (!details.ParseFromString(status.error_details())) details.Clear();
  details.set_code(status.error_code());
  details.set_message(status.error_message());
  return FromRpc(details);
}

std::string ResourceName(std::string_view id) { return std::string(kPrefix) + std::string(id); }

std::string IdOf(const std::string& resource_name) {
  return resource_name.starts_with(kPrefix) ? resource_name.substr(kPrefix.size()) : resource_name;
}

void ToProto(const WeightUpload& weight, const std::string& digest, v1::WeightSpec* spec) {
  spec->set_weight_id(weight.id);
  spec->set_dtype(ProtoOf(weight.dtype));
  spec->set_layout(static_cast<v1::Layout>(weight.layout));
  spec->set_k(weight.k);
  spec->set_n(weight.n);
  spec->set_group_size(weight.group_size);
  spec->set_scale_dtype(ProtoOf(weight.scales.dtype));
  spec->set_scale_count(weight.scales.count());
  spec->set_bias_count(static_cast<int64_t>(weight.bias.size()));
  spec->set_expected_digest(digest);
  spec->set_replace(weight.replace);
  spec->set_replace_digest(weight.replace_digest);
}

void ToProto(const Scales& scales, v1::Scales* message) {
  message->set_dtype(ProtoOf(scales.dtype));
  message->set_data(scales.bytes.data(), scales.bytes.size());
}

void ToProto(const OutputSpec& output, v1::OutputSpec* spec) {
  spec->set_dtype(ProtoOf(output.dtype));
  spec->set_overflow(static_cast<v1::Overflow>(output.overflow));
  if (output.scale) spec->set_scale(*output.scale);
  if (output.zero_point) spec->set_zero_point(*output.zero_point);
  spec->set_activation(static_cast<v1::Activation>(output.activation));
  spec->set_top_k(output.top_k);
  spec->set_skip_bias(output.skip_bias);
}

void ToProto(const MatMulOptions& options, v1::MatMulOptions* message) {
  message->set_arithmetic(static_cast<v1::Arithmetic>(options.arithmetic));
  message->set_device(options.device);
  message->set_kernel(options.kernel);
  message->set_verify(options.verify);
}

void ToProto(const ChainStep& step, v1::ChainStep* message) {
  message->set_weight(ResourceName(step.weight));
  message->set_arithmetic(static_cast<v1::Arithmetic>(step.arithmetic));
  ToProto(step.output, message->mutable_output());
}

WeightInfo FromProto(const v1::Weight& w) {
  WeightInfo info{.id = IdOf(w.name()),
                  .dtype = TypeOf(w.dtype()),
                  .layout = static_cast<Layout>(w.layout()),
                  .k = w.k(),
                  .n = w.n(),
                  .group_size = w.group_size(),
                  .scale_dtype = TypeOf(w.scale_dtype()),
                  .scale_count = w.scale_count(),
                  .bias_count = w.bias_count(),
                  .digest = w.digest(),
                  .generation = w.generation(),
                  .create_time_ns = w.create_time_ns(),
                  .copies = {},
                  .absences = {}};
  for (const auto& copy : w.copies())
    info.copies.push_back({copy.device(), copy.layout(), copy.bytes()});
  for (const auto& absence : w.absences())
    info.absences.push_back({absence.device(), absence.reason()});
  return info;
}

Explanation FromProto(const v1::ExplainResponse& response) {
  Explanation explanation{.device = response.device(),
                          .kernel = response.kernel(),
                          .runs_inline = response.inline_(),
                          .rule = response.rule(),
                          .candidates = {}};
  for (const auto& c : response.candidates()) {
    Candidate candidate{c.device(), c.kernel(), c.eligible(), c.chosen(), {}, c.reason()};
    if (c.has_predicted_ns()) candidate.predicted_ns = c.predicted_ns();
    explanation.candidates.push_back(std::move(candidate));
  }
  return explanation;
}

DeviceInfo FromProto(const v1::Device& d) {
  return {.id = d.id(),
          .kind = d.kind(),
          .description = d.description(),
          .threads = d.threads(),
          .lanes = d.lanes(),
          .memory_bytes = d.memory_bytes(),
          .memory_used_bytes = d.memory_used_bytes(),
          .features = {d.features().begin(), d.features().end()},
          .state = d.state()};
}

KernelInfo FromProto(const v1::Kernel& k) {
  KernelInfo info{.name = k.name(),
                  .device = k.device(),
                  .supported = k.supported(),
                  .disabled = k.disabled(),
                  .quarantined = k.quarantined(),
                  .reason = k.reason(),
                  .measured_gops = {},
                  .layout = k.layout(),
                  .weight = static_cast<DataType>(k.weight()),
                  .arithmetic = static_cast<Arithmetic>(k.arithmetic())};
  if (k.has_measured_gops()) info.measured_gops = k.measured_gops();
  return info;
}

Statistics FromProto(const v1::Statistics& s) {
  Statistics statistics{.version = s.version(),
                        .uptime_ns = s.uptime_ns(),
                        .requests = s.requests(),
                        .errors = s.errors(),
                        .rows = s.rows(),
                        .ops = s.ops(),
                        .weights = s.weights(),
                        .weight_bytes = s.weight_bytes(),
                        .packs = s.packs(),
                        .in_flight_requests = s.in_flight_requests(),
                        .in_flight_bytes = s.in_flight_bytes(),
                        .output_overflows = s.output_overflows(),
                        .kernels = {}};
  for (const auto& k : s.kernels())
    statistics.kernels.push_back(
        {k.device(), k.kernel(), k.executions(), k.rows(), k.ops(), k.compute_ns(), k.gops()});
  return statistics;
}

Output FromProto(const v1::OutputTensor& tensor) {
  Output output{.dtype = TypeOf(tensor.dtype()),
                .shape = {tensor.shape().begin(), tensor.shape().end()},
                .bytes = {},
                .indices = Values<int32_t>(tensor.indices()),
                .activation_scales = {},
                .execution = FromProto(tensor.execution())};
  if (tensor.activation_scales().dtype() == v1::DATA_TYPE_F32)
    output.activation_scales = Values<float>(tensor.activation_scales().data());
  return output;
}

}  // namespace qmatmul::client
