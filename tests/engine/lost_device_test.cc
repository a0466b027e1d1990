// A device that is lost under its work: the CPU does what it had in hand, nothing more goes there, and
// what is registered meanwhile is registered without it.
#include <gtest/gtest.h>

#include <vector>

#include "tests/engine/engine_fixture.h"

namespace qmatmul {
namespace {

struct TwoDevices : TwoDevicesFixture {
  // Null when the upload fails; `lose_at`: the device goes after so many bytes.
  WeightPtr Register(const std::string& id, size_t lose_at = 1000) {
    const WeightSpec spec = Int8Spec(3, 2);
    const std::vector<std::byte> bytes = UploadBytes(spec, 100);
    std::unique_ptr<WeightUpload> upload;
    if (!engine->weights().StartUpload({id, spec, "", false, ""}, &upload).ok()) return nullptr;
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (i == lose_at) gpu->lost = true;
      if (!upload->Append({&bytes[i], 1}).ok()) return nullptr;
    }
    RegisterResult result;
    return upload->Finish(&result).ok() ? result.weight : nullptr;
  }
  void Send(TestRequest* request) {
    ASSERT_TRUE(engine->Admit(request).ok());
    engine->Submit(request);
  }
};

TEST(LostDevice, TheCpuDoesWhatItHadInHand) {
  TwoDevices f;
  const WeightPtr weight = f.Register("w");
  ASSERT_NE(weight, nullptr);
  f.gpu->CloseGate();
  TestRequest running(weight, 4), waiting(weight, 2), forced(weight, 1);
  // Sums of 300 and more: each of the 8 results overflows once, whoever has tried before.
  running.outputs[0].epilogue.dtype = DataType::kInt8;
  running.outputs[0].view.row_bytes = 2;
  forced.kernel = kFakeKernel;  // the first device's of that name: the CPU
  f.Send(&running);
  f.gpu->AwaitRuns(1);
  f.Send(&waiting);
  f.Send(&forced);
  f.gpu->lost = true;
  f.gpu->OpenGate();
  for (TestRequest* request : {&running, &waiting, &forced}) {
    request->Await();
    EXPECT_TRUE(request->status.ok()) << request->status.message;
    EXPECT_EQ(request->execution.device, "cpu");
    EXPECT_EQ(request->completions(), 1);
  }
  EXPECT_EQ(running.outputs[0].outcome.overflow_count, 8);
  EXPECT_EQ(running.outputs[0].outcome.first_overflow_row, 0);
  EXPECT_EQ(waiting.result()[0], 100 + 102 + 104);
  EXPECT_EQ(f.engine->metrics().Read().fallbacks.at("device_lost"), 2);
}

TEST(LostDevice, NothingMoreGoesThere) {
  TwoDevices f;
  const WeightPtr weight = f.Register("w");
  f.gpu->lost = true;
  TestRequest free_choice(weight, 1), forced(weight, 1);
  f.Send(&free_choice);
  free_choice.Await();
  EXPECT_EQ(free_choice.execution.device, "cpu");
  EXPECT_EQ(f.gpu->runs, 0);
  forced.device = "cuda:0";
  f.Send(&forced);
  forced.Await();
  EXPECT_EQ(forced.status.code, Code::kFailedPrecondition);
  f.engine->ReviveDevices();
  EXPECT_EQ(f.gpu->rearms, 1);
  EXPECT_EQ(f.cpu->rearms, 0);
}

TEST(LostDevice, ComesBackWithItsBudget) {
  TwoDevices f;
  WeightPtr before = f.Register("w");
  const int64_t bytes = f.engine->weights().bytes(1);
  EXPECT_GT(bytes, 0);
  EXPECT_EQ(before->content->bytes(), 2 * bytes);
  f.gpu->lost = true;
  f.engine->ReviveDevices();
  EXPECT_EQ(f.engine->weights().bytes(1), bytes) << "it has not come back";
  f.gpu->comes_back = true;
  f.engine->ReviveDevices();
  EXPECT_EQ(f.gpu->returns, 1);
  EXPECT_EQ(f.engine->weights().bytes(0), bytes);
  EXPECT_EQ(f.engine->weights().bytes(1), 0);
  EXPECT_EQ(before->content->bytes(), bytes);
  EXPECT_FALSE(before->content->IsOn(1));
  EXPECT_NE(before->content->AbsenceOn(1).reason.find("register it anew"), std::string::npos);

  // Registered anew it is there again; the old copy's end takes nothing away.
  int64_t freed = 0;
  ASSERT_TRUE(f.engine->weights().Delete("w", &freed).ok());
  EXPECT_EQ(freed, bytes);
  const WeightPtr after = f.Register("w");
  EXPECT_EQ(f.engine->weights().bytes(1), bytes);
  before.reset();
  EXPECT_EQ(f.engine->weights().bytes(0), bytes);
  EXPECT_EQ(f.engine->weights().bytes(1), bytes);
  TestRequest request(after, 1);
  f.Send(&request);
  request.Await();
  EXPECT_EQ(request.execution.device, "cuda:0");
}

TEST(LostDevice, UploadsGoOnWithoutIt) {
  for (const size_t lose_at : {0, 3, 5}) {
    TwoDevices f;
    const WeightPtr weight = f.Register("w", lose_at);
    ASSERT_NE(weight, nullptr) << lose_at;
    EXPECT_NE(weight->content->copies()[0], nullptr);
    EXPECT_EQ(weight->content->copies()[1], nullptr);
    EXPECT_EQ(f.engine->weights().bytes(1), 0);
    EXPECT_EQ(f.gpu->packed_alive, 0);
  }
}

}  // namespace
}  // namespace qmatmul
