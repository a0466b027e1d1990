#include "tests/client/fake_server.h"

#include <grpc/grpc.h>

#include <algorithm>

#include "google/rpc/status.pb.h"

namespace qmatmul::testing {

grpc::Status ErrorOf(grpc::StatusCode code, const std::string& reason, const std::string& message,
                     const std::map<std::string, std::string>& metadata, int retry_after_ms) {
  google::rpc::Status details;
  details.set_code(code);
  details.set_message(message);
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("qmatmul");
  for (const auto& [key, value] : metadata) (*info.mutable_metadata())[key] = value;
  details.add_details()->PackFrom(info);
  if (code == grpc::StatusCode::INVALID_ARGUMENT) {
    google::rpc::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field("activations.shape");
    violation->set_description(message);
    details.add_details()->PackFrom(bad_request);
  }
  if (retry_after_ms > 0) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(retry_after_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(retry_after_ms % 1000 * 1'000'000);
    details.add_details()->PackFrom(retry);
  }
  return {code, message, details.SerializeAsString()};
}

FakeServer::FakeServer(const FakeServerOptions& options) {
  // As the SDK does, and never undone: the last grpc_shutdown of a process may take 10 s.
  grpc_init();
  on_upload = [](const RecordedUpload& upload, v1::RegisterWeightResponse* response) {
    if (upload.chunks == 0)
      return ErrorOf(grpc::StatusCode::NOT_FOUND, "UPLOAD_NEEDED", "the content is not known here");
    response->mutable_weight()->set_name("weights/" + upload.spec.weight_id());
    response->mutable_weight()->set_digest(upload.spec.expected_digest());
    return grpc::Status::OK;
  };
  on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse*) { return grpc::Status::OK; };
  on_list = [](const v1::ListWeightsRequest&, v1::ListWeightsResponse*) {
    return grpc::Status::OK;
  };
  on_named = [](const std::string&) { return grpc::Status::OK; };
  on_weight = [](v1::Weight*) {};
  on_health = [](const std::string&, int* status) {
    *status = grpc::health::v1::HealthCheckResponse::SERVING;
    return grpc::Status::OK;
  };
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  if (!options.unix_socket.empty())
    builder.AddListeningPort("unix:" + options.unix_socket, grpc::InsecureServerCredentials());
  builder.SetMaxReceiveMessageSize(options.message_bytes_max);
  builder.RegisterService(static_cast<v1::WeightService::Service*>(this));
  builder.RegisterService(static_cast<v1::MatMulService::Service*>(this));
  builder.RegisterService(static_cast<v1::InfoService::Service*>(this));
  builder.RegisterService(static_cast<grpc::health::v1::Health::Service*>(this));
  server_ = builder.BuildAndStart();
  address_ = "127.0.0.1:" + std::to_string(port);
}

FakeServer::~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

std::vector<RecordedUpload> FakeServer::uploads() {
  const std::lock_guard lock(mutex_);
  return uploads_;
}
std::vector<v1::MatMulRequest> FakeServer::requests() {
  const std::lock_guard lock(mutex_);
  return requests_;
}
std::vector<std::string> FakeServer::routes() {
  const std::lock_guard lock(mutex_);
  return routes_;
}
std::vector<std::string> FakeServer::peers() {
  const std::lock_guard lock(mutex_);
  return peers_;
}

void FakeServer::Record(grpc::ServerContext* context) {
  const std::lock_guard lock(mutex_);
  const auto& metadata = context->client_metadata();
  const auto route = metadata.find("qmatmul-weight");
  routes_.push_back(route == metadata.end()
                        ? std::string()
                        : std::string(route->second.data(), route->second.size()));
  peers_.push_back(context->peer());
}

