// Starting, being watched, draining and stopping.
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/server/test_server.h"
#include "tests/support/fake_device.h"

namespace qmatmul {
namespace {

namespace health = grpc::health::v1;

health::HealthCheckResponse::ServingStatus Check(TestServer& server, const std::string& service) {
  auto stub = health::Health::NewStub(server.channel);
  grpc::ClientContext context;
  health::HealthCheckRequest request;
  health::HealthCheckResponse reply;
  request.set_service(service);
  const grpc::Status status = stub->Check(&context, request, &reply);
  return status.ok() ? reply.status() : health::HealthCheckResponse::SERVICE_UNKNOWN;
}

constexpr const char* kServices[] = {"", "qmatmul.v1.MatMulService", "qmatmul.v1.WeightService",
                                     "qmatmul.v1.InfoService", "qmatmul.v1.AdminService"};

TEST(Lifecycle, HealthPerServiceAndOverall) {
  TestServer server;
  for (const char* name : kServices)
    EXPECT_EQ(Check(server, name), health::HealthCheckResponse::SERVING) << name;
  EXPECT_EQ(Check(server, "qmatmul.v1.NoSuchService"),
            health::HealthCheckResponse::SERVICE_UNKNOWN);
  server.server->BeginDrain();
  for (const char* name : kServices)
    EXPECT_EQ(Check(server, name), health::HealthCheckResponse::NOT_SERVING) << name;
}

TEST(Lifecycle, WatchersSeeTheDrainAndDoNotHoldItUp) {
  TestServer server;
  auto stub = health::Health::NewStub(server.channel);
  grpc::ClientContext context;
  health::HealthCheckRequest request;
  request.set_service("qmatmul.v1.MatMulService");
  auto watch = stub->Watch(&context, request);
  health::HealthCheckResponse seen;
  ASSERT_TRUE(watch->Read(&seen));
  EXPECT_EQ(seen.status(), health::HealthCheckResponse::SERVING);
  server.server->BeginDrain();
  ASSERT_TRUE(watch->Read(&seen));
  EXPECT_EQ(seen.status(), health::HealthCheckResponse::NOT_SERVING);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(server.server->Shutdown());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10))
      << "drain_ms_max is 30 s";
  while (watch->Read(&seen)) EXPECT_EQ(seen.status(), health::HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(watch->Finish().ok()) << "a watch ends only because its server does";
}

TEST(Lifecycle, CallsInTheGracePeriodAreServed) {
  TestServer server;
  ASSERT_TRUE(server.Register(Int8Message("w", 2, 2), PatternBytes(4, 1)).ok());
  server.server->BeginDrain();
  v1::MatMulResponse reply;
  EXPECT_TRUE(server.MatMul(Int8Request("w", 1, 2, "ab"), &reply).ok());
}

TEST(Lifecycle, WhatWasAcceptedIsAnswered) {
  auto owned = std::make_unique<FakeDevice>();
  FakeDevice& device = *owned;
  std::vector<std::unique_ptr<Device>> devices;
  devices.push_back(std::move(owned));
  TestServer server(TestOptions(), std::move(devices));
  const std::string w = PatternBytes(6, 1);
  ASSERT_TRUE(server.Register(Int8Message("w", 3, 2), w).ok());
  device.CloseGate();
  constexpr int kCalls = 20;
  std::vector<std::thread> callers;
  std::atomic<int> exact{0};
  for (int i = 0; i < kCalls; ++i)
    callers.emplace_back([&] {
      v1::MatMulResponse reply;
      const grpc::Status status = server.MatMul(Int8Request("w", 1, 3, "xyz"), &reply);
      if (status.ok() && reply.outputs(0).data() == Int32Product("xyz", w, 1, 3, 2)) ++exact;
    });
  while (server.server->engine().requests_in_flight() < kCalls) std::this_thread::yield();
  std::atomic<bool> complete{false};
  std::thread shutdown([&] {
    server.server->BeginDrain();
    complete = server.server->Shutdown();
  });
  // The device works again only when new connections are refused: the drain has begun for certain.
  while (server.NewChannel()->WaitForConnected(std::chrono::system_clock::now() +
                                               std::chrono::milliseconds(50))) {}
  device.OpenGate();
  for (std::thread& caller : callers) caller.join();
  shutdown.join();
  EXPECT_EQ(exact, kCalls);
  EXPECT_TRUE(complete);
}

TEST(Lifecycle, ADrainThatTakesTooLongIsCutOff) {
  auto owned = std::make_unique<FakeDevice>();
  FakeDevice& device = *owned;
  std::vector<std::unique_ptr<Device>> devices;
  devices.push_back(std::move(owned));
  Options options = TestOptions();
  options.drain_ms_max = 50;
  TestServer server(options, std::move(devices));
  ASSERT_TRUE(server.Register(Int8Message("w", 3, 2), PatternBytes(6, 1)).ok());
  device.CloseGate();
  std::thread caller([&] {
    v1::MatMulResponse reply;
    EXPECT_FALSE(server.MatMul(Int8Request("w", 1, 3, "xyz"), &reply).ok());
  });
  device.AwaitRuns(1);
  std::thread opener([&] {  // a device cannot be interrupted; it ends some time after the cut
    while (server.NewChannel()->WaitForConnected(std::chrono::system_clock::now() +
                                                 std::chrono::milliseconds(200))) {}
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    device.OpenGate();
  });
  EXPECT_FALSE(server.server->Shutdown());
  caller.join();
  opener.join();
}

TEST(Lifecycle, ATakenAddressIsRefused) {
  TestServer first;
  Options options = TestOptions();
  options.listen = first.server->addresses().front();
  std::string error;
  EXPECT_EQ(Server::Start(options, OpenDevices({}), &error), nullptr);
  EXPECT_NE(error.find(options.listen), std::string::npos) << error;
  options.listen = "";
  EXPECT_EQ(Server::Start(options, OpenDevices({}), &error), nullptr);
}

TEST(Lifecycle, ABudgetForWhatIsNoDeviceIsRefused) {
  Options options = TestOptions();
  // Not here, but it may be on other machines of the same configuration.
  options.device_weight_bytes_max = {{"cuda:7", 1 << 20}, {"cpu", 1 << 20}};
  TestServer server(options);
  EXPECT_EQ(server.server->engine().weights().limit_bytes(0), 1 << 20);
  options.device_weight_bytes_max = {{"tpu:0", 1 << 20}};
  std::string error;
  EXPECT_EQ(Server::Start(options, OpenDevices({}), &error), nullptr);
  EXPECT_NE(error.find("\"tpu:0\""), std::string::npos) << error;
}

TEST(Lifecycle, UnixSocketsServe) {
  Options options = TestOptions();
  const std::string path = "unix:/tmp/qmatmul-test-" + std::to_string(getpid()) + ".sock";
  options.listen = path + ",127.0.0.1:0";
  TestServer server(options);
  ASSERT_EQ(server.server->addresses().size(), 2u);
  EXPECT_EQ(server.server->addresses()[0], path);
  EXPECT_EQ(Check(server, ""), health::HealthCheckResponse::SERVING);
}

TEST(Lifecycle, ReflectionCanDescribeWhatIsServed) {
  // Reflection answers from this pool; gRPC's own health service brings no descriptor.
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  for (const char* name :
       {"grpc.health.v1.Health", "qmatmul.v1.MatMulService", "qmatmul.v1.WeightService",
        "qmatmul.v1.InfoService", "qmatmul.v1.AdminService"})
    EXPECT_NE(pool->FindServiceByName(name), nullptr) << name;
}

}  // namespace
}  // namespace qmatmul
