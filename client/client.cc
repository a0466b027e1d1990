#include "client/client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "client/connections.h"
#include "client/convert.h"
#include "client/matmul_call.h"

namespace qmatmul::client {
namespace {

// The contract's limit for one chunk of an upload.
constexpr size_t kChunkBytesMax = size_t{1} << 20;
// The most a server returns at once.
constexpr int kPageSize = 1000;

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

// One RegisterWeight stream: the spec, and the content after it when `with_data`.
Result<Registration> Register(Connections& connections, const v1::RegisterWeightRequest& first,
                              const WeightUpload& weight, bool with_data,
                              const UploadProgress& progress) {
  v1::RegisterWeightResponse response;
  Status status =
      connections.Invoke(connections.DeadlineOf(connections.options.upload_timeout), weight.id,
                         Repeatable::kRefused, [&](Connection& c, grpc::ClientContext* context) {
                           const auto writer = c.weights->RegisterWeight(context, &response);
                           if (writer->Write(first) && with_data)
                             WriteChunks(weight, progress, writer.get());
                           writer->WritesDone();
                           return writer->Finish();
                         });
  if (!status.ok()) return status;
  return Registration{.weight = FromProto(response.weight()),
                      .already_registered = response.already_registered(),
                      .uploaded_bytes = with_data ? UploadBytes(weight) : 0};
}

// What a MatMul that is not waited for was asked, and may point into itself.
struct OwnedQuestion {
  std::vector<Product> products;
  std::vector<ChainStep> then;
  Activations activations;
  MatMulOptions options;
};

}  // namespace

Client::Client(ClientOptions options)
    : connections_(std::make_shared<Connections>(std::move(options))) {}
Client::~Client() { connections_->WaitForAsyncCalls(); }

const ClientOptions& Client::options() const { return connections_->options; }

Result<Registration> Client::RegisterWeight(const WeightUpload& weight,
                                            const UploadProgress& progress) {
  if (Status status = CheckId(weight.id); !status.ok()) return status;
  v1::RegisterWeightRequest first;
  ToProto(weight, DigestOf(weight), first.mutable_spec());
  auto known = Register(*connections_, first, weight, /*with_data=*/false, progress);
  if (known.ok() || known.status().reason != "UPLOAD_NEEDED") return known;
  return Register(*connections_, first, weight, /*with_data=*/true, progress);
}

Result<WeightInfo> Client::GetWeight(std::string_view id) {
  v1::GetWeightRequest request;
  request.set_name(ResourceName(id));
  v1::Weight response;
  Status status = connections_->Ask(id, [&](Connection& c, grpc::ClientContext* context) {
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
    Status status = connections_->Ask({}, [&](Connection& c, grpc::ClientContext* context) {
      return c.weights->ListWeights(context, request, &response);
    });
    if (!status.ok()) return status;
    for (const auto& weight : response.weights()) weights.push_back(FromProto(weight));
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  return weights;
}

// A second try of a deletion that worked would be told NOT_FOUND, so a lost connection is final here and for
// RearmKernel.
Result<int64_t> Client::DeleteWeight(std::string_view id) {
  v1::DeleteWeightRequest request;
  request.set_name(ResourceName(id));
  v1::DeleteWeightResponse response;
  Status status =
      connections_->Invoke(connections_->DeadlineOf({}), id, Repeatable::kRefused,
                           [&](Connection& c, grpc::ClientContext* context) {
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
  return RunMatMul(*connections_, Question{products, &activations, &options});
}

void Client::MatMulAsync(std::span<const Product> products, const Activations& activations,
                         const MatMulOptions& options, MatMulCallback callback) {
  auto owned = std::make_shared<OwnedQuestion>(
      OwnedQuestion{.products = {products.begin(), products.end()},
                    .then = {options.then.begin(), options.then.end()},
                    .activations = activations,
                    .options = options});
  owned->options.then = owned->then;
  const Question question{owned->products, &owned->activations, &owned->options};
  if (Status status = CheckQuestion(question); !status.ok()) return callback(std::move(status));
  std::make_shared<MatMulCall>(
      *connections_, question, connections_->DeadlineOf(options.timeout),
      [owned, callback = std::move(callback)](auto outputs) { callback(std::move(outputs)); })
      ->Start();
}

std::unique_ptr<MatMulStream> Client::OpenStream(const StreamOptions& options) {
  return std::make_unique<MatMulStream>(connections_, options);
}

Result<Explanation> Client::Explain(std::span<const Product> products, int64_t rows,
                                    DataType activations, const MatMulOptions& options) {
  for (const Product& product : products)
    if (Status status = CheckId(product.weight); !status.ok()) return status;
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
  Status status = connections_->Invoke(connections_->DeadlineOf(options.timeout), route,
                                       Repeatable::kIdempotent,
                                       [&](Connection& c, grpc::ClientContext* context) {
                                         return c.matmul->Explain(context, request, &response);
                                       });
  if (!status.ok()) return status;
  return FromProto(response);
}

Result<std::vector<DeviceInfo>> Client::ListDevices() {
  v1::ListDevicesResponse response;
  Status status = connections_->Ask({}, [&](Connection& c, grpc::ClientContext* context) {
    return c.info->ListDevices(context, v1::ListDevicesRequest(), &response);
  });
  if (!status.ok()) return status;
  std::vector<DeviceInfo> devices;
  for (const auto& device : response.devices()) devices.push_back(FromProto(device));
  return devices;
}

Result<std::vector<KernelInfo>> Client::ListKernels() {
  v1::ListKernelsResponse response;
  Status status = connections_->Ask({}, [&](Connection& c, grpc::ClientContext* context) {
    return c.info->ListKernels(context, v1::ListKernelsRequest(), &response);
  });
  if (!status.ok()) return status;
  std::vector<KernelInfo> kernels;
  for (const auto& kernel : response.kernels()) kernels.push_back(FromProto(kernel));
  return kernels;
}

Result<Statistics> Client::GetStatistics() {
  v1::Statistics response;
  Status status = connections_->Ask({}, [&](Connection& c, grpc::ClientContext* context) {
    return c.info->GetStatistics(context, v1::GetStatisticsRequest(), &response);
  });
  if (!status.ok()) return status;
  return FromProto(response);
}

Status Client::RearmKernel(std::string_view key) {
  v1::RearmKernelRequest request;
  request.set_key(std::string(key));
  v1::RearmKernelResponse response;
  return connections_->Invoke(connections_->DeadlineOf({}), {}, Repeatable::kRefused,
                              [&](Connection& c, grpc::ClientContext* context) {
                                return c.admin->RearmKernel(context, request, &response);
                              });
}

// Not tried again: a probe asks about now.
Result<Health> Client::CheckHealth(std::string_view service) {
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(std::string(service));
  grpc::health::v1::HealthCheckResponse response;
  Status status = connections_->Invoke(connections_->DeadlineOf({}), {}, Repeatable::kNever,
                                       [&](Connection& c, grpc::ClientContext* context) {
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
