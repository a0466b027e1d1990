// An engine on a fake device and a fake clock, and requests that wait for nobody: no sleeps, no
// sockets.
#pragma once

#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/engine/engine.h"
#include "tests/engine/fake_clock.h"
#include "tests/support/fake_device.h"

namespace qmatmul {

inline WeightSpec Int8Spec(int64_t k, int64_t n, Layout layout = Layout::kKN) {
  WeightSpec spec;
  spec.dtype = DataType::kInt8;
  spec.layout = layout;
  spec.k = k;
  spec.n = n;
  return spec;
}

// Bytes `seed`, seed + 1, … for a whole upload of `spec` without scales and bias.
inline std::vector<std::byte> UploadBytes(const WeightSpec& spec, int seed = 0) {
  std::vector<std::byte> bytes(static_cast<size_t>(spec.upload_bytes()));
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>((static_cast<int>(i) + seed) % 251);
  return bytes;
}

// One INT8 request with INT32 output that knows when it is completed.
class TestRequest final : public Request {
 public:
  TestRequest(WeightPtr weight, int64_t rows) {
    const WeightSpec& spec = weight->content->spec;
    input_.assign(static_cast<size_t>(rows * spec.k), std::byte{1});
    result_.resize(static_cast<size_t>(rows * spec.n));
    weights = {std::move(weight)};
    piece_ = {input_.data(), input_.size()};
    activations.dtype = DataType::kInt8;
    activations.rows = rows;
    activations.k = spec.k;
    activations.bytes = {&piece_, 1};
    outputs.resize(1);
    outputs[0].view = {reinterpret_cast<std::byte*>(result_.data()), spec.n * 4};
    bytes = static_cast<int64_t>(input_.size() + result_.size() * 4);
  }

  void Complete() override {
    const std::lock_guard lock(mutex_);
    ++completions_;
    completed_.notify_all();
  }
  void Await() {
    std::unique_lock lock(mutex_);
    completed_.wait(lock, [&] { return completions_ > 0; });
  }
  int completions() {
    const std::lock_guard lock(mutex_);
    return completions_;
  }
  const std::vector<int32_t>& result() const { return result_; }

 private:
  std::vector<std::byte> input_;
  std::vector<int32_t> result_;
  ByteSpan piece_;
  std::mutex mutex_;
  std::condition_variable completed_;
  int completions_ = 0;
};

struct EngineFixture {
  explicit EngineFixture(EngineOptions options = {}) {
    auto owned = std::make_unique<FakeDevice>();
    device = owned.get();
    std::vector<std::unique_ptr<Device>> devices;
    devices.push_back(std::move(owned));
    options.known_device_kinds = {"cpu", "cuda"};
    engine = std::make_unique<Engine>(std::move(devices), options, clock);
  }
  ~EngineFixture() { device->OpenGate(); }

  Status Register(Registration registration, std::span<const std::byte> bytes,
                  RegisterResult* result) {
    std::unique_ptr<WeightUpload> upload;
    if (Status status = engine->weights().StartUpload(std::move(registration), &upload);
        !status.ok())
      return status;
    if (!bytes.empty())
      if (Status status = upload->Append(bytes); !status.ok()) return status;
    return upload->Finish(result);
  }
  WeightPtr Weight(const std::string& id, int64_t k = 3, int64_t n = 2, int seed = 0) {
    RegisterResult result;
    const WeightSpec spec = Int8Spec(k, n);
    const Status status = Register({id, spec, "", false, ""}, UploadBytes(spec, seed), &result);
    return status.ok() ? result.weight : nullptr;
  }
  // Admits and submits; the status of a refused admission.
  Status Send(TestRequest* request) {
    Status status = engine->Admit(request);
    if (status.ok()) engine->Submit(request);
    return status;
  }

  FakeClock clock;
  FakeDevice* device = nullptr;
  std::unique_ptr<Engine> engine;
};

// The CPU, and beside it a GPU that is predicted to be faster.
struct TwoDevicesFixture {
  explicit TwoDevicesFixture(EngineOptions options = {}) {
    auto cpu_owned = std::make_unique<FakeDevice>();
    auto gpu_owned = std::make_unique<FakeDevice>("cuda:0", "cuda");
    cpu = cpu_owned.get();
    gpu = gpu_owned.get();
    gpu->predicted_ns = 1000;
    std::vector<std::unique_ptr<Device>> devices;
    devices.push_back(std::move(cpu_owned));
    devices.push_back(std::move(gpu_owned));
    options.known_device_kinds = {"cpu", "cuda"};
    engine = std::make_unique<Engine>(std::move(devices), options, clock);
  }
  ~TwoDevicesFixture() { gpu->OpenGate(); }

  FakeClock clock;
  FakeDevice* cpu = nullptr;
  FakeDevice* gpu = nullptr;
  std::unique_ptr<Engine> engine;
};

}  // namespace qmatmul
