// Whatever a request is batched with, its answer is the reference's: thousands of them, of all sizes,
// types and weights, in flight together in random numbers.
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "kernels/reference.h"
#include "tests/server/test_server.h"
#include "tests/support/reference_call.h"
#include "tests/support/test_tensors.h"

namespace qmatmul {
namespace {

using test::Random;

#ifdef QMATMUL_TESTS_QUICK
constexpr int kRequests = 1'000;
#else
constexpr int kRequests = 10'000;
#endif
constexpr int kKinds = 400;  // different requests, each with its answer known
constexpr int kInFlightMax = 96;

v1::DataType Wire(DataType dtype) { return static_cast<v1::DataType>(dtype); }

// The contract's numbers and the engine's names, side by side.
static_assert(static_cast<int>(DataType::kInt8) == v1::DATA_TYPE_INT8);
static_assert(static_cast<int>(DataType::kBF16) == v1::DATA_TYPE_BF16);
static_assert(static_cast<int>(DataType::kInt2) == v1::DATA_TYPE_INT2);

struct Kind {
  v1::MatMulRequest request;
  std::string expected;
};

class Batches : public testing::Test {
 protected:
  void Register(const std::string& id, const WeightSpec& spec) {
    weights_.push_back(test::MakeWeight(spec, test::Fill::kRandom, &random_));
    v1::WeightSpec message;
    message.set_weight_id(id);
    message.set_dtype(Wire(spec.dtype));
    message.set_layout(spec.layout == Layout::kKN ? v1::LAYOUT_KN : v1::LAYOUT_NK);
    message.set_k(spec.k);
    message.set_n(spec.n);
    message.set_group_size(spec.group_size);
    message.set_scale_dtype(Wire(spec.scale_dtype));
    message.set_scale_count(spec.scale_count);
    message.set_bias_count(spec.bias_count);
    const std::vector<std::byte> upload = weights_.back().upload();
    const grpc::Status status = server_.Register(
        message, std::string(reinterpret_cast<const char*>(upload.data()), upload.size()));
    ASSERT_TRUE(status.ok()) << status.error_message();
    ids_.push_back(id);
  }

  void SetUp() override {
    const WeightSpec plain = test::MakeSpec(DataType::kInt8, Layout::kKN, 96, 80);
    Register("plain", plain);
    Register("scaled",
             test::WithBias(test::WithScales(test::MakeSpec(DataType::kInt8, Layout::kNK, 200, 33),
                                             DataType::kF32, 33)));
    Register("nibbles", test::WithScales(test::MakeSpec(DataType::kInt4, Layout::kKN, 128, 48, 32),
                                         DataType::kF16, 4 * 48));
    Register("ternary", test::WithScales(test::MakeSpec(DataType::kInt2, Layout::kKN, 64, 64),
                                         DataType::kF32, 1));
    for (int i = 0; i < kKinds; ++i) MakeKind();
  }

  Epilogue RandomEpilogue(const WeightSpec& spec) {
    constexpr DataType kOutputs[] = {DataType::kInt32, DataType::kInt16, DataType::kInt8,
                                     DataType::kF32,   DataType::kF16,   DataType::kBF16};
    Epilogue e;
    e.dtype = random_.Pick<DataType>(kOutputs);
    if (spec.group_wise() && e.dtype == DataType::kInt32) e.dtype = DataType::kF32;
    e.scaled = (e.dtype == DataType::kInt8 || e.dtype == DataType::kInt16) &&
               (spec.group_wise() || random_.Chance(50));
    if (e.scaled) {
      e.scale = 0.75f;
      e.zero_point = static_cast<int32_t>(random_.Between(-9, 9));
    }
    if (!IsFloat(e.dtype)) e.overflow = random_.Chance(50) ? Overflow::kWrap : Overflow::kSaturate;
    if (!e.raw() && random_.Chance(50)) e.activation = Activation::kRelu;
    e.skip_bias = e.raw() || random_.Chance(30);
    return e;
  }