grpc::Status FakeServer::RegisterWeight(grpc::ServerContext* context,
                                        grpc::ServerReader<v1::RegisterWeightRequest>* reader,
                                        v1::RegisterWeightResponse* response) {
  Record(context);
  RecordedUpload upload;
  v1::RegisterWeightRequest message;
  while (reader->Read(&message)) {
    if (message.has_spec()) upload.spec = message.spec();
    if (!message.has_chunk()) continue;
    ++upload.chunks;
    upload.chunk_bytes_max = std::max(upload.chunk_bytes_max, message.chunk().size());
    upload.content += message.chunk();
  }
  const std::lock_guard lock(mutex_);
  uploads_.push_back(upload);
  return on_upload(upload, response);
}

grpc::Status FakeServer::GetWeight(grpc::ServerContext* context,
                                   const v1::GetWeightRequest* request, v1::Weight* response) {
  Record(context);
  response->set_name(request->name());
  grpc::Status status = on_named(request->name());
  if (status.ok()) on_weight(response);
  return status;
}

grpc::Status FakeServer::ListWeights(grpc::ServerContext* context,
                                     const v1::ListWeightsRequest* request,
                                     v1::ListWeightsResponse* response) {
  Record(context);
  return on_list(*request, response);
}

grpc::Status FakeServer::DeleteWeight(grpc::ServerContext* context,
                                      const v1::DeleteWeightRequest* request,
                                      v1::DeleteWeightResponse* response) {
  Record(context);
  response->set_freed_bytes(4096);
  return on_named(request->name());
}

grpc::Status FakeServer::MatMul(grpc::ServerContext* context, const v1::MatMulRequest* request,
                                v1::MatMulResponse* response) {
  Record(context);
  {
    const std::lock_guard lock(mutex_);
    requests_.push_back(*request);
  }
  return on_matmul(*request, response);
}

grpc::Status FakeServer::StreamMatMul(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::StreamMatMulResponse, v1::StreamMatMulRequest>* stream) {
  Record(context);
  std::vector<v1::StreamMatMulRequest> gathered;
  const auto answer = [&] {
    for (auto request = gathered.rbegin(); request != gathered.rend(); ++request) {
      v1::StreamMatMulResponse reply;
      reply.set_request_id(request->request_id());
      const grpc::Status status = on_matmul(request->request(), reply.mutable_response());
      if (!status.ok()) {
        reply.mutable_error()->ParseFromString(status.error_details());
        reply.mutable_error()->set_code(status.error_code());
        reply.mutable_error()->set_message(status.error_message());
      }
      stream->Write(reply);
    }
    gathered.clear();
  };
  v1::StreamMatMulRequest request;
  for (size_t read = 0; read < stream_requests_max && stream->Read(&request); ++read) {
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request.request());
    }
    gathered.push_back(request);
    if (gathered.size() >= stream_batch) answer();
  }
  answer();
  return stream_status;
}

grpc::Status FakeServer::Explain(grpc::ServerContext* context, const v1::ExplainRequest*,
                                 v1::ExplainResponse* response) {
  Record(context);
  *response = explanation;
  return grpc::Status::OK;
}

grpc::Status FakeServer::ListDevices(grpc::ServerContext* context, const v1::ListDevicesRequest*,
                                     v1::ListDevicesResponse* response) {
  Record(context);
  *response = devices;
  return grpc::Status::OK;
}

grpc::Status FakeServer::ListKernels(grpc::ServerContext* context, const v1::ListKernelsRequest*,
                                     v1::ListKernelsResponse* response) {
  Record(context);
  *response = kernels;
  return grpc::Status::OK;
}

grpc::Status FakeServer::GetStatistics(grpc::ServerContext* context,
                                       const v1::GetStatisticsRequest*, v1::Statistics* response) {
  Record(context);
  *response = statistics;
  return grpc::Status::OK;
}

grpc::Status FakeServer::Check(grpc::ServerContext* context,
                               const grpc::health::v1::HealthCheckRequest* request,
                               grpc::health::v1::HealthCheckResponse* response) {
  Record(context);
  int status = 0;
  grpc::Status result = on_health(request->service(), &status);
  response->set_status(static_cast<grpc::health::v1::HealthCheckResponse::ServingStatus>(status));
  return result;
}

}  // namespace qmatmul::testing
