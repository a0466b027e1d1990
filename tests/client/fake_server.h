// A qmatmul server whose answers the test writes: it records what the SDK sent and returns what it
// was told to. On a port of its own on the loopback interface; stops when it goes.
//
// The handlers run on gRPC's threads, several at once; set them before the first call. Recorded calls
// are read after the calls have returned.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "qmatmul/v1/qmatmul.grpc.pb.h"

namespace qmatmul::testing {

// A status with the details that a real server sends.
grpc::Status ErrorOf(grpc::StatusCode code, const std::string& reason, const std::string& message,
                     const std::map<std::string, std::string>& metadata = {},
                     int retry_after_ms = 0);

struct RecordedUpload {
  v1::WeightSpec spec;
  std::string content;
  size_t chunks = 0;
  size_t chunk_bytes_max = 0;
};

struct FakeServerOptions {
  int message_bytes_max = 64 << 20;  // what it takes
  std::string unix_socket = {};      // a path: it listens there as well
};

class FakeServer : public v1::WeightService::Service,
                   public v1::MatMulService::Service,
                   public v1::InfoService::Service,
                   public grpc::health::v1::Health::Service {
 public:
  explicit FakeServer(const FakeServerOptions& options = {});
  ~FakeServer() override;

  const std::string& address() const { return address_; }
  std::vector<RecordedUpload> uploads();
  std::vector<v1::MatMulRequest> requests();
  // The values of `qmatmul-weight`, and the peers, of all calls so far.
  std::vector<std::string> routes();
  std::vector<std::string> peers();

  // What to answer. The default upload handler knows nothing: UPLOAD_NEEDED for a spec alone, OK
  // otherwise. The others answer OK with the response as they leave it.
  std::function<grpc::Status(const RecordedUpload&, v1::RegisterWeightResponse*)> on_upload;
  std::function<grpc::Status(const v1::MatMulRequest&, v1::MatMulResponse*)> on_matmul;
  std::function<grpc::Status(const v1::ListWeightsRequest&, v1::ListWeightsResponse*)> on_list;
  std::function<grpc::Status(const std::string& name)> on_named;  // Get and Delete
  std::function<void(v1::Weight*)> on_weight;                     // Get, when on_named says OK
  std::function<grpc::Status(const std::string& service, int* status)> on_health;
  // StreamMatMul answers each request by on_matmul: this many are gathered, and answered last first.
  size_t stream_batch = 1;
  // … and ends the stream with this once it has read so many.
  size_t stream_requests_max = SIZE_MAX;
  grpc::Status stream_status;
  v1::ExplainResponse explanation;
  v1::ListDevicesResponse devices;
  v1::ListKernelsResponse kernels;
  v1::Statistics statistics;

  grpc::Status RegisterWeight(grpc::ServerContext* context,
                              grpc::ServerReader<v1::RegisterWeightRequest>* reader,
                              v1::RegisterWeightResponse* response) override;
  grpc::Status GetWeight(grpc::ServerContext* context, const v1::GetWeightRequest* request,
                         v1::Weight* response) override;
  grpc::Status ListWeights(grpc::ServerContext* context, const v1::ListWeightsRequest* request,
                           v1::ListWeightsResponse* response) override;
  grpc::Status DeleteWeight(grpc::ServerContext* context, const v1::DeleteWeightRequest* request,
                            v1::DeleteWeightResponse* response) override;
  grpc::Status MatMul(grpc::ServerContext* context, const v1::MatMulRequest* request,
                      v1::MatMulResponse* response) override;
  grpc::Status StreamMatMul(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::StreamMatMulResponse, v1::StreamMatMulRequest>* stream) override;
  grpc::Status Explain(grpc::ServerContext* context, const v1::ExplainRequest* request,
                       v1::ExplainResponse* response) override;
  grpc::Status ListDevices(grpc::ServerContext* context, const v1::ListDevicesRequest* request,
                           v1::ListDevicesResponse* response) override;
  grpc::Status ListKernels(grpc::ServerContext* context, const v1::ListKernelsRequest* request,
                           v1::ListKernelsResponse* response) override;
  grpc::Status GetStatistics(grpc::ServerContext* context, const v1::GetStatisticsRequest* request,
                             v1::Statistics* response) override;
  grpc::Status Check(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::health::v1::HealthCheckResponse* response) override;

 private:
  void Record(grpc::ServerContext* context);

  std::mutex mutex_;  // guards what follows
  std::vector<RecordedUpload> uploads_;
  std::vector<v1::MatMulRequest> requests_;
  std::vector<std::string> routes_;
  std::vector<std::string> peers_;

  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace qmatmul::testing
