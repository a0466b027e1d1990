#include "client/client.h"

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "client/convert.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "qmatmul/v1/qmatmul.grpc.pb.h"

namespace qmatmul::client {
namespace {

// The contract's limit for one chunk of an upload.
constexpr size_t kChunkBytesMax = size_t{1} << 20;
constexpr int kConnectionsMax = 64;
// The most a server returns at once.
constexpr int kPageSize = 1000;

Status Invalid(std::string reason, std::string message) {
  Status status;
  status.code = Code::kInvalidArgument;
  status.reason = std::move(reason);
  status.message = std::move(message);
  return status;
}

// The one rule of an id that cannot be left to the server: other bytes neither fit the routing header nor
// a proto3 string, and the call would die inside the transport.
Status CheckId(std::string_view id) {
  if (std::all_of(id.begin(), id.end(), [](char c) { return c >= 0x20 && c <= 0x7e; })) return {};
  return Invalid("WEIGHT_ID",
                 "a weight id of " + std::to_string(id.size()) +
                     " bytes has some that are not printable ASCII; use A-Z a-z 0-9 . _ -");
}

// Keeps gRPC running to the end of the process. When its last object goes, grpc_shutdown joins a thread
// that may sit in a poll of 10 s: seen here, every third process took 10 s to end.
void KeepGrpc() {
  static const bool kept = (grpc_init(), true);
  (void)kept;
}

Status CheckIds(std::span<const Product> products) {
  for (const Product& product : products)
    if (Status status = CheckId(product.weight); !status.ok()) return status;
  return {};
}

}  // namespace

// One connection of the pool, with a stub of each service on it.
struct Connection {
  explicit Connection(const std::shared_ptr<grpc::Channel>& channel)
      : weights(v1::WeightService::NewStub(channel)),
        matmul(v1::MatMulService::NewStub(channel)),
        info(v1::InfoService::NewStub(channel)),
        admin(v1::AdminService::NewStub(channel)),
        health(grpc::health::v1::Health::NewStub(channel)) {}
  std::unique_ptr<v1::WeightService::Stub> weights;
  std::unique_ptr<v1::MatMulService::Stub> matmul;
  std::unique_ptr<v1::InfoService::Stub> info;
  std::unique_ptr<v1::AdminService::Stub> admin;
  std::unique_ptr<grpc::health::v1::Health::Stub> health;
};

struct Client::Connections {
  explicit Connections(ClientOptions client_options) : options(std::move(client_options)) {
    KeepGrpc();
    const int count = std::clamp(options.connections, 1, kConnectionsMax);
    for (int i = 0; i < count; ++i) {
      grpc::ChannelArguments arguments;
      // gRPC shares one connection among channels of equal arguments.
      arguments.SetInt("qmatmul.connection", i);
      const int limit =
          static_cast<int>(std::clamp<int64_t>(options.message_bytes_max, 1, INT32_MAX));
      arguments.SetMaxReceiveMessageSize(limit);
      arguments.SetMaxSendMessageSize(limit);
      arguments.SetUserAgentPrefix("qmatmul-cpp/" + std::string(Version()));
      pool.emplace_back(
          grpc::CreateCustomChannel(options.server, grpc::InsecureChannelCredentials(), arguments));
    }
  }

  Connection& Next() { return pool[next.fetch_add(1, std::memory_order_relaxed) % pool.size()]; }

  // Every unary call goes through here: deadline, routing header, connection, errors.
  template <class Call>
  Status Invoke(std::chrono::milliseconds timeout, std::string_view weight, Call call) {
    if (Status status = CheckId(weight); !status.ok()) return status;
    grpc::ClientContext context;
    Prepare(&context, timeout, weight);
    const grpc::Status status = call(Next(), &context);
    return status.ok() ? Status{} : FromGrpc(status);
  }

  Result<Registration> Register(const v1::RegisterWeightRequest& first, const WeightUpload& weight,
                                bool with_data, const UploadProgress& progress);

  void Prepare(grpc::ClientContext* context, std::chrono::milliseconds timeout,
               std::string_view weight) const {
    if (timeout <= std::chrono::milliseconds::zero()) timeout = options.timeout;
    context->set_deadline(std::chrono::system_clock::now() + timeout);
    // Balancers hash it, so that a replica keeps its share of the weights.
    if (!weight.empty()) context->AddMetadata("qmatmul-weight", std::string(weight));
  }

