#include <gtest/gtest.h>
#include <openssl/evp.h>

#include "tests/engine/engine_fixture.h"

namespace qmatmul {
namespace {

constexpr int64_t kBytes3x2 = 3 * 2 + 2 * 4;  // what FakeDevice holds for k = 3, n = 2

// One-shot SHA-256, apart from the store's streaming one.
std::string Sha256(const std::string& text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(text.data(), text.size(), digest, &size, EVP_sha256(), nullptr);
  std::string hex;
  char two[3];
  for (unsigned int i = 0; i < size; ++i) {
    std::snprintf(two, sizeof two, "%02x", digest[i]);
    hex += two;
  }
  return hex;
}

std::string DigestOf(const WeightSpec& spec, const std::vector<std::byte>& bytes) {
  return Sha256(IdentityLine(spec) +
                std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

TEST(WeightStore, DigestIsTheIdentityOfNumerics) {
  EngineFixture f;
  const WeightSpec spec = Int8Spec(3, 2);
  const std::vector<std::byte> bytes = UploadBytes(spec);
  // A fixed vector, computed by sha256sum, so that both sides cannot drift together.
  EXPECT_EQ(IdentityLine(spec), "qmatmul.weight.v1;INT8;KN;3;2;0;NONE;0;0\n");
  EXPECT_EQ(f.Weight("a")->content->digest, DigestOf(spec, bytes));
}

TEST(WeightStore, ChunksMayBeCutAnywhere) {
  EngineFixture f;
  const WeightSpec spec = Int8Spec(3, 2);
  const std::vector<std::byte> bytes = UploadBytes(spec);
  for (size_t cut = 0; cut <= bytes.size(); ++cut) {
    std::unique_ptr<WeightUpload> upload;
    ASSERT_TRUE(f.engine->weights().StartUpload({"w", spec, "", false, ""}, &upload).ok());
    ASSERT_TRUE(upload->Append(std::span(bytes).first(cut)).ok());
    ASSERT_TRUE(upload->Append(std::span(bytes).subspan(cut)).ok());
    RegisterResult result;
    ASSERT_TRUE(upload->Finish(&result).ok());
    EXPECT_EQ(result.weight->content->digest, DigestOf(spec, bytes)) << "cut at " << cut;
  }
}

TEST(WeightStore, SameContentIsIdempotentAndHeldOnce) {
  EngineFixture f;
  const WeightPtr first = f.Weight("a");
  RegisterResult again;
  const WeightSpec spec = Int8Spec(3, 2);
  ASSERT_TRUE(f.Register({"a", spec, "", false, ""}, UploadBytes(spec), &again).ok());
  EXPECT_TRUE(again.already_registered);
  EXPECT_EQ(again.weight, first);
  const WeightPtr other_name = f.Weight("b");
  EXPECT_EQ(other_name->content, first->content);
  EXPECT_EQ(f.engine->weights().bytes(0), kBytes3x2);
  EXPECT_EQ(f.device->packed_alive, 1);
}

TEST(WeightStore, LayoutIsPartOfTheIdentity) {
  EngineFixture f;
  const WeightSpec square_kn = Int8Spec(4, 4);
  const WeightSpec square_nk = Int8Spec(4, 4, Layout::kNK);
  RegisterResult kn, nk;
  ASSERT_TRUE(f.Register({"kn", square_kn, "", false, ""}, UploadBytes(square_kn), &kn).ok());
  ASSERT_TRUE(f.Register({"nk", square_nk, "", false, ""}, UploadBytes(square_nk), &nk).ok());
  EXPECT_NE(kn.weight->content->digest, nk.weight->content->digest);
}

TEST(WeightStore, SpecAloneBindsWhatIsKnown) {
  EngineFixture f;
  const WeightPtr a = f.Weight("a");
  const WeightSpec spec = Int8Spec(3, 2);
  RegisterResult result;
  ASSERT_TRUE(f.Register({"b", spec, a->content->digest, false, ""}, {}, &result).ok());
  EXPECT_TRUE(result.already_registered);
  EXPECT_EQ(result.weight->content, a->content);

  const std::string unknown(64, '0');
  const Status status = f.Register({"c", spec, unknown, false, ""}, {}, &result);
  EXPECT_EQ(status.code, Code::kNotFound);
  EXPECT_EQ(status.reason, "UPLOAD_NEEDED");
  EXPECT_EQ(f.engine->weights().Find("c"), nullptr);
}

TEST(WeightStore, DigestMismatchChangesNothing) {
  EngineFixture f;
  const WeightSpec spec = Int8Spec(3, 2);
  RegisterResult result;
  const Status status =
      f.Register({"a", spec, std::string(64, 'a'), false, ""}, UploadBytes(spec), &result);
  EXPECT_EQ(status.code, Code::kInvalidArgument);
  EXPECT_EQ(status.reason, "DIGEST_MISMATCH");
  EXPECT_EQ(f.engine->weights().Find("a"), nullptr);
  EXPECT_EQ(f.engine->weights().bytes(0), 0);
  EXPECT_EQ(f.device->packed_alive, 0);
  // Known content under a spec it was not hashed with.
  const WeightPtr known = f.Weight("b");
  const Status other =
      f.Register({"c", Int8Spec(2, 3), known->content->digest, false, ""}, {}, &result);
  EXPECT_EQ(other.reason, "DIGEST_MISMATCH");
}

TEST(WeightStore, LengthsAreExact) {
  EngineFixture f;
  const WeightSpec spec = Int8Spec(3, 2);
  std::vector<std::byte> bytes = UploadBytes(spec);
  RegisterResult result;
  EXPECT_EQ(f.Register({"a", spec, "", false, ""}, std::span(bytes).first(5), &result).reason,
            "UPLOAD_SHORT");
  EXPECT_EQ(f.Register({"a", spec, "", false, ""}, {}, &result).reason, "UPLOAD_SHORT");
  bytes.push_back(std::byte{0});
  EXPECT_EQ(f.Register({"a", spec, "", false, ""}, bytes, &result).reason, "UPLOAD_LONG");
  EXPECT_EQ(f.engine->weights().bytes(0), 0);
}

TEST(WeightStore, NamesMoveOnlyWhenAsked) {
  EngineFixture f;
  const WeightPtr first = f.Weight("a", 3, 2, 0);
  const WeightSpec spec = Int8Spec(3, 2);
  const std::vector<std::byte> bytes = UploadBytes(spec, 7);
  RegisterResult result;
  const Status exists = f.Register({"a", spec, "", false, ""}, bytes, &result);
  EXPECT_EQ(exists.code, Code::kAlreadyExists);
  EXPECT_EQ(exists.reason, "WEIGHT_EXISTS");
  ASSERT_EQ(exists.metadata.size(), 1u);
  EXPECT_EQ(exists.metadata[0], std::pair(std::string("current_digest"), first->content->digest));

  const Status stale = f.Register({"a", spec, "", true, std::string(64, 'b')}, bytes, &result);
  EXPECT_EQ(stale.reason, "WEIGHT_EXISTS") << "a stale replace_digest wins over replace";
  ASSERT_TRUE(f.Register({"a", spec, "", false, first->content->digest}, bytes, &result).ok());
  EXPECT_GT(result.weight->content->generation, first->content->generation);
  ASSERT_TRUE(f.Register({"a", spec, "", true, ""}, UploadBytes(spec, 9), &result).ok());
  EXPECT_EQ(f.Register({"new", spec, "", false, std::string(64, 'b')}, bytes, &result).code,
            Code::kNotFound)
      << "a digest to replace, but nothing there";
}

TEST(WeightStore, KnownDifferentDigestIsRefusedBeforeTheUpload) {
  EngineFixture f;
  f.Weight("a");
  std::unique_ptr<WeightUpload> upload;
  const Status status = f.engine->weights().StartUpload(
      {"a", Int8Spec(3, 2), std::string(64, 'c'), false, ""}, &upload);
  EXPECT_EQ(status.reason, "WEIGHT_EXISTS");
}

TEST(WeightStore, DeletingFreesWithTheLastHolder) {
  EngineFixture f;
  WeightPtr held = f.Weight("a");
  f.Weight("b");
  int64_t freed = -1;
  ASSERT_TRUE(f.engine->weights().Delete("a", &freed).ok());
  EXPECT_EQ(freed, 0) << "b has the same content";
  ASSERT_TRUE(f.engine->weights().Delete("b", &freed).ok());
  EXPECT_EQ(freed, kBytes3x2);
  EXPECT_EQ(f.engine->weights().bytes(0), kBytes3x2) << "a request still holds it";
  held.reset();
  EXPECT_EQ(f.engine->weights().bytes(0), 0);
  EXPECT_EQ(f.device->packed_alive, 0);
  EXPECT_EQ(f.engine->weights().Delete("a", &freed).reason, "WEIGHT_UNKNOWN");
}

TEST(WeightStore, GenerationsAreNeverReused) {
  EngineFixture f;
  const int64_t first = f.Weight("a")->content->generation;
  int64_t freed = 0;
  ASSERT_TRUE(f.engine->weights().Delete("a", &freed).ok());
  EXPECT_GT(f.Weight("a")->content->generation, first);
}

TEST(WeightStore, BudgetIsKeptToTheByte) {
  EngineOptions options;
  options.weight_bytes_max = {2 * kBytes3x2};
  EngineFixture f(options);
  ASSERT_NE(f.Weight("a", 3, 2, 0), nullptr);
  ASSERT_NE(f.Weight("b", 3, 2, 1), nullptr);
  RegisterResult result;
  const WeightSpec spec = Int8Spec(3, 2);
  const Status status = f.Register({"c", spec, "", false, ""}, UploadBytes(spec, 2), &result);
  EXPECT_EQ(status.code, Code::kResourceExhausted);
  EXPECT_EQ(status.reason, "WEIGHT_MEMORY");
  int64_t freed = 0;
  ASSERT_TRUE(f.engine->weights().Delete("a", &freed).ok());
  EXPECT_NE(f.Weight("c", 3, 2, 2), nullptr);
}

TEST(WeightStore, UploadsUnderWayCountAgainstTheBudget) {
  EngineOptions options;
  options.weight_bytes_max = {kBytes3x2 + kBytes3x2 / 2};
  EngineFixture f(options);
  const WeightSpec spec = Int8Spec(3, 2);
  const std::vector<std::byte> bytes = UploadBytes(spec);
  std::unique_ptr<WeightUpload> first, second;
  ASSERT_TRUE(f.engine->weights().StartUpload({"a", spec, "", false, ""}, &first).ok());
  ASSERT_TRUE(first->Append(std::span(bytes).first(1)).ok());
  ASSERT_TRUE(f.engine->weights().StartUpload({"b", spec, "", false, ""}, &second).ok());
  EXPECT_EQ(second->Append(std::span(bytes).first(1)).reason, "WEIGHT_MEMORY");
  first.reset();  // gives its reservation back
  ASSERT_TRUE(f.engine->weights().StartUpload({"b", spec, "", false, ""}, &second).ok());
  EXPECT_TRUE(second->Append(std::span(bytes).first(1)).ok());
}

TEST(WeightStore, ListsByNameAPageAtATime) {
  EngineFixture f;
  for (const char* id : {"c", "a", "b"}) f.Weight(id);
  const std::vector<WeightPtr> page = f.engine->weights().List("", 2);
  ASSERT_EQ(page.size(), 2u);
  EXPECT_EQ(page[0]->id, "a");
  EXPECT_EQ(page[1]->id, "b");
  ASSERT_EQ(f.engine->weights().List("b", 2).size(), 1u);
}

TEST(WeightStore, TypesNoDeviceHoldsAreUnimplemented) {
  EngineFixture f;
  WeightSpec spec = Int8Spec(4, 2);
  spec.dtype = DataType::kInt4;
  spec.group_size = 4;
  spec.scale_dtype = DataType::kF32;
  spec.scale_count = 2;
  RegisterResult result;
  EXPECT_EQ(f.Register({"a", spec, "", false, ""}, UploadBytes(spec), &result).code,
            Code::kUnimplemented);
  EXPECT_EQ(f.engine->weights().bytes(0), 0);
}

}  // namespace
}  // namespace qmatmul
