#include "server/engine/router.h"

#include <gtest/gtest.h>

#include "tests/engine/engine_fixture.h"

namespace qmatmul {
namespace {

// Two devices that hold every weight.
struct TwoDevices {
  TwoDevices() : cpu("cpu", "cpu"), cuda("cuda:0", "cuda"), devices{&cpu, &cuda}, metrics({}) {
    store = std::make_unique<WeightStore>(devices, std::vector<int64_t>(2, int64_t{1} << 30), clock,
                                          metrics);
    router = std::make_unique<Router>(devices, std::vector<std::string>{"cpu", "cuda", "vulkan"},
                                      20'000);
    std::unique_ptr<WeightUpload> upload;
    RegisterResult result;
    const WeightSpec spec = Int8Spec(3, 2);
    EXPECT_TRUE(store->StartUpload({"w", spec, "", false, ""}, &upload).ok());
    EXPECT_TRUE(upload->Append(UploadBytes(spec)).ok());
    EXPECT_TRUE(upload->Finish(&result).ok());
    weights = {result.weight};
  }
  Status Choose(std::string_view device, std::string_view kernel, Route* route) {
    return router->Choose({1, weights, Arithmetic::kW8A8, device, kernel}, backlog_ns, route);
  }

  FakeDevice cpu, cuda;
  std::vector<Device*> devices;
  FakeClock clock;
  Metrics metrics;
  std::unique_ptr<WeightStore> store;
  std::unique_ptr<Router> router;
  std::vector<WeightPtr> weights;
  std::vector<int64_t> backlog_ns{0, 0};
};

TEST(Router, LeastPredictedTimeWinsBacklogIncluded) {
  TwoDevices d;
  Route route;
  d.cpu.predicted_ns = 100'000;
  d.cuda.predicted_ns = 40'000;
  ASSERT_TRUE(d.Choose("", "", &route).ok());
  EXPECT_EQ(route.device, 1u);
  d.backlog_ns[1] = 70'000;
  ASSERT_TRUE(d.Choose("", "", &route).ok());
  EXPECT_EQ(route.device, 0u);
  d.backlog_ns = {0, 60'000};  // a tie
  ASSERT_TRUE(d.Choose("", "", &route).ok());
  EXPECT_EQ(route.device, 0u) << "the CPU needs no transfer";
}

TEST(Router, OnlyShortCpuWorkRunsInline) {
  TwoDevices d;
  Route route;
  d.cpu.predicted_ns = 20'000;
  d.cuda.predicted_ns = 10'000;
  ASSERT_TRUE(d.Choose("cpu", "", &route).ok());
  EXPECT_TRUE(route.runs_inline);
  ASSERT_TRUE(d.Choose("cuda", "", &route).ok());
  EXPECT_FALSE(route.runs_inline);
  d.cpu.predicted_ns = 20'001;
  ASSERT_TRUE(d.Choose("cpu", "", &route).ok());
  EXPECT_FALSE(route.runs_inline);
}

struct ForcedRow {
  const char* device;
  const char* kernel;
  Code code;
  const char* reason;
};
constexpr ForcedRow kForced[] = {
    {"cpu", "", Code::kOk, ""},
    {"cuda", "", Code::kOk, ""},    // a kind
    {"cuda:0", "", Code::kOk, ""},  // an id
    {"", kFakeKernel, Code::kOk, ""},
    {"cpu", kFakeKernel, Code::kOk, ""},
    {"tpu", "", Code::kInvalidArgument, "DEVICE_UNKNOWN"},
    {"cuda:7", "", Code::kFailedPrecondition, "DEVICE_ABSENT"},  // a known kind, another number
    {"vulkan", "", Code::kFailedPrecondition, "DEVICE_ABSENT"},  // a known kind, none here
    {"", "cpu.none", Code::kInvalidArgument, "KERNEL_UNKNOWN"},
    {"", kFakeKernelUnsupported, Code::kFailedPrecondition, "KERNEL_UNSUPPORTED"},
    {"", kFakeKernelDisabled, Code::kFailedPrecondition, "KERNEL_UNSUPPORTED"},
    {"cuda", kFakeKernel, Code::kFailedPrecondition,
     "KERNEL_UNSUPPORTED"},  // found on the first device only
};

TEST(Router, ForcedDevicesAndKernels) {
  TwoDevices d;
  for (const ForcedRow& row : kForced) {
    SCOPED_TRACE(std::string(row.device) + " " + row.kernel);
    Route route;
    const Status status = d.Choose(row.device, row.kernel, &route);
    EXPECT_EQ(status.code, row.code) << status.message;
    EXPECT_EQ(status.reason, row.reason);
  }
}

TEST(Router, AForcedKernelMustBeMadeForTheArithmetic) {
  TwoDevices d;
  Route route;
  const Status status =
      d.router->Choose({1, d.weights, Arithmetic::kW8A32, "", kFakeKernel}, d.backlog_ns, &route);
  EXPECT_EQ(status.code, Code::kFailedPrecondition);
  EXPECT_EQ(status.reason, "KERNEL_UNSUPPORTED");
}

TEST(Router, ExplainShowsTheChoiceFirstAndWhy) {
  EngineFixture f;
  const std::vector<WeightPtr> weights{f.Weight("w")};
  Plan plan;
  ASSERT_TRUE(f.engine->Explain({4, weights, Arithmetic::kW8A8, "", ""}, &plan).ok());
  EXPECT_EQ(plan.device, "cpu");
  EXPECT_EQ(plan.kernel, kFakeKernel);
  EXPECT_FALSE(plan.runs_inline);
  EXPECT_NE(plan.rule.find("rows = 4"), std::string::npos) << plan.rule;
  ASSERT_EQ(plan.candidates.size(), 2u);
  EXPECT_TRUE(plan.candidates[0].choice.chosen);
  EXPECT_FALSE(plan.candidates[1].choice.eligible);
  EXPECT_EQ(f.device->runs, 0);
}

}  // namespace
}  // namespace qmatmul