  const ClientOptions options;
  std::vector<Connection> pool;
  std::atomic<unsigned> next{0};
};

namespace {

using UploadWriter = grpc::ClientWriter<v1::RegisterWeightRequest>;

// Streams data, scales and bias as chunks. False when the server has ended the stream; Finish says
// why.
bool WriteChunks(const WeightUpload& weight, const UploadProgress& progress, UploadWriter* writer) {
  const std::span<const std::byte> parts[] = {weight.data, weight.scales.bytes,
                                              std::as_bytes(weight.bias)};
  int64_t total = 0;
  for (const auto& part : parts) total += static_cast<int64_t>(part.size());
  int64_t sent = 0;
  v1::RegisterWeightRequest message;
  for (const auto& part : parts) {
    for (size_t begin = 0; begin < part.size(); begin += kChunkBytesMax) {
      const auto chunk = part.subspan(begin, std::min(kChunkBytesMax, part.size() - begin));
      message.set_chunk(chunk.data(), chunk.size());
      if (!writer->Write(message)) return false;
      sent += static_cast<int64_t>(chunk.size());
      if (progress) progress(sent, total);
    }
  }
  return true;
}

int64_t UploadBytes(const WeightUpload& weight) {
  return static_cast<int64_t>(weight.data.size() + weight.scales.bytes.size() +
                              weight.bias.size_bytes());
}

}  // namespace

Client::Client(ClientOptions options)
    : connections_(std::make_unique<Connections>(std::move(options))) {}
Client::~Client() = default;

const ClientOptions& Client::options() const { return connections_->options; }

// One RegisterWeight stream: the spec, and the content after it when `with_data`.
Result<Registration> Client::Connections::Register(const v1::RegisterWeightRequest& first,
                                                   const WeightUpload& weight, bool with_data,
                                                   const UploadProgress& progress) {
  grpc::ClientContext context;
  Prepare(&context, options.upload_timeout, weight.id);
  v1::RegisterWeightResponse response;
  const auto writer = Next().weights->RegisterWeight(&context, &response);
  if (writer->Write(first) && with_data) WriteChunks(weight, progress, writer.get());
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (!status.ok()) return FromGrpc(status);
  return Registration{.weight = FromProto(response.weight()),
                      .already_registered = response.already_registered(),
                      .uploaded_bytes = with_data ? UploadBytes(weight) : 0};
}

Result<Registration> Client::RegisterWeight(const WeightUpload& weight,
                                            const UploadProgress& progress) {
  if (Status status = CheckId(weight.id); !status.ok()) return status;
  v1::RegisterWeightRequest first;
  ToProto(weight, DigestOf(weight), first.mutable_spec());
  auto known = connections_->Register(first, weight, /*with_data=*/false, progress);
  if (known.ok() || known.status().reason != "UPLOAD_NEEDED") return known;
  return connections_->Register(first, weight, /*with_data=*/true, progress);
}

Result<WeightInfo> Client::GetWeight(std::string_view id) {
  v1::GetWeightRequest request;
  request.set_name(ResourceName(id));
  v1::Weight response;
  Status status = connections_->Invoke({}, id, [&](Connection& c, grpc::ClientContext* context) {
    return c.weights->GetWeight(context, request, &response);
  });
  if (!status.ok()) return status;
  return FromProto(response);
}

Result<std::vector<WeightInfo>> Client::ListWeights() {
  std::vector<WeightInfo> weights;
  v1::ListWeightsRequest request;
  request.set_page_size(kPageSize);
  do {
    v1::ListWeightsResponse response;
    Status status = connections_->Invoke({}, {}, [&](Connection& c, grpc::ClientContext* context) {
      return c.weights->ListWeights(context, request, &response);
    });
    if (!status.ok()) return status;
    for (const auto& weight : response.weights()) weights.push_back(FromProto(weight));
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  return weights;
}

Result<int64_t> Client::DeleteWeight(std::string_view id) {
  v1::DeleteWeightRequest request;
  request.set_name(ResourceName(id));
  v1::DeleteWeightResponse response;
  Status status = connections_->Invoke({}, id, [&](Connection& c, grpc::ClientContext* context) {
    return c.weights->DeleteWeight(context, request, &response);
  });
  if (!status.ok()) return status;
  return response.freed_bytes();
}

Result<Output> Client::MatMul(std::string_view weight, const Activations& activations,
                              const OutputSpec& output, const MatMulOptions& options) {
  const Product product{.weight = std::string(weight), .output = output, .into = {}};
  auto outputs = MatMul(std::span(&product, 1), activations, options);
  if (!outputs.ok()) return outputs.status();
  return std::move(outputs->front());
}

Result<std::vector<Output>> Client::MatMul(std::span<const Product> products,
                                           const Activations& activations,
                                           const MatMulOptions& options) {
  if (activations.dynamic && !activations.scales.bytes.empty())
    return Invalid(
        "QUANTIZATION_SPEC",
        "activations have both dynamic quantization and static scales; give one of them");
  if (Status status = CheckIds(products); !status.ok()) return status;
  v1::MatMulRequest request;
  for (const Product& product : products) {
    request.add_weights(ResourceName(product.weight));
    ToProto(product.output, request.add_outputs());
  }
  ToProto(activations, request.mutable_activations());
  ToProto(options, request.mutable_options());
  const std::string_view route = products.empty() ? std::string_view() : products[0].weight;
  v1::MatMulResponse response;
  Status status = connections_->Invoke(options.timeout, route,
                                       [&](Connection& c, grpc::ClientContext* context) {
                                         return c.matmul->MatMul(context, request, &response);
                                       });
  if (!status.ok()) return status;
  if (static_cast<size_t>(response.outputs_size()) != products.size()) {
    Status broken =
        Invalid("OUTPUT_COUNT", "the server sent " + std::to_string(response.outputs_size()) +
                                    " outputs for " + std::to_string(products.size()) +
                                    " weights; is it a qmatmul server?");
    broken.code = Code::kInternal;
    return broken;
  }
  std::vector<Output> outputs;
  for (int i = 0; i < response.outputs_size(); ++i) {
    auto output = TakeOutput(response.mutable_outputs(i), products[static_cast<size_t>(i)].into);
    if (!output.ok()) return output.status();
    outputs.push_back(std::move(*output));
  }
  return outputs;
}

Result<Explanation> Client::Explain(std::span<const Product> products, int64_t rows,
                                    DataType activations, const MatMulOptions& options) {
  if (Status status = CheckIds(products); !status.ok()) return status;
  v1::ExplainRequest request;
  for (const Product& product : products) {
    request.add_weights(ResourceName(product.weight));
    ToProto(product.output, request.add_outputs());
  }
  request.set_rows(rows);
  request.set_activations(static_cast<v1::DataType>(activations));
  ToProto(options, request.mutable_options());
  const std::string_view route = products.empty() ? std::string_view() : products[0].weight;
  v1::ExplainResponse response;
  Status status = connections_->Invoke(options.timeout, route,
                                       [&](Connection& c, grpc::ClientContext* context) {
                                         return c.matmul->Explain(context, request, &response);
                                       });
  if (!status.ok()) return status;
  return FromProto(response);
}

Result<std::vector<DeviceInfo>> Client::ListDevices() {
  v1::ListDevicesResponse response;
  Status status = connections_->Invoke({}, {}, [&](Connection& c, grpc::ClientContext* context) {
    return c.info->ListDevices(context, v1::ListDevicesRequest(), &response);
  });
  if (!status.ok()) return status;
  std::vector<DeviceInfo> devices;
  for (const auto& device : response.devices()) devices.push_back(FromProto(device));
  return devices;
}

Result<std::vector<KernelInfo>> Client::ListKernels() {
  v1::ListKernelsResponse response;
  Status status = connections_->Invoke({}, {}, [&](Connection& c, grpc::ClientContext* context) {
    return c.info->ListKernels(context, v1::ListKernelsRequest(), &response);
  });
  if (!status.ok()) return status;
  std::vector<KernelInfo> kernels;
  for (const auto& kernel : response.kernels()) kernels.push_back(FromProto(kernel));
  return kernels;
}

Result<Statistics> Client::GetStatistics() {
  v1::Statistics response;
  Status status = connections_->Invoke({}, {}, [&](Connection& c, grpc::ClientContext* context) {
    return c.info->GetStatistics(context, v1::GetStatisticsRequest(), &response);
  });
  if (!status.ok()) return status;
  return FromProto(response);
}

Status Client::RearmKernel(std::string_view key) {
  v1::RearmKernelRequest request;
  request.set_key(std::string(key));
  v1::RearmKernelResponse response;
  return connections_->Invoke({}, {}, [&](Connection& c, grpc::ClientContext* context) {
    return c.admin->RearmKernel(context, request, &response);
  });
}

Result<Health> Client::CheckHealth(std::string_view service) {
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(std::string(service));
  grpc::health::v1::HealthCheckResponse response;
  Status status = connections_->Invoke({}, {}, [&](Connection& c, grpc::ClientContext* context) {
    return c.health->Check(context, request, &response);
  });
  if (status.code == Code::kNotFound) return Health::kServiceUnknown;
  if (!status.ok()) return status;
  switch (response.status()) {
    case grpc::health::v1::HealthCheckResponse::SERVING: return Health::kServing;
    case grpc::health::v1::HealthCheckResponse::NOT_SERVING: return Health::kNotServing;
    default: return Health::kUnknown;
  }
}

std::string_view Version() { return QMATMUL_VERSION; }

}  // namespace qmatmul::client
