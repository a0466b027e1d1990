// InfoService and AdminService. Declared in service.h.
#include "qmatmul/v1/qmatmul.grpc.pb.h"
#include "server/service.h"
#include "server/unary.h"
#include "server/wire_fields.h"

namespace qmatmul {
namespace {

class InfoService final : public v1::InfoService::CallbackService {
 public:
  explicit InfoService(ServiceContext& context) : context_(context), engine_(context.engine) {}

  grpc::ServerUnaryReactor* ListDevices(grpc::CallbackServerContext*, const v1::ListDevicesRequest*,
                                        v1::ListDevicesResponse* reply) override {
    for (size_t d = 0; d < engine_.devices().size(); ++d) {
      const DeviceInfo& info = engine_.devices()[d]->info();
      v1::Device* device = reply->add_devices();
      device->set_id(info.id);
      device->set_kind(info.kind);
      device->set_description(info.description);
      device->set_threads(info.threads);
      device->set_lanes(info.lanes);
      device->set_memory_bytes(engine_.weights().limit_bytes(d));
      device->set_memory_used_bytes(engine_.weights().bytes(d));
      for (const std::string& feature : info.features) device->add_features(feature);
      device->set_state(IsLost(*engine_.devices()[d]) ? "lost" : "ready");
    }
    return UnaryReply::Make(context_, {});
  }

  grpc::ServerUnaryReactor* ListKernels(grpc::CallbackServerContext*, const v1::ListKernelsRequest*,
                                        v1::ListKernelsResponse* reply) override {
    // The metrics' rows were made from the same lists, in the same order.
    const MetricsReading reading = engine_.metrics().Read();
    size_t row = 0;
    for (const Device* device : engine_.devices()) {
      for (const KernelInfo& info : device->Kernels()) {
        v1::Kernel* kernel = reply->add_kernels();
        kernel->set_name(info.name);
        kernel->set_device(device->info().id);
        kernel->set_supported(info.supported);
        kernel->set_disabled(info.disabled);
        kernel->set_reason(info.reason);
        kernel->set_layout(info.layout);
        kernel->set_weight(ToWire(info.weight));
        kernel->set_arithmetic(info.arithmetic == Arithmetic::kW8A8 ? v1::ARITHMETIC_W8A8
                                                                    : v1::ARITHMETIC_W8A32);
        const KernelReading& measured = reading.kernels[row++];
        if (measured.runs > 0) kernel->set_measured_gops(measured.gops());
        for (const QuarantineInfo& aside : device->Quarantined()) {
          if (aside.kernel != info.name) continue;
          kernel->set_quarantined(true);
          kernel->set_reason(aside.key + ": " + aside.reason);
          kernel->set_quarantine_time_ns(aside.unix_time_ns);
        }
      }
    }
    return UnaryReply::Make(context_, {});
  }

  grpc::ServerUnaryReactor* GetStatistics(grpc::CallbackServerContext*,
                                          const v1::GetStatisticsRequest*,
                                          v1::Statistics* reply) override {
    const MetricsReading reading = engine_.metrics().Read();
    reply->set_version(QMATMUL_VERSION);
    reply->set_uptime_ns(engine_.clock().NowNs() - context_.start_ns);
    reply->set_requests(reading.at(Counter::kRequestsOk));
    reply->set_errors(reading.at(Counter::kRequestsFailed));
    reply->set_rows(reading.at(Counter::kRows));
    reply->set_weights(engine_.weights().size());
    int64_t weight_bytes = 0;
    for (size_t d = 0; d < engine_.devices().size(); ++d)
      weight_bytes += engine_.weights().bytes(d);
    reply->set_weight_bytes(weight_bytes);
    reply->set_packs(reading.at(Histogram::kPackNs).count());
    reply->set_in_flight_requests(engine_.requests_in_flight());
    reply->set_in_flight_bytes(engine_.bytes_in_flight());
    reply->set_output_overflows(reading.at(Counter::kOutputOverflows));
    int64_t ops = 0;
    for (const KernelReading& k : reading.kernels) {
      ops += k.ops;
      if (k.runs == 0) continue;
      v1::KernelStatistics* kernel = reply->add_kernels();
      kernel->set_device(k.device);
      kernel->set_kernel(k.kernel);
      kernel->set_executions(k.runs);
      kernel->set_rows(k.rows);
      kernel->set_ops(k.ops);
      kernel->set_compute_ns(k.compute_ns);
      kernel->set_gops(k.gops());
    }
    reply->set_ops(ops);
    return UnaryReply::Make(context_, {});
  }

 private:
  ServiceContext& context_;
  Engine& engine_;
};

class AdminService final : public v1::AdminService::CallbackService {
 public:
  explicit AdminService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* RearmKernel(grpc::CallbackServerContext*,
                                        const v1::RearmKernelRequest* message,
                                        v1::RearmKernelResponse* reply) override {
    if (context_.engine.Rearm(message->key())) {
      RestoreWeights(context_);  // where it was a device
      reply->set_key(message->key());
      return UnaryReply::Make(context_, {});
    }
    return UnaryReply::Make(context_,
                            Status{Code::kNotFound, "QUARANTINE_UNKNOWN",
                                   "no kernel is quarantined under the key \"" + message->key() +
                                       "\"; ListKernels shows those that are"}
                                .With("value", message->key()));
  }

 private:
  ServiceContext& context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeInfoService(ServiceContext& context) {
  return std::make_unique<InfoService>(context);
}

std::unique_ptr<grpc::Service> MakeAdminService(ServiceContext& context) {
  return std::make_unique<AdminService>(context);
}

}  // namespace qmatmul
