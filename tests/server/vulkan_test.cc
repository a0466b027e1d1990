// A whole server with the Vulkan device beside the CPU, on lavapipe under the validation layer: register,
// multiply, batch, delete, forced and free choice, and the loss of the device under load.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/vulkan/vulkan_device.h"
#include "tests/server/test_server.h"
#include "tests/support/test_devices.h"

namespace qmatmul {
namespace {

constexpr int64_t kK = 300, kN = 77;
constexpr int kErrorDeviceLost = -4;  // VkResult

class VulkanServer : public testing::Test {
 protected:
  void Start(int64_t memory_bytes_max = 0, const Options& options = TestOptions()) {
    auto devices = OpenDevices({.threads = 2});
    devices.resize(1);
    vulkan::VulkanSettings settings;
    settings.on_message = test::FailOnMessage;
    settings.memory_bytes_max = memory_bytes_max;
    settings.inject = [this](std::string_view call) {
      if (call != "submit" || submits_left_ < 0) return 0;
      if (submits_left_ == 0) return kErrorDeviceLost;  // and so it stays, opened anew or not
      --submits_left_;
      return 0;
    };
    for (auto& device : vulkan::OpenVulkanDevices({.vulkan_devices = "all"}, {}, settings))
      devices.push_back(std::move(device));
    ASSERT_EQ(devices.size(), 2u) << "lavapipe is not there";
    vulkan_ = devices[1].get();
    server_ = std::make_unique<TestServer>(options, std::move(devices));
  }

  void Register(const std::string& id, uint32_t seed) {
    const std::string data = PatternBytes(kK * kN, seed);
    const grpc::Status status = server_->Register(Int8Message(id, kK, kN), data);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }

  v1::Device DeviceRow(int index) {
    grpc::ClientContext context;
    v1::ListDevicesResponse devices;
    EXPECT_TRUE(server_->info->ListDevices(&context, {}, &devices).ok());
    return devices.devices(index);
  }

  // The call's answer compared with plain loops; its device, or the error's reason.
  std::string Call(const std::string& id, uint32_t seed, int64_t rows, const std::string& device,
                   const std::string& kernel = {}, v1::MatMulResponse* reply = nullptr) {
    const std::string a = PatternBytes(size_t(rows * kK), uint32_t(1000 + rows));
    v1::MatMulRequest request = Int8Request(id, rows, kK, a);
    request.mutable_options()->set_device(device);
    request.mutable_options()->set_kernel(kernel);
    v1::MatMulResponse own;
    if (reply == nullptr) reply = &own;
    const grpc::Status status = server_->MatMul(request, reply);
    if (!status.ok()) return ErrorDetails(status).reason;
    if (reply->outputs(0).data() != Int32Product(a, PatternBytes(kK * kN, seed), rows, kK, kN))
      return "wrong bytes";
    return reply->outputs(0).execution().device();
  }

