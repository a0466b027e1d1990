// The bad-input table's other half: chains, and bytes that no generated code would send.
#include <gtest/gtest.h>

#include "tests/server/bad_input.h"

namespace qmatmul {
namespace {

using R = v1::MatMulRequest*;

// The good chain, 8 -> 4 -> 3 columns; each row spoils it.
v1::MatMulRequest GoodChain(v1::MatMulRequest request) {
  request.mutable_outputs(0)->set_dtype(v1::DATA_TYPE_F32);
  v1::ChainStep* step = request.add_then();
  step->set_weight("weights/second");
  step->set_arithmetic(v1::ARITHMETIC_W8A8);
  step->mutable_output()->set_dtype(v1::DATA_TYPE_INT32);
  return request;
}
const CallRow kChainRows[] = {
    {"first step not F32", kInvalid, "OUTPUT_SPEC",
     [](R r) { r->mutable_outputs(0)->set_dtype(v1::DATA_TYPE_BF16); }},
    {"first step with top_k", kInvalid, "OUTPUT_SPEC",
     [](R r) { r->mutable_outputs(0)->set_top_k(1); }},
    {"step's weight unknown", StatusCode::NOT_FOUND, "WEIGHT_UNKNOWN",
     [](R r) { r->mutable_then(0)->set_weight("weights/none"); }},
    {"step's weight without prefix", kInvalid, "WEIGHT_ID",
     [](R r) { r->mutable_then(0)->set_weight("second"); }},
    {"step's k is not the n before", kInvalid, "K_MISMATCH",
     [](R r) { r->mutable_then(0)->set_weight("weights/w"); }},
    {"step's arithmetic missing", kInvalid, "ARITHMETIC_MISSING",
     [](R r) { r->mutable_then(0)->clear_arithmetic(); }},
    {"step's arithmetic unknown", kInvalid, "ENUM_UNKNOWN",
     [](R r) { r->mutable_then(0)->set_arithmetic(static_cast<v1::Arithmetic>(9)); }},
    {"step's output missing", kInvalid, "DTYPE_MISSING",
     [](R r) { r->mutable_then(0)->clear_output(); }},
    {"step's raw sums of weight-only floats", kInvalid, "OUTPUT_SPEC",
     [](R r) { r->mutable_then(0)->set_arithmetic(v1::ARITHMETIC_W8A32); }},
    {"step's top_k over its N", kInvalid, "TOP_K",
     [](R r) { r->mutable_then(0)->mutable_output()->set_top_k(4); }},
    {"chain on two weights", kInvalid, "WEIGHT_COUNT",
     [](R r) {
       r->add_weights("weights/w");
       *r->add_outputs() = r->outputs(0);
     }},
    {"too many steps", kInvalid, "CHAIN_LENGTH",
     [](R r) {
       while (r->then_size() < 16) *r->add_then() = r->then(0);
     }},
};

TEST_F(BadInput, Chains) {
  for (const CallRow& row : kChainRows) {
    SCOPED_TRACE(row.name);
    v1::MatMulRequest request = GoodChain(Good());
    row.spoil(&request);
    v1::MatMulResponse reply;
    ExpectRefused(server_->MatMul(request, &reply), row.code, row.reason);
  }
  v1::MatMulResponse reply;
  const grpc::Status status = server_->MatMul(GoodChain(Good()), &reply);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

// What no generated code would send.
TEST_F(BadInput, BytesThatAreNoMessage) {
  const std::string good = Good().SerializeAsString();
  for (const std::string& bytes : {std::string("\xff\xff\xff\xff\xff\xff\xff"),
                                   good.substr(0, good.size() - 1), good + '\x0b'}) {
    const grpc::Status status = server_->SendBytes("/qmatmul.v1.MatMulService/MatMul", bytes);
    ExpectRefused(status, kInvalid, "MALFORMED_MESSAGE");
  }
}

}  // namespace
}  // namespace qmatmul
