// Where a weight lives: on every device that has room for it within its budget and its memory, on the others
// not, and nowhere only when no device has.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/engine/engine_fixture.h"

namespace qmatmul {
namespace {

constexpr int64_t kBytes3x2 = 3 * 2 + 2 * 4;  // what FakeDevice holds for k = 3, n = 2

EngineOptions Budgets(int64_t cpu_bytes, int64_t gpu_bytes) {
  EngineOptions options;
  options.weight_bytes_max = {cpu_bytes, gpu_bytes};
  return options;
}

struct TwoBudgets : TwoDevicesFixture {
  TwoBudgets(int64_t cpu_bytes, int64_t gpu_bytes)
      : TwoDevicesFixture(Budgets(cpu_bytes, gpu_bytes)) {}

  Status Register(const std::string& id, int seed, WeightPtr* weight, size_t piece = 1000) {
    const WeightSpec spec = Int8Spec(3, 2);
    const std::vector<std::byte> bytes = UploadBytes(spec, seed);
    std::unique_ptr<WeightUpload> upload;
    if (Status s = engine->weights().StartUpload({id, spec, "", false, ""}, &upload); !s.ok())
      return s;
    for (size_t at = 0; at < bytes.size(); at += piece)
      if (Status s =
              upload->Append(std::span(bytes).subspan(at, std::min(piece, bytes.size() - at)));
          !s.ok())
        return s;
    RegisterResult result;
    Status status = upload->Finish(&result);
    *weight = result.weight;
    return status;
  }
  // "cpu cuda:0", or what of it holds the weight.
  static std::string PlacesOf(const Weight& weight) {
    std::string places;
    for (const auto& copy : weight.content->copies())
      if (copy != nullptr) places += (places.empty() ? "" : " ") + copy->device();
    return places;
  }
  // The device that computes a free choice, or the reason why none does.
  std::string Compute(const std::vector<WeightPtr>& weights, const std::string& device = "") {
    TestRequest request(weights.front(), 1);
    request.weights = {weights.begin(), weights.end()};
    request.device = device;
    // As many outputs as weights, which share their memory: only who computes is looked at.
    while (request.outputs.size() < weights.size()) {
      const SegmentOutput same = request.outputs.front();
      request.outputs.push_back(same);
    }
    if (Status s = engine->Admit(&request); !s.ok()) return s.reason;
    engine->Submit(&request);
    request.Await();
    last_message = request.status.message;
    return request.status.ok() ? std::string(request.execution.device) : request.status.reason;
  }