  void MakeKind() {
    const size_t w = static_cast<size_t>(random_.Between(0, static_cast<int64_t>(ids_.size()) - 1));
    const WeightSpec& spec = weights_[w].spec;
    const int64_t rows = random_.Chance(60) ? random_.Between(0, 8) : random_.Between(9, 200);
    const bool is_float = random_.Chance(40);
    const test::TestActivations a =
        is_float ? test::FloatActivations(DataType::kF32, rows, spec.k, test::FloatRows::kOrdinary,
                                          Quantization::kDynamic, &random_)
                 : test::IntegerActivations(DataType::kInt8, rows, spec.k, test::Fill::kRandom,
                                            &random_);
    const Epilogue e = RandomEpilogue(spec);
    const test::ReferenceResult expected = test::Multiply(weights_[w], a, e, Arithmetic::kW8A8);
    ASSERT_TRUE(expected.fault.ok()) << expected.fault.message;
    Kind& kind = kinds_.emplace_back();
    kind.expected.assign(reinterpret_cast<const char*>(expected.bytes.data()),
                         expected.bytes.size());
    const std::vector<std::byte> data = a.bytes();
    kind.request = Int8Request(ids_[w], rows, spec.k,
                               {reinterpret_cast<const char*>(data.data()), data.size()});
    if (is_float) {
      kind.request.mutable_activations()->set_dtype(v1::DATA_TYPE_F32);
      kind.request.mutable_activations()->mutable_dynamic();
      kind.request.mutable_options()->set_arithmetic(v1::ARITHMETIC_W8A8);
    }
    v1::OutputSpec* output = kind.request.mutable_outputs(0);
    output->set_dtype(Wire(e.dtype));
    if (e.overflow == Overflow::kWrap) output->set_overflow(v1::OVERFLOW_WRAP);
    if (e.activation == Activation::kRelu) output->set_activation(v1::ACTIVATION_RELU);
    output->set_skip_bias(e.skip_bias);
    if (!e.scaled) return;
    output->set_scale(e.scale);
    output->set_zero_point(e.zero_point);
  }

  static Options BatchOptions() {
    Options options = TestOptions();
    options.inline_us_max = 0;  // everything meets in the batcher
    options.tile_us_max = 20;   // and what is large is cut
    return options;
  }

  Random random_{20'261'121};
  TestServer server_{BatchOptions()};
  std::vector<std::string> ids_;
  std::vector<test::TestWeight> weights_;
  std::vector<Kind> kinds_;
};

// One call in flight, and what came of all of them.
struct Tally {
  std::mutex mutex;
  std::condition_variable changed;
  int in_flight = 0;
  int right = 0;
  int joined = 0;  // computed together with others' rows
  std::string first_wrong;
};

struct Call {
  grpc::ClientContext context;
  v1::MatMulResponse reply;
};

void Judge(const Kind& kind, const grpc::Status& status, const v1::MatMulResponse& reply,
           Tally* tally) {
  const std::lock_guard lock(tally->mutex);
  const bool right = status.ok() && reply.outputs(0).data() == kind.expected;
  tally->right += right ? 1 : 0;
  const int64_t rows = kind.request.activations().shape(0);
  tally->joined += status.ok() && reply.outputs(0).execution().batch_rows() > rows ? 1 : 0;
  if (!right && tally->first_wrong.empty()) {
    v1::MatMulRequest shown = kind.request;
    shown.mutable_activations()->clear_data();
    tally->first_wrong = status.error_message() + "\n" + shown.ShortDebugString();
  }
  --tally->in_flight;
  tally->changed.notify_all();
}

TEST_F(Batches, EveryReplyIsTheReferencesWhateverItWasBatchedWith) {
  Tally tally;
  for (int i = 0; i < kRequests; ++i) {
    const Kind& kind = kinds_[static_cast<size_t>(random_.Between(0, kKinds - 1))];
    // The number in flight wanders, so that batches of every size come about.
    const auto in_flight_max = random_.Between(1, kInFlightMax);
    {
      std::unique_lock lock(tally.mutex);
      tally.changed.wait(lock, [&] { return tally.in_flight < in_flight_max; });
      ++tally.in_flight;
    }
    auto call = std::make_shared<Call>();
    server_.matmul->async()->MatMul(&call->context, &kind.request, &call->reply,
                                    [call, &kind, &tally](const grpc::Status& status) {
                                      Judge(kind, status, call->reply, &tally);
                                    });
  }
  std::unique_lock lock(tally.mutex);
  tally.changed.wait(lock, [&] { return tally.in_flight == 0; });
  EXPECT_EQ(tally.right, kRequests) << tally.first_wrong;
  EXPECT_GT(tally.joined, kRequests / 20) << "hardly any two met, so nothing was shown";
  // The last one may be answered and not yet be gone.
  const Engine& engine = server_.server->engine();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (engine.requests_in_flight() > 0 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::yield();
  EXPECT_EQ(engine.requests_in_flight(), 0);
  EXPECT_EQ(engine.bytes_in_flight(), 0);
}

}  // namespace
}  // namespace qmatmul
