// A whole server in this process on free loopback ports, and a client that says what a wire test
// wants to say: also what no SDK would send.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "kernels/devices.h"
#include "qmatmul/v1/qmatmul.grpc.pb.h"
#include "server/server.h"

namespace qmatmul {

inline Options TestOptions() {
  LoadedOptions loaded;
  std::string error;
  const char* const flags[] = {"--listen=127.0.0.1:0", "--http-listen=", "--threads=2"};
  if (!LoadOptions(flags, {}, &loaded, &error)) std::abort();
  return loaded.options;
}

class TestServer {
 public:
  explicit TestServer(const Options& options = TestOptions(),
                      std::vector<std::unique_ptr<Device>> devices = {}) {
    if (devices.empty()) {
      DeviceOptions device_options;
      device_options.threads = static_cast<int>(options.threads);
      device_options.disabled_kernels = options.disable_kernels;
      devices = OpenDevices(device_options);
    }
    std::string error;
    server = Server::Start(options, std::move(devices), &error);
    if (server == nullptr) throw std::runtime_error(error);
    channel = NewChannel();
    weights = v1::WeightService::NewStub(channel);
    matmul = v1::MatMulService::NewStub(channel);
    info = v1::InfoService::NewStub(channel);
    admin = v1::AdminService::NewStub(channel);
  }

  std::shared_ptr<grpc::Channel> NewChannel() const {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(server->addresses().front(),
                                     grpc::InsecureChannelCredentials(), arguments);
  }

  grpc::Status Upload(const std::vector<v1::RegisterWeightRequest>& messages,
                      v1::RegisterWeightResponse* reply = nullptr) {
    v1::RegisterWeightResponse ignored;
    grpc::ClientContext context;
    auto writer = weights->RegisterWeight(&context, reply != nullptr ? reply : &ignored);
    for (const v1::RegisterWeightRequest& message : messages)
      if (!writer->Write(message)) break;  // the server has answered already
    writer->WritesDone();
    return writer->Finish();
  }
  grpc::Status Register(const v1::WeightSpec& spec, const std::string& bytes,
                        v1::RegisterWeightResponse* reply = nullptr) {
    std::vector<v1::RegisterWeightRequest> messages(1);
    *messages.front().mutable_spec() = spec;
    for (size_t at = 0; at < bytes.size(); at += 1 << 20)
      messages.emplace_back().set_chunk(bytes.substr(at, 1 << 20));
    return Upload(messages, reply);
  }
  grpc::Status MatMul(const v1::MatMulRequest& request, v1::MatMulResponse* reply) {
    grpc::ClientContext context;
    return matmul->MatMul(&context, request, reply);
  }
  // Any bytes to any unary method; `reply` gets the bytes of the answer.
  grpc::Status SendBytes(const std::string& method, const std::string& bytes,
                         std::string* reply = nullptr) {
    grpc::GenericStub stub(channel);
    grpc::ClientContext context;
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer answer;
    std::promise<grpc::Status> done;
    stub.UnaryCall(&context, method, {}, &request, &answer,
                   [&](grpc::Status status) { done.set_value(std::move(status)); });
    grpc::Status status = done.get_future().get();
    grpc::Slice whole;
    if (status.ok() && reply != nullptr && answer.DumpToSingleSlice(&whole).ok())
      reply->assign(reinterpret_cast<const char*>(whole.begin()), whole.size());
    return status;
  }
  grpc::Status Delete(const std::string& name, int64_t* freed_bytes = nullptr) {
    grpc::ClientContext context;
    v1::DeleteWeightRequest request;
    v1::DeleteWeightResponse reply;
    request.set_name(name);
    grpc::Status status = weights->DeleteWeight(&context, request, &reply);
    if (freed_bytes != nullptr) *freed_bytes = reply.freed_bytes();
    return status;
  }
  MetricsReading Metrics() const { return server->engine().metrics().Read(); }

  std::unique_ptr<Server> server;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::WeightService::Stub> weights;
  std::unique_ptr<v1::MatMulService::Stub> matmul;
  std::unique_ptr<v1::InfoService::Stub> info;
  std::unique_ptr<v1::AdminService::Stub> admin;
};

// What an error carries beside code and message.
struct ErrorDetails {
  explicit ErrorDetails(const grpc::Status& status) {
    google::rpc::Status details;
    if (!details.ParseFromString(status.error_details())) return;
    for (const auto& any : details.details()) {
      google::rpc::ErrorInfo error_info;
      google::rpc::BadRequest bad;
      google::rpc::RetryInfo retry;
      if (any.UnpackTo(&error_info)) {
        ++error_infos;
        reason = error_info.reason();
        domain = error_info.domain();
        metadata.insert(error_info.metadata().begin(), error_info.metadata().end());
      } else if (any.UnpackTo(&bad)) {
        for (const auto& violation : bad.field_violations()) fields.push_back(violation.field());
      } else if (any.UnpackTo(&retry)) {
        has_retry = true;
      }
    }
  }

  int error_infos = 0;
  std::string reason;
  std::string domain;
  std::map<std::string, std::string> metadata;
  std::vector<std::string> fields;
  bool has_retry = false;
};

inline v1::WeightSpec Int8Message(const std::string& id, int64_t k, int64_t n) {
  v1::WeightSpec spec;
  spec.set_weight_id(id);
  spec.set_dtype(v1::DATA_TYPE_INT8);
  spec.set_layout(v1::LAYOUT_KN);
  spec.set_k(k);
  spec.set_n(n);
  return spec;
}

// Bytes that look random and are the same each time.
inline std::string PatternBytes(size_t size, uint32_t seed) {
  std::string bytes(size, '\0');
  uint32_t state = seed * 2654435761u + 1;
  for (char& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<char>(state >> 24);
  }
  return bytes;
}

// INT8 activations [rows, k] for one weight, INT32 out.
inline v1::MatMulRequest Int8Request(const std::string& id, int64_t rows, int64_t k,
                                     const std::string& data) {
  v1::MatMulRequest request;
  request.add_weights("weights/" + id);
  v1::ActivationTensor* a = request.mutable_activations();
  a->set_dtype(v1::DATA_TYPE_INT8);
  a->add_shape(rows);
  a->add_shape(k);
  a->set_data(data);
  request.add_outputs()->set_dtype(v1::DATA_TYPE_INT32);
  return request;
}

// The product of int8 matrices in plain loops, as little-endian int32.
inline std::string Int32Product(const std::string& a, const std::string& w, int64_t rows, int64_t k,
                                int64_t n) {
  std::vector<int32_t> sums(static_cast<size_t>(rows * n));
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < n; ++j)
        sums[static_cast<size_t>(m * n + j)] +=
            static_cast<int8_t>(a[static_cast<size_t>(m * k + i)]) *
            static_cast<int8_t>(w[static_cast<size_t>(i * n + j)]);
  std::string bytes(sums.size() * sizeof(int32_t), '\0');
  std::memcpy(bytes.data(), sums.data(), bytes.size());
  return bytes;
}

}  // namespace qmatmul
