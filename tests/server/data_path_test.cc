// The raw data path: what a request's bytes look like does not matter, what its answer's bytes are is
// the contract's, and nothing is copied that need not be. Many weights, chains and top_k go this way.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/server/test_server.h"

namespace qmatmul {
namespace {

constexpr int64_t kK = 96;
constexpr int64_t kN = 40;
constexpr int64_t kRows = 7;
constexpr char kMatMul[] = "/qmatmul.v1.MatMulService/MatMul";

class DataPath : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(server_.Register(Int8Message("w", kK, kN), w_).ok());
    ASSERT_TRUE(server_.Register(Int8Message("v", kN, 24), PatternBytes(kN * 24, 3)).ok());
  }
  // What the bytes of a request are answered with.
  v1::MatMulResponse Send(const std::string& bytes) {
    std::string reply;
    const grpc::Status status = server_.SendBytes(kMatMul, bytes, &reply);
    EXPECT_TRUE(status.ok()) << status.error_message();
    v1::MatMulResponse message;
    EXPECT_TRUE(message.ParseFromString(reply));
    return message;
  }
  void ExpectRight(const v1::MatMulResponse& reply) {
    ASSERT_EQ(reply.outputs_size(), 1);
    EXPECT_EQ(reply.outputs(0).data(), Int32Product(a_, w_, kRows, kK, kN));
  }
  int64_t copied_bytes() const { return server_.Metrics().at(Counter::kCopiedBytes); }

  TestServer server_;
  const std::string w_ = PatternBytes(kK * kN, 1);
  const std::string a_ = PatternBytes(kRows * kK, 2);
  const v1::MatMulRequest request_ = Int8Request("w", kRows, kK, a_);
};

