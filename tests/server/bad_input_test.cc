// The bad-input table: what is refused, with which code and reason, and that the server goes on
// serving. Each row is one message; after each a good call must be exact.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/server/bad_input.h"

namespace qmatmul {
namespace {

void SetActivations(v1::MatMulRequest* r, v1::DataType dtype, std::vector<int64_t> shape,
                    std::string data) {
  v1::ActivationTensor* a = r->mutable_activations();
  a->set_dtype(dtype);
  a->clear_shape();
  for (const int64_t size : shape) a->add_shape(size);
  a->set_data(std::move(data));
}

void SetStaticScales(v1::MatMulRequest* r, const std::vector<float>& scales) {
  v1::Scales* message = r->mutable_activations()->mutable_static_scales()->mutable_scales();
  message->set_dtype(v1::DATA_TYPE_F32);
  message->set_data(Floats(scales));
}

constexpr auto kUnimplemented = StatusCode::UNIMPLEMENTED;
constexpr int64_t kTwo31 = int64_t{1} << 31;
constexpr int64_t kTwo62 = int64_t{1} << 62;

using R = v1::MatMulRequest*;

const CallRow kActivationRows[] = {
    {"no tensor at all", kInvalid, "DTYPE_MISSING", [](R r) { r->clear_activations(); }},
    {"dtype missing", kInvalid, "DTYPE_MISSING",
     [](R r) { r->mutable_activations()->clear_dtype(); }},
    {"dtype unknown", kInvalid, "ENUM_UNKNOWN",
     [](R r) { r->mutable_activations()->set_dtype(static_cast<v1::DataType>(99)); }},
    {"dtype negative", kInvalid, "ENUM_UNKNOWN",
     [](R r) { r->mutable_activations()->set_dtype(static_cast<v1::DataType>(-1)); }},
    {"dtype of outputs only", kInvalid, "DTYPE",
     [](R r) { r->mutable_activations()->set_dtype(v1::DATA_TYPE_INT32); }},
    {"no shape", kInvalid, "SHAPE", [](R r) { r->mutable_activations()->clear_shape(); }},
    {"three dimensions", kInvalid, "SHAPE", [](R r) { r->mutable_activations()->add_shape(1); }},
    {"M negative", kInvalid, "SHAPE", [](R r) { r->mutable_activations()->set_shape(0, -1); }},
    {"K zero", kInvalid, "SHAPE", [](R r) { r->mutable_activations()->set_shape(1, 0); }},
    {"K negative", kInvalid, "SHAPE", [](R r) { r->mutable_activations()->set_shape(1, -8); }},
    {"K of another weight", kInvalid, "K_MISMATCH",
     [](R r) { r->mutable_activations()->set_shape(1, kK + 1); }},
    {"K 2^31", kInvalid, "K_MISMATCH", [](R r) { r->mutable_activations()->set_shape(1, kTwo31); }},
    {"M 2^31", kInvalid, "BYTES_MISMATCH",
     [](R r) { r->mutable_activations()->set_shape(0, kTwo31); }},
    {"M * K wraps to the right size", kInvalid, "BYTES_MISMATCH",
     [](R r) { r->mutable_activations()->set_shape(0, (int64_t{1} << 61) + 2); }},
    {"M 2^62", kInvalid, "BYTES_MISMATCH",
     [](R r) { r->mutable_activations()->set_shape(0, kTwo62); }},
    {"M maximal", kInvalid, "BYTES_MISMATCH",
     [](R r) { r->mutable_activations()->set_shape(0, INT64_MAX); }},
    {"a byte short", kInvalid, "BYTES_MISMATCH",
     [](R r) { r->mutable_activations()->mutable_data()->pop_back(); }},
    {"a byte long", kInvalid, "BYTES_MISMATCH",
     [](R r) { r->mutable_activations()->mutable_data()->push_back(0); }},
    {"bytes but no rows", kInvalid, "BYTES_MISMATCH",
     [](R r) { r->mutable_activations()->set_shape(0, 0); }},
    {"UINT8 with K > 65,793", kInvalid, "K_TOO_LARGE",
     [](R r) {
       r->set_weights(0, "weights/long");
       SetActivations(r, v1::DATA_TYPE_UINT8, {1, 65'794}, std::string(65'794, '\1'));
     }},
    {"zero point with K > 65,793", kInvalid, "K_TOO_LARGE",
     [](R r) {
       r->set_weights(0, "weights/long");
       SetActivations(r, v1::DATA_TYPE_INT8, {1, 65'794}, std::string(65'794, '\1'));
       r->mutable_activations()->add_zero_points(-1);
     }},
    {"zero point beyond INT8", kInvalid, "ZERO_POINT_RANGE",
     [](R r) { r->mutable_activations()->add_zero_points(128); }},
    {"zero point below UINT8", kInvalid, "ZERO_POINT_RANGE",
     [](R r) {
       r->mutable_activations()->set_dtype(v1::DATA_TYPE_UINT8);
       r->mutable_activations()->add_zero_points(-1);
     }},
    {"three zero points for two rows", kInvalid, "ZERO_POINT_COUNT",
     [](R r) {
       for (int i = 0; i < 3; ++i) r->mutable_activations()->add_zero_points(i);
     }},
    {"dynamic integers", kInvalid, "QUANTIZATION_SPEC",
     [](R r) { r->mutable_activations()->mutable_dynamic(); }},
    {"integers with W8A32", kInvalid, "QUANTIZATION_SPEC",
     [](R r) { r->mutable_options()->set_arithmetic(v1::ARITHMETIC_W8A32); }},
};

const CallRow kFloatRows[] = {
    {"arithmetic missing", kInvalid, "ARITHMETIC_MISSING", [](R r) { r->clear_options(); }, true},
    {"no quantization", kInvalid, "QUANTIZATION_SPEC",
     [](R r) { r->mutable_activations()->clear_dynamic(); }, true},
    {"dynamic with zero points", kInvalid, "QUANTIZATION_SPEC",
     [](R r) { r->mutable_activations()->add_zero_points(0); }, true},
    {"W8A32 with dynamic", kInvalid, "QUANTIZATION_SPEC",
     [](R r) { r->mutable_options()->set_arithmetic(v1::ARITHMETIC_W8A32); }, true},
    {"NaN", kInvalid, "ACTIVATION_RANGE",
     [](R r) { r->mutable_activations()->set_data(Floats(std::vector<float>(2 * kK, NAN))); },
     true},
    {"infinity in the last place", kInvalid, "ACTIVATION_RANGE",
     [](R r) {
       std::vector<float> values(2 * kK, 1.0f);
       values.back() = -INFINITY;
       r->mutable_activations()->set_data(Floats(values));
     },
     true},
    {"above 2^53", kInvalid, "ACTIVATION_RANGE",
     [](R r) {
       r->mutable_activations()->set_data(Floats(std::vector<float>(2 * kK, 0x1.000002p53f)));
     },
     true},
    {"F16 infinity", kInvalid, "ACTIVATION_RANGE",
     [](R r) {
       std::string data;
       for (int i = 0; i < 2 * kK; ++i) data += std::string("\x00\x7c", 2);
       SetActivations(r, v1::DATA_TYPE_F16, {2, kK}, data);
     },
     true},
    {"scale NaN", kInvalid, "SCALE_RANGE", [](R r) { SetStaticScales(r, {NAN}); }, true},
    {"scale infinite", kInvalid, "SCALE_RANGE", [](R r) { SetStaticScales(r, {INFINITY}); }, true},
    {"scale 0", kInvalid, "SCALE_RANGE", [](R r) { SetStaticScales(r, {0.0f}); }, true},
    {"scale under 2^-47", kInvalid, "SCALE_RANGE", [](R r) { SetStaticScales(r, {0x1p-48f}); },
     true},
    {"scale over 2^47", kInvalid, "SCALE_RANGE",
     [](R r) {
       SetStaticScales(r, {1.0f, -0x1p48f});
     },
     true},
    {"no scales", kInvalid, "SCALE_COUNT", [](R r) { SetStaticScales(r, {}); }, true},
    {"three scales for two rows", kInvalid, "SCALE_COUNT",
     [](R r) {
       SetStaticScales(r, {1, 1, 1});
     },
     true},
    {"scales without dtype", kInvalid, "DTYPE_MISSING",
     [](R r) {
       SetStaticScales(r, {1});
       r->mutable_activations()->mutable_static_scales()->mutable_scales()->clear_dtype();
     },
     true},
    {"INT8 scales", kInvalid, "SCALE_DTYPE",
     [](R r) {
       SetStaticScales(r, {1});
       r->mutable_activations()->mutable_static_scales()->mutable_scales()->set_dtype(
           v1::DATA_TYPE_INT8);
     },
     true},
    {"half a scale", kInvalid, "BYTES_MISMATCH",
     [](R r) {
       SetStaticScales(r, {1});
       r->mutable_activations()
           ->mutable_static_scales()
           ->mutable_scales()
           ->mutable_data()
           ->pop_back();
     },
     true},
    {"static zero point beyond INT8", kInvalid, "ZERO_POINT_RANGE",
     [](R r) {
       SetStaticScales(r, {1});
       r->mutable_activations()->add_zero_points(200);
     },
     true},
};

const CallRow kOutputRows[] = {
    {"no weights", kInvalid, "WEIGHT_COUNT", [](R r) { r->clear_weights(); }},
    {"17 weights", kInvalid, "WEIGHT_COUNT",
     [](R r) {
       for (int i = 0; i < 16; ++i) r->add_weights("weights/w");
     }},
    {"weights of two K", kInvalid, "K_MISMATCH",
     [](R r) {
       r->add_weights("weights/other");
       *r->add_outputs() = r->outputs(0);
     }},
    {"name unknown", StatusCode::NOT_FOUND, "WEIGHT_UNKNOWN",
     [](R r) { r->set_weights(0, "weights/none"); }},
    {"name empty", kInvalid, "WEIGHT_ID", [](R r) { r->set_weights(0, ""); }},
    {"id empty", kInvalid, "WEIGHT_ID", [](R r) { r->set_weights(0, "weights/"); }},
    {"no prefix", kInvalid, "WEIGHT_ID", [](R r) { r->set_weights(0, "w"); }},
    {"id of 129 bytes", kInvalid, "WEIGHT_ID",
     [](R r) { r->set_weights(0, "weights/" + std::string(129, 'a')); }},
    {"id with a slash", kInvalid, "WEIGHT_ID", [](R r) { r->set_weights(0, "weights/a/b"); }},
    {"id with a NUL", kInvalid, "WEIGHT_ID",
     [](R r) { r->set_weights(0, std::string("weights/a\0b", 11)); }},
    {"no outputs", kInvalid, "OUTPUT_COUNT", [](R r) { r->clear_outputs(); }},
    {"two outputs", kInvalid, "OUTPUT_COUNT", [](R r) { *r->add_outputs() = r->outputs(0); }},
    {"output dtype missing", kInvalid, "DTYPE_MISSING",
     [](R r) { r->mutable_outputs(0)->clear_dtype(); }},
    {"output dtype unknown", kInvalid, "ENUM_UNKNOWN",
     [](R r) { r->mutable_outputs(0)->set_dtype(static_cast<v1::DataType>(1000)); }},
    {"output UINT8", kInvalid, "DTYPE",
     [](R r) { r->mutable_outputs(0)->set_dtype(v1::DATA_TYPE_UINT8); }},
    {"overflow unknown", kInvalid, "ENUM_UNKNOWN",
     [](R r) { r->mutable_outputs(0)->set_overflow(static_cast<v1::Overflow>(7)); }},
    {"activation unknown", kInvalid, "ENUM_UNKNOWN",
     [](R r) { r->mutable_outputs(0)->set_activation(static_cast<v1::Activation>(7)); }},
    {"arithmetic unknown", kInvalid, "ENUM_UNKNOWN",
     [](R r) { r->mutable_options()->set_arithmetic(static_cast<v1::Arithmetic>(7)); }},
    {"wrap a float", kInvalid, "OUTPUT_SPEC",
     [](R r) {
       r->mutable_outputs(0)->set_dtype(v1::DATA_TYPE_F16);
       r->mutable_outputs(0)->set_overflow(v1::OVERFLOW_WRAP);
     }},
    {"RELU of raw sums", kInvalid, "OUTPUT_SPEC",
     [](R r) { r->mutable_outputs(0)->set_activation(v1::ACTIVATION_RELU); }},
    {"scale for INT32", kInvalid, "OUTPUT_SPEC", [](R r) { r->mutable_outputs(0)->set_scale(1); }},
    {"zero point without scale", kInvalid, "OUTPUT_SPEC",
     [](R r) {
       r->mutable_outputs(0)->set_dtype(v1::DATA_TYPE_INT8);
       r->mutable_outputs(0)->set_zero_point(1);
     }},
    {"raw sums of a biased weight", kInvalid, "OUTPUT_SPEC",
     [](R r) { r->set_weights(0, "weights/biased"); }},
    {"output scale negative", kInvalid, "SCALE_RANGE",
     [](R r) {
       r->mutable_outputs(0)->set_dtype(v1::DATA_TYPE_INT8);
       r->mutable_outputs(0)->set_scale(-1);
     }},
    {"output scale NaN", kInvalid, "SCALE_RANGE",
     [](R r) {
       r->mutable_outputs(0)->set_dtype(v1::DATA_TYPE_INT16);
       r->mutable_outputs(0)->set_scale(NAN);
     }},
    {"output zero point beyond INT8", kInvalid, "ZERO_POINT_RANGE",
     [](R r) {
       r->mutable_outputs(0)->set_dtype(v1::DATA_TYPE_INT8);
       r->mutable_outputs(0)->set_scale(1);
       r->mutable_outputs(0)->set_zero_point(128);
     }},
    {"top_k negative", kInvalid, "TOP_K", [](R r) { r->mutable_outputs(0)->set_top_k(-1); }},
    {"top_k over N", kInvalid, "TOP_K", [](R r) { r->mutable_outputs(0)->set_top_k(kN + 1); }},
    {"device unknown", kInvalid, "DEVICE_UNKNOWN",
     [](R r) { r->mutable_options()->set_device("abacus"); }},
    {"device absent", StatusCode::FAILED_PRECONDITION, "DEVICE_ABSENT",
     [](R r) { r->mutable_options()->set_device("cpu:3"); }},
    {"kernel unknown", kInvalid, "KERNEL_UNKNOWN",
     [](R r) { r->mutable_options()->set_kernel("cpu.none"); }},
    {"reply over the limit", StatusCode::RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE",
     [](R r) {
       r->set_weights(0, "weights/wide");
       SetActivations(r, v1::DATA_TYPE_INT8, {3, 1}, "abc");
     }},
    {"results that must fit and do not", StatusCode::OUT_OF_RANGE, "OVERFLOW",
     [](R r) {
       r->mutable_outputs(0)->set_dtype(v1::DATA_TYPE_INT8);
       r->mutable_outputs(0)->set_overflow(v1::OVERFLOW_ERROR);
     }},
    // What a later version does: refused by name, never answered wrongly.
    {"verify", kUnimplemented, "VERIFY_UNIMPLEMENTED",
     [](R r) { r->mutable_options()->set_verify(true); }},
};

TEST_F(BadInput, MatMul) {
  for (const auto& rows :
       {std::span<const CallRow>(kActivationRows), std::span<const CallRow>(kFloatRows),
        std::span<const CallRow>(kOutputRows)}) {
    for (const CallRow& row : rows) {
      SCOPED_TRACE(row.name);
      v1::MatMulRequest request = row.is_float ? GoodFloat() : Good();
      row.spoil(&request);
      v1::MatMulResponse reply;
      ExpectRefused(server_->MatMul(request, &reply), row.code, row.reason);
    }
  }
}

TEST_F(BadInput, TheUnspoiledRequestsAreServed) {
  v1::MatMulResponse reply;
  const grpc::Status status = server_->MatMul(GoodFloat(), &reply);
  EXPECT_TRUE(status.ok()) << status.error_message();
  ExpectServing();
}

struct SpecRow {
  const char* name;
  const char* reason;
  std::function<void(v1::WeightSpec*)> spoil;
};
using S = v1::WeightSpec*;
const SpecRow kSpecRows[] = {
    {"id empty", "WEIGHT_ID", [](S s) { s->clear_weight_id(); }},
    {"id of 129 bytes", "WEIGHT_ID", [](S s) { s->set_weight_id(std::string(129, 'x')); }},
    {"id with a prefix", "WEIGHT_ID", [](S s) { s->set_weight_id("weights/v"); }},
    {"id that starts with a dot", "WEIGHT_ID", [](S s) { s->set_weight_id(".v"); }},
    {"id with a space", "WEIGHT_ID", [](S s) { s->set_weight_id("a b"); }},
    {"id beyond ASCII", "WEIGHT_ID", [](S s) { s->set_weight_id("gewöhnlich"); }},
    {"dtype missing", "DTYPE_MISSING", [](S s) { s->clear_dtype(); }},
    {"dtype unknown", "ENUM_UNKNOWN", [](S s) { s->set_dtype(static_cast<v1::DataType>(42)); }},
    {"dtype F32", "DTYPE", [](S s) { s->set_dtype(v1::DATA_TYPE_F32); }},
    {"layout missing", "LAYOUT_MISSING", [](S s) { s->clear_layout(); }},
    {"layout unknown", "ENUM_UNKNOWN", [](S s) { s->set_layout(static_cast<v1::Layout>(3)); }},
    {"K 0", "SHAPE", [](S s) { s->set_k(0); }},
    {"N 0", "SHAPE", [](S s) { s->set_n(0); }},
    {"K negative", "SHAPE", [](S s) { s->set_k(-1); }},
    {"N minimal", "SHAPE", [](S s) { s->set_n(INT64_MIN); }},
    {"K 131,072", "K_TOO_LARGE", [](S s) { s->set_k(131'072); }},
    {"K 2^31", "K_TOO_LARGE", [](S s) { s->set_k(kTwo31); }},
    {"N 2^24 + 1", "N_TOO_LARGE", [](S s) { s->set_n((1 << 24) + 1); }},
    {"N 2^31", "N_TOO_LARGE", [](S s) { s->set_n(kTwo31); }},
    {"K * N beyond 2^63", "K_TOO_LARGE",
     [](S s) {
       s->set_k(kTwo62);
       s->set_n(kTwo62);
     }},
    {"group for INT8", "GROUP_SIZE", [](S s) { s->set_group_size(4); }},
    {"INT4 without group", "GROUP_SIZE", [](S s) { s->set_dtype(v1::DATA_TYPE_INT4); }},
    {"scales of the wrong count", "SCALE_COUNT",
     [](S s) {
       s->set_scale_dtype(v1::DATA_TYPE_F32);
       s->set_scale_count(3);
     }},
    {"scale count negative", "SCALE_COUNT", [](S s) { s->set_scale_count(-1); }},
    {"scales without dtype", "SCALE_DTYPE", [](S s) { s->set_scale_count(1); }},
    {"scale dtype without scales", "SCALE_DTYPE",
     [](S s) { s->set_scale_dtype(v1::DATA_TYPE_F32); }},
    {"scale dtype unknown", "ENUM_UNKNOWN",
     [](S s) { s->set_scale_dtype(static_cast<v1::DataType>(77)); }},
    {"bias of the wrong count", "BIAS_COUNT", [](S s) { s->set_bias_count(kN - 1); }},
    {"bias count 2^62", "BIAS_COUNT", [](S s) { s->set_bias_count(kTwo62); }},
    {"digest too short", "DIGEST", [](S s) { s->set_expected_digest("abc"); }},
    {"digest in capitals", "DIGEST", [](S s) { s->set_replace_digest(std::string(64, 'A')); }},
};

TEST_F(BadInput, Spec) {
  for (const SpecRow& row : kSpecRows) {
    SCOPED_TRACE(row.name);
    v1::WeightSpec spec = Int8Message("v", kK, kN);
    row.spoil(&spec);
    ExpectRefused(server_->Register(spec, *data_), kInvalid, row.reason);
    EXPECT_EQ(server_->server->engine().weights().Find("v"), nullptr);
  }
}

v1::RegisterWeightRequest Spec(const v1::WeightSpec& spec) {
  v1::RegisterWeightRequest message;
  *message.mutable_spec() = spec;
  return message;
}

v1::RegisterWeightRequest Chunk(std::string bytes) {
  v1::RegisterWeightRequest message;
  message.set_chunk(std::move(bytes));
  return message;
}

struct UploadRow {
  const char* name;
  StatusCode code;
  const char* reason;
  std::vector<v1::RegisterWeightRequest> messages;
};

TEST_F(BadInput, Upload) {
  const std::string& data = *data_;
  const v1::WeightSpec plain = Int8Message("v", kK, kN);
  v1::WeightSpec scaled = plain;
  scaled.set_scale_dtype(v1::DATA_TYPE_F32);
  scaled.set_scale_count(1);
  v1::WeightSpec biased = plain;
  biased.set_bias_count(kN);
  v1::WeightSpec expected = plain;
  expected.set_expected_digest(std::string(64, '0'));
  v1::WeightSpec stale = Int8Message("w", kK, kN);
  stale.set_replace_digest(std::string(64, '1'));
  const UploadRow rows[] = {
      {"nothing", kInvalid, "SPEC_MISSING", {}},
      {"chunk first", kInvalid, "SPEC_MISSING", {Chunk(data), Spec(plain)}},
      {"two specs", kInvalid, "SPEC_REPEATED", {Spec(plain), Spec(plain)}},
      {"neither spec nor chunk", kInvalid, "UPLOAD_EMPTY", {Spec(plain), {}}},
      {"no chunks", kInvalid, "UPLOAD_SHORT", {Spec(plain)}},
      {"chunks stop early", kInvalid, "UPLOAD_SHORT", {Spec(plain), Chunk(data.substr(0, 10))}},
      {"chunks run over", kInvalid, "UPLOAD_LONG", {Spec(plain), Chunk(data), Chunk("x")}},
      {"chunk over 1 MiB",
       kInvalid,
       "CHUNK_TOO_LARGE",
       {Spec(Int8Message("v", 2048, 1024)), Chunk(std::string((1 << 20) + 1, 'x'))}},
      {"scale NaN", kInvalid, "SCALE_RANGE", {Spec(scaled), Chunk(data + Floats({NAN}))}},
      {"scale infinite",
       kInvalid,
       "SCALE_RANGE",
       {Spec(scaled), Chunk(data), Chunk(Floats({INFINITY}))}},
      {"bias infinite",
       kInvalid,
       "BIAS_RANGE",
       {Spec(biased), Chunk(data + Floats({0, 0, 0, INFINITY}))}},
      {"digest that does not match", kInvalid, "DIGEST_MISMATCH", {Spec(expected), Chunk(data)}},
      {"digest not known here", StatusCode::NOT_FOUND, "UPLOAD_NEEDED", {Spec(expected)}},
      {"name holds other content",
       StatusCode::ALREADY_EXISTS,
       "WEIGHT_EXISTS",
       {Spec(Int8Message("w", kK, kN)), Chunk(PatternBytes(kK * kN, 99))}},
      {"stale replace_digest",
       StatusCode::ALREADY_EXISTS,
       "WEIGHT_EXISTS",
       {Spec(stale), Chunk(PatternBytes(kK * kN, 99))}},
  };
  const int64_t bytes_before = server_->server->engine().weights().bytes(0);
  for (const UploadRow& row : rows) {
    SCOPED_TRACE(row.name);
    ExpectRefused(server_->Upload(row.messages), row.code, row.reason);
    EXPECT_EQ(server_->server->engine().weights().Find("v"), nullptr);
    EXPECT_EQ(server_->server->engine().weights().bytes(0), bytes_before);
  }
}

TEST_F(BadInput, OtherMethods) {
  grpc::ClientContext get, list, token, explain, rows, verify, rearm;
  v1::Weight weight;
  v1::GetWeightRequest get_request;
  get_request.set_name("weights/none");
  ExpectRefused(server_->weights->GetWeight(&get, get_request, &weight), StatusCode::NOT_FOUND,
                "WEIGHT_UNKNOWN");
  ExpectRefused(server_->Delete("weights/none"), StatusCode::NOT_FOUND, "WEIGHT_UNKNOWN");
  ExpectRefused(server_->Delete("w"), kInvalid, "WEIGHT_ID");
  v1::ListWeightsRequest list_request;
  v1::ListWeightsResponse page;
  list_request.set_page_size(-1);
  ExpectRefused(server_->weights->ListWeights(&list, list_request, &page), kInvalid, "PAGE_SIZE");
  list_request.set_page_size(1);
  list_request.set_page_token("not/a/token");
  ExpectRefused(server_->weights->ListWeights(&token, list_request, &page), kInvalid, "PAGE_TOKEN");
  v1::ExplainRequest explain_request;
  v1::ExplainResponse plan;
  explain_request.add_weights("weights/w");
  ExpectRefused(server_->matmul->Explain(&explain, explain_request, &plan), kInvalid,
                "DTYPE_MISSING");
  explain_request.set_activations(v1::DATA_TYPE_INT8);
  explain_request.set_rows(kTwo62);
  ExpectRefused(server_->matmul->Explain(&rows, explain_request, &plan), kInvalid, "SHAPE");
  v1::VerifyResponse verdict;
  ExpectRefused(server_->matmul->Verify(&verify, {}, &verdict), kUnimplemented,
                "VERIFY_UNIMPLEMENTED");
  v1::RearmKernelRequest rearm_request;
  v1::RearmKernelResponse rearmed;
  rearm_request.set_key("cpu.none");
  ExpectRefused(server_->admin->RearmKernel(&rearm, rearm_request, &rearmed), StatusCode::NOT_FOUND,
                "QUARANTINE_UNKNOWN");
}

TEST_F(BadInput, MessageOverTheTransportsLimit) {
  // gRPC's own refusal, before a byte of ours is run: no ErrorInfo. Limit - 1 and limit are ours to
  // refuse.
  v1::MatMulRequest request = Good();
  request.mutable_activations()->set_data(std::string(kMessageBytes, 'x'));
  v1::MatMulResponse reply;
  const grpc::Status status = server_->MatMul(request, &reply);
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(status.error_details().empty());
  ExpectServing();
  const size_t overhead = request.ByteSizeLong() - kMessageBytes;
  for (const size_t size : {kMessageBytes - overhead - 1, kMessageBytes - overhead}) {
    request.mutable_activations()->set_data(std::string(size, 'x'));
    ExpectRefused(server_->MatMul(request, &reply), kInvalid, "BYTES_MISMATCH");
  }
}

TEST_F(BadInput, RefusalsAreCountedByReason) {
  const int64_t before = server_->Metrics().rejected["K_MISMATCH"];
  v1::MatMulRequest request = Good();
  request.mutable_activations()->set_shape(1, kK + 1);
  v1::MatMulResponse reply;
  ExpectRefused(server_->MatMul(request, &reply), kInvalid, "K_MISMATCH");
  EXPECT_EQ(server_->Metrics().rejected["K_MISMATCH"], before + 1);
}

}  // namespace
}  // namespace qmatmul
