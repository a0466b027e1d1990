// A server with a few weights, a good request, and what every refusal has in common: code, one
// ErrorInfo, one named field, and a server that goes on serving.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "tests/server/test_server.h"

namespace qmatmul {

using grpc::StatusCode;

inline constexpr int64_t kK = 8;
inline constexpr int64_t kN = 4;
inline constexpr size_t kMessageBytes = 2 << 20;

inline std::string Floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Weights: "w" plain int8 [8,4]; "second" [4,3], to follow it in a chain; "biased" with scales and bias; "other" with another K; "long" with
// K = 65,794, one above what UINT8 activations allow.
class BadInput : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    Options options = TestOptions();
    options.message_bytes_max = kMessageBytes;
    server_ = new TestServer(options);
    data_ = new std::string(PatternBytes(kK * kN, 1));
    ASSERT_TRUE(server_->Register(Int8Message("w", kK, kN), *data_).ok());
    v1::WeightSpec biased = Int8Message("biased", kK, kN);
    biased.set_scale_dtype(v1::DATA_TYPE_F32);
    biased.set_scale_count(kN);
    biased.set_bias_count(kN);
    ASSERT_TRUE(server_->Register(biased, *data_ + Floats({1, 1, 1, 1, 0, 0, 0, 0})).ok());
    ASSERT_TRUE(
        server_->Register(Int8Message("other", kK + 1, kN), PatternBytes((kK + 1) * kN, 2)).ok());
    ASSERT_TRUE(server_->Register(Int8Message("second", kN, 3), PatternBytes(kN * 3, 6)).ok());
    ASSERT_TRUE(server_->Register(Int8Message("long", 65'794, 1), PatternBytes(65'794, 3)).ok());
    ASSERT_TRUE(server_->Register(Int8Message("wide", 1, 262'144), PatternBytes(262'144, 4)).ok());
  }
  static void TearDownTestSuite() {
    delete data_;
    delete server_;
  }

  static v1::MatMulRequest Good() { return Int8Request("w", 2, kK, PatternBytes(2 * kK, 5)); }
  static v1::MatMulRequest GoodFloat() {
    v1::MatMulRequest request = Good();
    request.mutable_activations()->set_dtype(v1::DATA_TYPE_F32);
    request.mutable_activations()->set_data(Floats(std::vector<float>(2 * kK, 0.5f)));
    request.mutable_activations()->mutable_dynamic();
    request.mutable_outputs(0)->set_dtype(v1::DATA_TYPE_F32);
    request.mutable_options()->set_arithmetic(v1::ARITHMETIC_W8A8);
    return request;
  }

  static void ExpectServing() {
    v1::MatMulResponse reply;
    const grpc::Status status = server_->MatMul(Good(), &reply);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(reply.outputs(0).data(), Int32Product(PatternBytes(2 * kK, 5), *data_, 2, kK, kN));
  }
  static void ExpectRefused(const grpc::Status& status, StatusCode code,
                            const std::string& reason) {
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    const ErrorDetails details(status);
    EXPECT_EQ(details.error_infos, 1);
    EXPECT_EQ(details.reason, reason) << status.error_message();
    EXPECT_EQ(details.domain, "qmatmul");
    EXPECT_FALSE(status.error_message().empty());
    EXPECT_EQ(details.fields.size(), code == StatusCode::INVALID_ARGUMENT ? 1u : 0u);
    for (const std::string& field : details.fields) EXPECT_FALSE(field.empty());
    EXPECT_EQ(details.has_retry, code == StatusCode::UNAVAILABLE);
    ExpectServing();
  }

  static inline TestServer* server_ = nullptr;
  static inline std::string* data_ = nullptr;
};
struct CallRow {
  const char* name;
  StatusCode code;
  const char* reason;
  std::function<void(v1::MatMulRequest*)> spoil;
  bool is_float = false;
};

inline constexpr auto kInvalid = StatusCode::INVALID_ARGUMENT;

}  // namespace qmatmul