TEST_F(DataPath, NothingIsCopied) {
  ExpectRight(Send(request_.SerializeAsString()));
  const std::string large = PatternBytes(20'000 * kK, 9);  // many slices of the transport
  const v1::MatMulResponse reply = Send(Int8Request("w", 20'000, kK, large).SerializeAsString());
  EXPECT_EQ(reply.outputs(0).data(), Int32Product(large, w_, 20'000, kK, kN));
  EXPECT_EQ(copied_bytes(), 0);
}

TEST_F(DataPath, FieldsMayComeInAnyOrder) {
  v1::MatMulRequest rest = request_;
  rest.clear_activations();
  v1::MatMulRequest activations;
  *activations.mutable_activations() = request_.activations();
  ExpectRight(Send(activations.SerializeAsString() + rest.SerializeAsString()));
  // The tensor in two parts: the data first, the shape after everything else.
  v1::MatMulRequest data, shape;
  data.mutable_activations()->set_data(a_);
  *shape.mutable_activations() = request_.activations();
  shape.mutable_activations()->clear_data();
  ExpectRight(
      Send(data.SerializeAsString() + rest.SerializeAsString() + shape.SerializeAsString()));
  EXPECT_EQ(copied_bytes(), 0);
}

TEST_F(DataPath, OfSeveralPayloadsTheLastOneCounts) {
  v1::MatMulRequest wrong;
  wrong.mutable_activations()->set_data("not this");
  ExpectRight(Send(wrong.SerializeAsString() + request_.SerializeAsString()));
}

TEST_F(DataPath, UnknownFieldsAreSkipped) {
  // Field 4000 as a varint, as bytes, and as a group, which the generated parser is asked about.
  const std::string varint("\x80\xfa\x01\x05", 4);
  const std::string bytes("\x82\xfa\x01\x02hi", 6);
  const std::string group("\x83\xfa\x01\x08\x01\x84\xfa\x01", 8);
  ExpectRight(Send(varint + request_.SerializeAsString() + bytes));
  EXPECT_EQ(copied_bytes(), 0);
  ExpectRight(Send(group + request_.SerializeAsString()));
  EXPECT_EQ(copied_bytes(), 2 * static_cast<int64_t>(a_.size())) << "and the copies are counted";
}

TEST_F(DataPath, CompressedRequestsAreServed) {
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::MatMulResponse reply;
  ASSERT_TRUE(server_.matmul->MatMul(&context, request_, &reply).ok());
  ExpectRight(reply);
}

TEST_F(DataPath, TopKGivesTheGreatestAndTheirColumns) {
  v1::MatMulRequest request = request_;
  request.mutable_outputs(0)->set_top_k(5);
  const v1::MatMulResponse reply = Send(request.SerializeAsString());
  const v1::OutputTensor& output = reply.outputs(0);
  ASSERT_EQ(output.shape_size(), 2);
  EXPECT_EQ(output.shape(1), 5);
  ASSERT_EQ(output.data().size(), kRows * 5 * sizeof(int32_t));
  ASSERT_EQ(output.indices().size(), kRows * 5 * sizeof(int32_t));
  const std::string dense = Int32Product(a_, w_, kRows, kK, kN);
  for (size_t m = 0; m < kRows; ++m) {
    int32_t row[kN], values[5], columns[5];
    std::memcpy(row, dense.data() + m * sizeof row, sizeof row);
    std::memcpy(values, output.data().data() + m * sizeof values, sizeof values);
    std::memcpy(columns, output.indices().data() + m * sizeof columns, sizeof columns);
    std::vector<int32_t> order(kN);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(columns[i], order[i]) << m << " " << i;
      EXPECT_EQ(values[i], row[order[i]]) << m << " " << i;
    }
  }
}

// The first call's floats, sent back for the second.
TEST_F(DataPath, AChainEqualsItsCalls) {
  v1::MatMulRequest first = request_;
  first.mutable_outputs(0)->set_dtype(v1::DATA_TYPE_F32);
  first.mutable_outputs(0)->set_activation(v1::ACTIVATION_RELU);
  const v1::MatMulResponse between = Send(first.SerializeAsString());
  v1::MatMulRequest second = Int8Request("v", kRows, kN, between.outputs(0).data());
  second.mutable_activations()->set_dtype(v1::DATA_TYPE_F32);
  second.mutable_activations()->mutable_dynamic();
  second.mutable_options()->set_arithmetic(v1::ARITHMETIC_W8A8);
  const v1::MatMulResponse apart = Send(second.SerializeAsString());

  v1::MatMulRequest chain = first;
  v1::ChainStep* step = chain.add_then();
  step->set_weight("weights/v");
  step->set_arithmetic(v1::ARITHMETIC_W8A8);
  *step->mutable_output() = second.outputs(0);
  const v1::MatMulResponse together = Send(chain.SerializeAsString());
  ASSERT_EQ(together.outputs_size(), 1);
  EXPECT_EQ(together.outputs(0).data(), apart.outputs(0).data());
  EXPECT_EQ(together.outputs(0).activation_scales().data(),
            apart.outputs(0).activation_scales().data());
  EXPECT_FALSE(together.outputs(0).activation_scales().data().empty());
  EXPECT_EQ(together.outputs(0).shape(1), 24);
  EXPECT_EQ(together.outputs(0).execution().weight(), "weights/v");
}

TEST_F(DataPath, AChainOfManyStepsEndsInTopK) {
  ASSERT_TRUE(server_.Register(Int8Message("square", kN, kN), PatternBytes(kN * kN, 8)).ok());
  v1::MatMulRequest chain = request_;
  chain.mutable_outputs(0)->set_dtype(v1::DATA_TYPE_F32);
  v1::MatMulResponse apart = Send(chain.SerializeAsString());
  for (int i = 0; i < 4; ++i) {
    v1::ChainStep* step = chain.add_then();
    step->set_weight("weights/square");
    step->set_arithmetic(i % 2 == 0 ? v1::ARITHMETIC_W8A32 : v1::ARITHMETIC_W8A8);
    step->mutable_output()->set_dtype(v1::DATA_TYPE_F32);
    if (i == 3) step->mutable_output()->set_top_k(3);
    v1::MatMulRequest one = Int8Request("square", kRows, kN, apart.outputs(0).data());
    one.mutable_activations()->set_dtype(v1::DATA_TYPE_F32);
    if (i % 2 != 0) one.mutable_activations()->mutable_dynamic();
    one.mutable_options()->set_arithmetic(step->arithmetic());
    *one.mutable_outputs(0) = step->output();
    apart = Send(one.SerializeAsString());
  }
  const v1::MatMulResponse together = Send(chain.SerializeAsString());
  EXPECT_EQ(together.outputs(0).data(), apart.outputs(0).data());
  EXPECT_EQ(together.outputs(0).indices(), apart.outputs(0).indices());
}

TEST_F(DataPath, AnIntermediateOutOfRangeRefusesTheChain) {
  v1::WeightSpec steep = Int8Message("steep", kN, kN);
  steep.set_scale_dtype(v1::DATA_TYPE_F32);
  steep.set_scale_count(1);
  const float scale = 1e14f;
  std::string bytes(kN * kN, 100);
  bytes.append(reinterpret_cast<const char*>(&scale), sizeof scale);
  ASSERT_TRUE(server_.Register(steep, bytes).ok());
  v1::MatMulRequest chain = Int8Request("steep", 1, kN, std::string(kN, 100));
  chain.mutable_outputs(0)->set_dtype(v1::DATA_TYPE_F32);
  v1::ChainStep* step = chain.add_then();
  step->set_weight("weights/v");
  step->set_arithmetic(v1::ARITHMETIC_W8A8);
  step->mutable_output()->set_dtype(v1::DATA_TYPE_F32);
  v1::MatMulResponse reply;
  const grpc::Status status = server_.MatMul(chain, &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ErrorDetails(status).reason, "ACTIVATION_RANGE") << status.error_message();
}

}  // namespace
}  // namespace qmatmul