  std::string last_message;
};

std::string ValueOf(const Status& status, const std::string& key) {
  for (const auto& [name, value] : status.metadata)
    if (name == key) return value;
  return "none";
}

TEST(Placement, EachDeviceHasItsOwnBudget) {
  TwoBudgets f(3 * kBytes3x2, kBytes3x2);
  WeightPtr first, second, third, fourth;
  ASSERT_TRUE(f.Register("a", 0, &first).ok());
  ASSERT_TRUE(f.Register("b", 1, &second).ok());
  EXPECT_EQ(f.PlacesOf(*first), "cpu cuda:0");
  EXPECT_EQ(f.PlacesOf(*second), "cpu");
  EXPECT_EQ(f.Compute({first}), "cuda:0");
  EXPECT_EQ(f.Compute({second}), "cpu");
  EXPECT_EQ(f.engine->weights().bytes(0), 2 * kBytes3x2);
  EXPECT_EQ(f.engine->weights().bytes(1), kBytes3x2);
  EXPECT_EQ(f.gpu->packed_alive, 1);
  const Absence absence = second->content->AbsenceOn(1);
  EXPECT_EQ(absence.device, "cuda:0");
  EXPECT_NE(absence.reason.find("0 are left of the 14 that weights may use on cuda:0"),
            std::string::npos)
      << absence.reason;
  EXPECT_EQ(second->content->AbsenceOn(0).reason, "");

  ASSERT_TRUE(f.Register("c", 2, &third).ok());
  const Status full = f.Register("d", 3, &fourth);
  EXPECT_EQ(full.code, Code::kResourceExhausted);
  EXPECT_EQ(full.reason, "WEIGHT_MEMORY");
  EXPECT_EQ(ValueOf(full, "value"), "14");
  EXPECT_EQ(ValueOf(full, "limit"), std::to_string(3 * kBytes3x2));
  for (const char* part : {"on cpu", "on cuda:0", "delete weights", "device_weight_bytes_max"})
    EXPECT_NE(full.message.find(part), std::string::npos) << full.message;
}

TEST(Placement, DeletingGivesTheRoomBack) {
  TwoBudgets f(2 * kBytes3x2, kBytes3x2);
  WeightPtr first, second, third;
  ASSERT_TRUE(f.Register("a", 0, &first).ok());
  ASSERT_TRUE(f.Register("b", 1, &second).ok());
  EXPECT_EQ(f.PlacesOf(*second), "cpu");
  first.reset();
  int64_t freed = 0;
  ASSERT_TRUE(f.engine->weights().Delete("a", &freed).ok());
  EXPECT_EQ(freed, 2 * kBytes3x2) << "both copies";
  EXPECT_EQ(f.engine->weights().bytes(1), 0);
  ASSERT_TRUE(f.Register("c", 2, &third).ok());
  EXPECT_EQ(f.PlacesOf(*third), "cpu cuda:0");
}

// The CPU is no exception: what it has no room for can live on a GPU alone.
TEST(Placement, OnTheGpuAloneWhenTheCpuIsFull) {
  TwoBudgets f(kBytes3x2, 2 * kBytes3x2);
  WeightPtr first, second;
  ASSERT_TRUE(f.Register("a", 0, &first).ok());
  ASSERT_TRUE(f.Register("b", 1, &second).ok());
  EXPECT_EQ(f.PlacesOf(*second), "cuda:0");
  EXPECT_EQ(f.Compute({second}), "cuda:0");
  EXPECT_EQ(f.Compute({first, second}), "cuda:0");
  EXPECT_EQ(f.Compute({second}, "cpu"), "DEVICE_ABSENT");
  EXPECT_NE(f.last_message.find("weights/b is not here: a weight of k = 3, n = 2 needs 14 bytes"),
            std::string::npos)
      << f.last_message;
  // Nobody can do for it what it had in hand.
  f.gpu->lost = true;
  EXPECT_EQ(f.Compute({second}), "DEVICE_ABSENT");
  EXPECT_NE(f.last_message.find("lost"), std::string::npos) << f.last_message;
}

// The budget may promise more than the memory holds: the device has the last word, whenever it says it.
TEST(Placement, TheDevicesOwnMemoryIsShort) {
  for (const int64_t left : {0, 1, 5}) {
    TwoBudgets f(1000, 1000);
    f.gpu->upload_bytes_left = left;
    WeightPtr weight;
    ASSERT_TRUE(f.Register("w", 0, &weight, /*piece=*/1).ok()) << left;
    EXPECT_EQ(f.PlacesOf(*weight), "cpu");
    EXPECT_EQ(f.gpu->packed_alive, 0);
    EXPECT_EQ(f.engine->weights().bytes(1), 0);
    EXPECT_EQ(weight->content->AbsenceOn(1).reason, "the fake device's memory is full");
    EXPECT_EQ(f.Compute({weight}), "cpu");
    // Nothing of the attempt is still set aside.
    f.gpu->upload_bytes_left = 1000;
    WeightPtr other;
    TwoBudgets exact(1000, kBytes3x2);
    exact.gpu->upload_bytes_left = left;
    ASSERT_TRUE(exact.Register("w", 0, &weight, 1).ok());
    exact.gpu->upload_bytes_left = 1000;
    ASSERT_TRUE(exact.Register("v", 1, &other, 1).ok());
    EXPECT_EQ(exact.PlacesOf(*other), "cpu cuda:0") << left;
    weight.reset();
    other.reset();
  }
}

TEST(Placement, NoDeviceHasTheMemory) {
  TwoBudgets f(1000, 1000);
  f.cpu->upload_bytes_left = 2;
  f.gpu->upload_bytes_left = 4;
  WeightPtr weight;
  const Status status = f.Register("w", 0, &weight, 1);
  EXPECT_EQ(status.code, Code::kResourceExhausted);
  EXPECT_EQ(status.reason, "DEVICE_MEMORY");
  EXPECT_EQ(ValueOf(status, "value"), "14");
  EXPECT_EQ(ValueOf(status, "limit"), "1000");
  EXPECT_EQ(f.engine->weights().Find("w"), nullptr);
  for (size_t device : {0, 1}) EXPECT_EQ(f.engine->weights().bytes(device), 0);
}

TEST(Placement, WeightsThatShareNoDeviceCannotShareACall) {
  TwoBudgets f(kBytes3x2, kBytes3x2);
  f.gpu->upload_bytes_left = 0;
  WeightPtr on_cpu, on_gpu;
  ASSERT_TRUE(f.Register("a", 0, &on_cpu).ok());
  f.gpu->upload_bytes_left = 1000;
  ASSERT_TRUE(f.Register("b", 1, &on_gpu).ok());
  EXPECT_EQ(f.PlacesOf(*on_cpu), "cpu");
  EXPECT_EQ(f.PlacesOf(*on_gpu), "cuda:0");
  EXPECT_EQ(f.Compute({on_cpu, on_gpu}), "DEVICE_ABSENT");
  for (const char* part : {"cpu: weights/b is not here", "cuda:0: weights/a is not here"})
    EXPECT_NE(f.last_message.find(part), std::string::npos) << f.last_message;
}

TEST(Placement, ExplainSaysWhyADeviceIsNoChoice) {
  TwoBudgets f(1000, kBytes3x2 - 1);
  WeightPtr weight;
  ASSERT_TRUE(f.Register("w", 0, &weight).ok());
  Plan plan;
  const std::vector<WeightPtr> weights{weight};
  RouteQuery query;
  query.rows = 1;
  query.weights = weights;
  ASSERT_TRUE(f.engine->Explain(query, &plan).ok());
  EXPECT_EQ(plan.device, "cpu");
  const auto gpu = std::find_if(plan.candidates.begin(), plan.candidates.end(),
                                [](const Plan::Candidate& c) { return c.device == "cuda:0"; });
  ASSERT_NE(gpu, plan.candidates.end());
  EXPECT_FALSE(gpu->choice.eligible);
  EXPECT_NE(gpu->choice.reason.find("weights/w is not here: a weight of k = 3"), std::string::npos)
      << gpu->choice.reason;
}

// A product that finds no scratch on the GPU is done by the CPU, as when the GPU is lost.
TEST(Placement, ScratchThatIsShort) {
  TwoBudgets f(1000, 1000);
  WeightPtr weight;
  ASSERT_TRUE(f.Register("w", 0, &weight).ok());
  f.gpu->scratch_is_short = true;
  EXPECT_EQ(f.Compute({weight}), "cpu");
  EXPECT_EQ(f.engine->metrics().Read().fallbacks.at("device_memory"), 1);
  f.cpu->scratch_is_short = true;
  EXPECT_EQ(f.Compute({weight}), "SCRATCH_MEMORY");
  f.gpu->scratch_is_short = false;
  EXPECT_EQ(f.Compute({weight}), "cuda:0") << "it is not put aside for that";
}

}  // namespace
}  // namespace qmatmul
