// A device that is lost under its work: the CPU does what it had in hand, nothing more goes there, and
// what is registered meanwhile is registered without it.
#include <gtest/gtest.h>

#include <string>
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

// Packs what is missed until nothing is; what was said of each that could not be, in turn.
std::vector<std::string> RestoreAll(WeightStore& weights) {
  std::vector<std::string> reasons;
  std::string what;
  Status status;
  while (weights.RestoreNext(&what, &status))
    if (!status.ok()) reasons.push_back(status.reason);
  return reasons;
}

TEST(LostDevice, ComesBackWithItsBudgetAndItsWeights) {
  TwoDevices f;
  WeightStore& weights = f.engine->weights();
  WeightPtr before = f.Register("w");
  ASSERT_NE(f.Register("also_w"), nullptr);  // the same content under two names
  const int64_t bytes = weights.bytes(1), created = before->create_time_ns;
  EXPECT_GT(bytes, 0);
  EXPECT_EQ(before->content->bytes(), 2 * bytes);
  f.gpu->lost = true;
  EXPECT_TRUE(f.engine->ReviveDevices().empty());
  EXPECT_TRUE(RestoreAll(weights).empty());
  EXPECT_EQ(weights.bytes(1), bytes) << "it has not come back";
  EXPECT_FALSE(before->content->IsOn(1));
  EXPECT_NE(before->content->AbsenceOn(1).reason.find("when the device is back"),
            std::string::npos);

  f.gpu->comes_back = true;
  EXPECT_EQ(f.engine->ReviveDevices(), std::vector<std::string>{"cuda:0"});
  EXPECT_EQ(weights.bytes(1), bytes) << "somebody may still be computing with it";
  const std::string digest = before->content->digest;
  const int64_t generation = before->content->generation;
  before.reset();
  EXPECT_EQ(weights.bytes(1), 0);
  EXPECT_EQ(weights.bytes(0), bytes);
  TestRequest meanwhile(weights.Find("w"), 1);
  f.Send(&meanwhile);
  meanwhile.Await();
  EXPECT_EQ(meanwhile.execution.device, "cpu");

  EXPECT_TRUE(RestoreAll(weights).empty());
  EXPECT_EQ(weights.bytes(0), bytes);
  for (const char* name : {"w", "also_w"}) {
    const WeightPtr after = weights.Find(name);
    EXPECT_EQ(after->content->digest, digest);
    EXPECT_EQ(after->content->generation, generation) << "the content is what it was";
    EXPECT_EQ(after->create_time_ns, created);
    EXPECT_EQ(after->content->AbsenceOn(1).reason, "");
    TestRequest request(after, 1);
    f.Send(&request);
    request.Await();
    EXPECT_EQ(request.execution.device, "cuda:0");
    EXPECT_EQ(request.result()[0], 100 + 102 + 104);
  }
  EXPECT_EQ(f.gpu->packed_alive, 1) << "one copy for both names";
  EXPECT_EQ(weights.bytes(1), bytes);
}

TEST(LostDevice, WhatIsDeletedMeanwhileStaysDeleted) {
  TwoDevices f;
  ASSERT_NE(f.Register("w"), nullptr);
  f.gpu->lost = true;
  f.gpu->comes_back = true;
  f.engine->ReviveDevices();
  int64_t freed = 0;
  ASSERT_TRUE(f.engine->weights().Delete("w", &freed).ok());
  EXPECT_TRUE(RestoreAll(f.engine->weights()).empty());
  EXPECT_EQ(f.engine->weights().Find("w"), nullptr);
  EXPECT_EQ(f.engine->weights().bytes(0) + f.engine->weights().bytes(1), 0);
  EXPECT_EQ(f.gpu->packed_alive, 0);
}

TEST(LostDevice, RegisteredWhileItWasLostIsPackedWhenItIsBack) {
  TwoDevices f;
  const WeightPtr weight = f.Register("w", /*lose_at=*/3);
  ASSERT_NE(weight, nullptr);
  EXPECT_FALSE(weight->content->IsOn(1));
  f.gpu->comes_back = true;
  f.engine->ReviveDevices();
  EXPECT_TRUE(RestoreAll(f.engine->weights()).empty());
  EXPECT_TRUE(f.engine->weights().Find("w")->content->IsOn(1));
}

// No room any more: said once, and not tried for ever. Lost again: tried again when it is back.
TEST(LostDevice, AWeightThatCannotBePackedAgainSaysWhy) {
  TwoDevices f;
  WeightStore& weights = f.engine->weights();
  ASSERT_NE(f.Register("w"), nullptr);
  f.gpu->comes_back = true;
  f.gpu->lost = true;
  f.engine->ReviveDevices();
  f.gpu->lost = true;
  f.gpu->comes_back = false;
  EXPECT_TRUE(RestoreAll(weights).empty()) << "nothing to be done";
  EXPECT_TRUE(weights.Find("w")->content->AbsenceOn(1).is_missed);
  f.gpu->comes_back = true;
  f.engine->ReviveDevices();
  f.gpu->upload_bytes_left = 3;
  EXPECT_EQ(RestoreAll(weights), std::vector<std::string>{"DEVICE_MEMORY"});
  const Absence absence = weights.Find("w")->content->AbsenceOn(1);
  EXPECT_FALSE(absence.is_missed);
  EXPECT_EQ(absence.reason, "the fake device's memory is full");
  EXPECT_EQ(weights.bytes(1), 0);
  TestRequest request(weights.Find("w"), 1);
  f.Send(&request);
  request.Await();
  EXPECT_EQ(request.execution.device, "cpu");
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
