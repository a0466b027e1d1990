#include "server/server.h"

#include <absl/strings/str_join.h>
#include <google/protobuf/stubs/logging.h>
#include <grpc/grpc.h>
#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <prometheus/exposer.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "kernels/devices.h"
#include "server/log.h"
#include "server/metrics_page.h"
#include "server/service.h"

namespace qmatmul {
namespace {

constexpr auto kTick = std::chrono::seconds(1);
// An attempt to open a lost device may take a driver long.
constexpr int64_t kReviveTicks = 10;
constexpr auto kQuietPoll = std::chrono::milliseconds(2);
constexpr int kQuietPolls = 25;
// More than the batch that runs and a round trip in a data centre take.
constexpr auto kHoldBefore = std::chrono::milliseconds(30);
constexpr auto kHoldAfter = std::chrono::milliseconds(10);
constexpr const char* kServiceNames[] = {"qmatmul.v1.WeightService", "qmatmul.v1.MatMulService",
                                         "qmatmul.v1.InfoService", "qmatmul.v1.AdminService"};

// Messages carry a few hundred bytes beside their tensors: names, shapes, what was done.
constexpr int64_t kEnvelopeBytes = 64 << 10;

// What packed weights may hold of a device's memory: what is said of its id, of its kind, of all, and else
// three quarters of it: products need room too.
int64_t WeightBytesMax(const Options& options, const DeviceInfo& device) {
  for (const std::string* name : {&device.id, &device.kind})
    for (const DeviceBytes& limit : options.device_weight_bytes_max)
      if (limit.device == *name) return limit.bytes;
  if (options.weight_bytes_max > 0) return options.weight_bytes_max;
  return device.memory_bytes / 4 * 3;
}

// Empty, or what is wrong with device_weight_bytes_max. Devices that other machines with the same
// configuration have may be named; what is no device anywhere may not.
std::string WrongDeviceName(const Options& options) {
  const std::vector<std::string> kinds = KnownDeviceKinds();
  for (const DeviceBytes& limit : options.device_weight_bytes_max) {
    const std::string kind = limit.device.substr(0, limit.device.find(':'));
    if (std::find(kinds.begin(), kinds.end(), kind) != kinds.end()) continue;
    return "device_weight_bytes_max names \"" + limit.device +
           "\", which is no device: its kind must be one of " + absl::StrJoin(kinds, ", ");
  }
  return "";
}

EngineOptions EngineOptionsOf(const Options& options,
                              const std::vector<std::unique_ptr<Device>>& devices) {
  EngineOptions engine;
  engine.batcher.requests_max = options.queue_requests_max;
  engine.batcher.queue_ns_max = options.queue_ms_max * 1'000'000;
  engine.batcher.rows_max = options.queue_rows_max;
  engine.batcher.weight_rows_max = options.queue_weight_rows_max;
  engine.batcher.weight_bytes_max = options.queue_weight_bytes_max;
  engine.batcher.batch_rows_max = options.batch_rows_max;
  engine.batcher.batch_ns_max = options.batch_us_max * 1000;
  engine.batcher.delay_ns_max = options.batch_delay_us_max * 1000;
  engine.batcher.tile_ns_max = options.tile_us_max * 1000;
  engine.in_flight_bytes_max = options.in_flight_bytes_max;
  for (const auto& device : devices)
    engine.weight_bytes_max.push_back(WeightBytesMax(options, device->info()));
  engine.inline_ns_max = options.inline_us_max * 1000;
  engine.metrics = options.metrics;
  engine.known_device_kinds = KnownDeviceKinds();
  return engine;
}

std::vector<std::string> Split(const std::string& list) {
  std::vector<std::string> items;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    if (end > begin) items.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return items;
}

std::string WithPort(const std::string& address, int port) {
  if (address.starts_with("unix:")) return address;
  return address.substr(0, address.rfind(':') + 1) + std::to_string(port);
}

}  // namespace

struct Server::Parts {
  Parts(const Options& options, std::vector<std::unique_ptr<Device>> devices)
      : engine_options(EngineOptionsOf(options, devices)),
        replies(options.reply_pool_bytes_max),
        engine(std::move(devices), engine_options, clock) {}

  // Remembers the counters once a second, so that "over the last 10 s" means something, and looks after
  // lost devices.
  void KeepTime() {
    std::unique_lock lock(tick_mutex);
    for (int64_t tick = 1; !tick_stop.wait_for(lock, kTick, [this] { return ticking_ended; });
         ++tick) {
      engine.metrics().Tick(clock.NowNs());
      if (tick % kReviveTicks != 0) continue;
      lock.unlock();  // opening a device anew takes its time
      for (const std::string& id : engine.ReviveDevices()) {
        Log(LogLevel::kInfo, id + " is back");
        RestoreWeights(context);
      }
      lock.lock();
    }
  }
  void StopTime() {
    {
      const std::lock_guard lock(tick_mutex);
      ticking_ended = true;
    }
    tick_stop.notify_one();
    if (tick_thread.joinable()) tick_thread.join();
  }

  const SystemClock clock;
  const EngineOptions engine_options;
  ReplyPool replies;
  Engine engine;
  Loader loader;
  ServiceContext context{engine, loader, replies};
  std::vector<std::unique_ptr<grpc::Service>> services;
  std::unique_ptr<grpc::Server> grpc;
  std::shared_ptr<MetricsPage> page;
  std::unique_ptr<prometheus::Exposer> exposer;
  std::chrono::milliseconds drain_max{0};
  bool is_shut_down = false;