  // Submissions until the device is lost; negative: it is well. Counted by the device's own threads, which
  // submit one at a time here.
  std::atomic<int> submits_left_{-1};
  Device* vulkan_ = nullptr;
  std::unique_ptr<TestServer> server_;
};

TEST_F(VulkanServer, RegisterMultiplyDelete) {
  Start();
  Register("w", 1);
  EXPECT_EQ(Call("w", 1, 5, "vulkan:0"), "vulkan:0");
  EXPECT_EQ(Call("w", 1, 1, "vulkan"), "vulkan:0") << "by kind";
  EXPECT_EQ(Call("w", 1, 9, "cpu"), "cpu");
  v1::MatMulResponse reply;
  EXPECT_EQ(Call("w", 1, 9, "", "vulkan.shift.s8s8s32.8x128x4", &reply), "vulkan:0");
  EXPECT_EQ(reply.outputs(0).execution().kernel(), "vulkan.shift.s8s8s32.8x128x4");
  EXPECT_EQ(Call("w", 1, 9, "cuda"), "DEVICE_ABSENT");
  const std::string free_choice = Call("w", 1, 7, "");
  EXPECT_TRUE(free_choice == "cpu" || free_choice == "vulkan:0") << free_choice;
  int64_t freed_bytes = 0;
  ASSERT_TRUE(server_->Delete("weights/w", &freed_bytes).ok());
  EXPECT_GE(freed_bytes, 2 * kK * kN) << "both copies";
  // Whoever computed the last call may still hold it when its reply is here.
  const auto held = [&] { return server_->server->engine().weights().bytes(1); };
  for (int ms = 0; held() != 0 && ms < 5000; ++ms)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(held(), 0);
}

TEST_F(VulkanServer, ListsAndExplains) {
  Start();
  Register("w", 1);
  grpc::ClientContext devices_context, kernels_context, explain_context;
  v1::ListDevicesResponse devices;
  ASSERT_TRUE(server_->info->ListDevices(&devices_context, {}, &devices).ok());
  ASSERT_EQ(devices.devices_size(), 2);
  EXPECT_EQ(devices.devices(1).id(), "vulkan:0");
  EXPECT_EQ(devices.devices(1).kind(), "vulkan");
  EXPECT_EQ(devices.devices(1).state(), "ready");
  v1::ListKernelsResponse kernels;
  ASSERT_TRUE(server_->info->ListKernels(&kernels_context, {}, &kernels).ok());
  int of_vulkan = 0;
  for (const v1::Kernel& kernel : kernels.kernels()) of_vulkan += kernel.device() == "vulkan:0";
  EXPECT_EQ(of_vulkan, static_cast<int>(vulkan_->Kernels().size()));
  v1::ExplainRequest question;
  question.add_weights("weights/w");
  question.set_rows(9);
  question.set_activations(v1::DATA_TYPE_INT8);
  question.mutable_options()->set_device("vulkan:0");
  v1::ExplainResponse plan;
  ASSERT_TRUE(server_->matmul->Explain(&explain_context, question, &plan).ok());
  EXPECT_EQ(plan.device(), "vulkan:0");
  EXPECT_EQ(Call("w", 1, 9, "vulkan:0", plan.kernel()), "vulkan:0");
  ASSERT_FALSE(plan.candidates().empty());
  EXPECT_GT(plan.candidates(0).predicted_ns(), 0);
}

TEST_F(VulkanServer, CallsThatComeTogetherAreBatched) {
  Start();
  Register("w", 2);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  std::atomic<int64_t> batch_rows_max = 0;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        v1::MatMulResponse reply;
        wrong += Call("w", 2, 1 + (t + i) % 5, "vulkan:0", "", &reply) != "vulkan:0";
        if (reply.outputs_size() == 0) continue;
        int64_t seen = batch_rows_max;
        while (reply.outputs(0).execution().batch_rows() > seen &&
               !batch_rows_max.compare_exchange_weak(seen,
                                                     reply.outputs(0).execution().batch_rows())) {}
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(batch_rows_max, 5) << "more than any one call has";
}

// A device of 24 MiB: by its budget, and by the driver where the budget promises too much.
TEST_F(VulkanServer, AWeightThatDoesNotFitIsServedByTheCpu) {
  const int64_t k = 4096, n = 8192;
  for (const int64_t budget : {int64_t{0}, int64_t{1} << 30}) {
    Options options = TestOptions();
    if (budget > 0) options.device_weight_bytes_max = {{"vulkan", budget}};
    Start(/*memory_bytes_max=*/int64_t{24} << 20, options);
    EXPECT_EQ(DeviceRow(1).memory_bytes(), budget > 0 ? budget : int64_t{18} << 20);
    v1::RegisterWeightResponse registered;
    ASSERT_TRUE(
        server_->Register(Int8Message("large", k, n), PatternBytes(size_t(k * n), 3), &registered)
            .ok());
    ASSERT_EQ(registered.weight().copies_size(), 1);
    EXPECT_EQ(registered.weight().copies(0).device(), "cpu");
    ASSERT_EQ(registered.weight().absences_size(), 1);
    EXPECT_EQ(registered.weight().absences(0).device(), "vulkan:0");
    EXPECT_NE(registered.weight().absences(0).reason().find(budget > 0 ? "25165824" : "18874368"),
              std::string::npos)
        << registered.weight().absences(0).reason();
    EXPECT_EQ(DeviceRow(1).memory_used_bytes(), 0);

    v1::ExplainRequest question;
    question.add_weights("weights/large");
    question.set_rows(1);
    question.set_activations(v1::DATA_TYPE_INT8);
    grpc::ClientContext context;
    v1::ExplainResponse plan;
    ASSERT_TRUE(server_->matmul->Explain(&context, question, &plan).ok());
    EXPECT_EQ(plan.device(), "cpu");
    const v1::Candidate& last = plan.candidates(plan.candidates_size() - 1);
    EXPECT_EQ(last.device(), "vulkan:0");
    EXPECT_FALSE(last.eligible());
    EXPECT_NE(last.reason().find("weights/large is not here"), std::string::npos) << last.reason();

    const std::string a(size_t(k), '\1');
    v1::MatMulRequest request = Int8Request("large", 1, k, a);
    v1::MatMulResponse reply;
    ASSERT_TRUE(server_->MatMul(request, &reply).ok());
    EXPECT_EQ(reply.outputs(0).execution().device(), "cpu");
    request.mutable_options()->set_device("vulkan:0");
    EXPECT_EQ(ErrorDetails(server_->MatMul(request, &reply)).reason, "DEVICE_ABSENT");
    Register("small", 4);
    EXPECT_EQ(Call("small", 4, 3, "vulkan:0"), "vulkan:0");
  }
}

TEST_F(VulkanServer, DeletingMakesRoomOnTheDevice) {
  Options options = TestOptions();
  options.device_weight_bytes_max = {{"vulkan:0", 60'000}, {"vulkan", 0}, {"cpu", 70'000}};
  Start(0, options);
  Register("first", 1);  // 300 · 77 bytes and some
  Register("second", 2);
  EXPECT_EQ(Call("second", 2, 3, "vulkan:0"), "vulkan:0");
  const int64_t used = DeviceRow(1).memory_used_bytes();
  EXPECT_GT(used, 2 * kK * kN);
  EXPECT_EQ(DeviceRow(1).memory_bytes(), 60'000);
  // The CPU has room for two as well: for a third, nobody has.
  const grpc::Status full =
      server_->Register(Int8Message("third", kK, kN), PatternBytes(kK * kN, 3));
  EXPECT_EQ(full.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ErrorDetails details(full);
  EXPECT_EQ(details.reason, "WEIGHT_MEMORY");
  EXPECT_EQ(details.metadata["value"], std::to_string(kK * kN + 4 * kN));
  EXPECT_EQ(details.metadata["limit"], "70000");
  EXPECT_NE(full.error_message().find("vulkan:0"), std::string::npos) << full.error_message();
  EXPECT_NE(full.error_message().find("delete weights"), std::string::npos);
  ASSERT_TRUE(server_->Delete("weights/first").ok());
  EXPECT_LT(DeviceRow(1).memory_used_bytes(), used);
  Register("third", 3);
  EXPECT_EQ(Call("third", 3, 3, "vulkan:0"), "vulkan:0");
}

// Calls in flight when the device goes are answered by the CPU; the device is put aside, seen, and opened
// anew; then what was registered before is on it again, too.
TEST_F(VulkanServer, ALostDevice) {
  Start();
  Register("w", 5);
  std::vector<std::thread> threads;
  std::atomic<int> on_vulkan = 0, on_cpu = 0, refused = 0, wrong = 0;
  submits_left_ = 6;
  for (int t = 0; t < 6; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        const std::string device = Call("w", 5, 1 + (t + i) % 4, "vulkan:0");
        if (device == "vulkan:0") ++on_vulkan;
        else if (device == "cpu") ++on_cpu;
        else if (device == "DEVICE_ABSENT") ++refused;  // forced, and known to be lost
        else ++wrong;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(on_vulkan, 0) << "before";
  EXPECT_GT(on_cpu, 0) << "in flight";
  EXPECT_GT(refused, 0) << "after";
  EXPECT_EQ(Call("w", 5, 3, ""), "cpu");
  EXPECT_FALSE(vulkan_->Quarantined().empty());
  grpc::ClientContext context;
  v1::ListDevicesResponse devices;
  ASSERT_TRUE(server_->info->ListDevices(&context, {}, &devices).ok());
  EXPECT_EQ(devices.devices(1).state(), "lost");
  Register("while_lost", 6);
  EXPECT_EQ(Call("while_lost", 6, 3, ""), "cpu");
  EXPECT_EQ(Call("while_lost", 6, 3, "vulkan:0"), "DEVICE_ABSENT");

  submits_left_ = -1;  // it has come back
  grpc::ClientContext rearm_context;
  v1::RearmKernelRequest rearm;
  v1::RearmKernelResponse rearmed;
  rearm.set_key("vulkan:0");
  const grpc::Status status = server_->admin->RearmKernel(&rearm_context, rearm, &rearmed);
  // The engine may have been first.
  EXPECT_TRUE(status.ok() || vulkan_->Quarantined().empty()) << status.error_message();
  EXPECT_TRUE(vulkan_->Quarantined().empty());
  Register("after", 7);
  EXPECT_EQ(Call("after", 7, 3, "vulkan:0"), "vulkan:0");
  // What it lost, and what came while it was away, is packed there again by and by.
  const auto is_there = [&](const char* id) {
    return server_->server->engine().weights().Find(id)->content->IsOn(1);
  };
  for (int ms = 0; !(is_there("w") && is_there("while_lost")) && ms < 20'000; ++ms)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(Call("w", 5, 3, "vulkan:0"), "vulkan:0");
  EXPECT_EQ(Call("while_lost", 6, 3, "vulkan:0"), "vulkan:0");
}

}  // namespace
}  // namespace qmatmul