  std::mutex tick_mutex;
  std::condition_variable tick_stop;
  bool ticking_ended = false;
  std::thread tick_thread;
};

Server::Server(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Server::~Server() {
  Shutdown();
  parts_->StopTime();
}

Engine& Server::engine() { return parts_->engine; }

std::unique_ptr<Server> Server::Start(const Options& options,
                                      std::vector<std::unique_ptr<Device>> devices,
                                      std::string* error) {
  if (*error = WrongDeviceName(options); !error->empty()) return nullptr;
  std::unique_ptr<Server> server(new Server(std::make_unique<Parts>(options, std::move(devices))));
  Parts& parts = *server->parts_;
  parts.context.message_bytes_max = options.message_bytes_max;
  parts.context.stream_requests_max = options.stream_requests_max;
  parts.context.uploads_max = options.uploads_max;
  parts.context.start_ns = parts.clock.NowNs();
  parts.drain_max = std::chrono::milliseconds(options.drain_ms_max);
  if (!server->StartGrpc(options, error) || !server->StartHttp(options, error)) return nullptr;
  parts.tick_thread = std::thread([&parts] { parts.KeepTime(); });
  server->SetServing(true);
  return server;
}

bool Server::StartGrpc(const Options& options, std::string* error) {
  // These are process-wide switches, read when a server is built.
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::channelz::experimental::InitChannelzService();
  // A malformed message is answered with its reason; what protobuf would print of it, whoever sends it
  // could fill a disk with.
  google::protobuf::SetLogHandler(nullptr);

  ServiceContext& context = parts_->context;
  grpc::ServerBuilder builder;
  const std::vector<std::string> wanted = Split(options.listen);
  std::vector<int> ports(wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i)
    builder.AddListeningPort(wanted[i], grpc::InsecureServerCredentials(), &ports[i]);
  // Two servers on one port would share its connections without a word.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             static_cast<int>(options.streams_per_connection_max));
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.message_bytes_max));
  builder.SetMaxSendMessageSize(
      static_cast<int>(std::min<int64_t>(options.message_bytes_max + kEnvelopeBytes, INT32_MAX)));
  for (auto make : {MakeWeightService, MakeMatMulService, MakeInfoService, MakeAdminService}) {
    parts_->services.push_back(make(context));
    builder.RegisterService(parts_->services.back().get());
  }
  parts_->grpc = builder.BuildAndStart();
  for (size_t i = 0; i < wanted.size(); ++i) {
    const bool bound = parts_->grpc != nullptr && (ports[i] > 0 || wanted[i].starts_with("unix:"));
    if (!bound) {
      *error = "cannot listen on \"" + options.listen +
               "\": an address is taken, not allowed or malformed (host:port, unix:/path)";
      return false;
    }
    addresses_.push_back(WithPort(wanted[i], ports[i]));
  }
  if (wanted.empty()) *error = "listen is empty; the server needs at least one address";
  return !wanted.empty();
}

bool Server::StartHttp(const Options& options, std::string* error) {
  if (options.http_listen.empty() || !options.metrics) return true;
  try {
    parts_->exposer = std::make_unique<prometheus::Exposer>(options.http_listen);
  } catch (const std::exception& e) {  // civetweb says no more than that it could not start
    *error = "cannot listen on http_listen \"" + options.http_listen + "\": " + e.what();
    return false;
  }
  parts_->page = std::make_shared<MetricsPage>(parts_->engine);
  parts_->exposer->RegisterCollectable(parts_->page);
  const std::vector<int> ports = parts_->exposer->GetListeningPorts();
  http_address_ =
      ports.empty() ? options.http_listen : WithPort(options.http_listen, ports.front());
  return true;
}

void Server::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = parts_->grpc->GetHealthCheckService();
  for (const char* name : kServiceNames) health->SetServingStatus(name, serving);
  health->SetServingStatus(serving);
}

void Server::BeginDrain() {
  SetServing(false);
  Log(LogLevel::kInfo, "draining: health is NOT_SERVING");
}

bool Server::AwaitCalls(std::chrono::system_clock::time_point deadline) {
  // A call that gRPC had just taken in may not be counted yet, so one look that finds none proves
  // nothing: it must stay so for a while.
  int quiet_polls = 0;
  while (quiet_polls < kQuietPolls && std::chrono::system_clock::now() < deadline) {
    std::this_thread::sleep_for(kQuietPoll);
    quiet_polls = parts_->context.calls.load(std::memory_order_acquire) == 0 ? quiet_polls + 1 : 0;
  }
  return quiet_polls > 0;
}

bool Server::Shutdown() {
  Parts& parts = *parts_;
  if (parts.is_shut_down || parts.grpc == nullptr) return true;
  parts.is_shut_down = true;
  const auto deadline = std::chrono::system_clock::now() + parts.drain_max;
  // Shutdown sends GOAWAY, refuses new calls, and waits for all that are open. Health watches are
  // open for as long as their client likes, so it waits on a thread of its own while we wait for
  // our calls.
  // gRPC resets a call that arrives between Shutdown and the client's reading of GOAWAY before any handler
  // sees it. So what arrives just before is kept waiting until Shutdown is through: a client that sends its
  // next call when it has an answer has nothing on the way then.
  parts.engine.Hold(true);
  std::this_thread::sleep_for(kHoldBefore);
  std::thread drain([&] { parts.grpc->Shutdown(deadline); });
  std::this_thread::sleep_for(kHoldAfter);
  parts.engine.Hold(false);
  const bool complete = AwaitCalls(deadline);
  parts.engine.Stop();
  parts.loader.Stop();
  grpc_server_cancel_all_calls(parts.grpc->c_server());
  drain.join();
  parts.grpc->Wait();
  parts.exposer.reset();
  Log(complete ? LogLevel::kInfo : LogLevel::kWarn,
      complete ? "stopped: every accepted call was answered"
               : "stopped: drain_ms_max passed with calls in flight");
  return complete;
}

}  // namespace qmatmul
