// A MatMul that is too large for one message: the answer of the parts is the answer of the whole, and
// so are the errors. Then MatMulAsync, which runs the same way.
#include "client/split.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <future>
#include <numeric>
#include <set>

#include "client/client.h"
#include "tests/client/fake_product.h"
#include "tests/client/fake_server.h"

namespace qmatmul::client {
namespace {

using namespace std::chrono_literals;
using ::qmatmul::testing::ErrorOf;
using ::qmatmul::testing::FakeColumns;
using ::qmatmul::testing::FakeProduct;
using ::qmatmul::testing::FakeServer;

constexpr int64_t kRows = 103, kK = 200;

struct Inputs {
  Inputs() : data(kRows * kK), scales(kRows), zero_points(kRows) {
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<int8_t>(i * 37 % 251 - 125);
    for (size_t i = 0; i < kRows; ++i) {
      scales[i] = 0.5f + static_cast<float>(i);
      zero_points[i] = static_cast<int32_t>(i % 9) - 4;
    }
    a = {.dtype = DataType::kInt8, .rows = kRows, .k = kK, .data = std::as_bytes(std::span(data))};
    a.scales = Scales(scales);
    a.zero_points = zero_points;
  }
  std::vector<int8_t> data;
  std::vector<float> scales;
  std::vector<int32_t> zero_points;
  Activations a;
};

void ExpectSame(const std::vector<Output>& whole, const std::vector<Output>& joined) {
  ASSERT_EQ(whole.size(), joined.size());
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_EQ(joined[i].dtype, whole[i].dtype);
    EXPECT_EQ(joined[i].shape, whole[i].shape) << i;
    EXPECT_TRUE(joined[i].bytes == whole[i].bytes) << "output " << i;
    EXPECT_EQ(joined[i].indices, whole[i].indices) << i;
    EXPECT_EQ(joined[i].execution.weight, whole[i].execution.weight);
    EXPECT_EQ(joined[i].execution.overflow_count, whole[i].execution.overflow_count) << i;
    EXPECT_EQ(joined[i].execution.compute_ns, whole[i].execution.compute_ns) << "10 ns a row";
    EXPECT_EQ(joined[i].execution.verified, whole[i].execution.verified);
    EXPECT_EQ(joined[i].execution.batch_rows == kRows, joined[i].attempts == 1)
        << "the largest part";
    EXPECT_EQ(joined[i].execution.queue_ns, 100 + joined[i].execution.batch_rows) << "the longest";
  }
}

class Split : public ::testing::Test {
 protected:
  Split() {
    server_.on_matmul = [](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
      return FakeProduct(request, response);
    };
    server_.on_weight = [](v1::Weight* weight) { weight->set_n(FakeColumns(weight->name())); };
  }
  // The same call in one piece and in messages of at most `limit` bytes.
  void ExpectSameInParts(std::span<const Product> products, const MatMulOptions& options,
                         int64_t limit) {
    Client large({.server = server_.address()});
    Client small({.server = server_.address(), .connections = 3, .message_bytes_max = limit});
    const auto whole = large.MatMul(products, inputs_.a, options);
    ASSERT_TRUE(whole.ok()) << whole.status().ToString();
    ASSERT_EQ(server_.requests().size(), 1u);
    const auto joined = small.MatMul(products, inputs_.a, options);
    ASSERT_TRUE(joined.ok()) << joined.status().ToString();
    ExpectSame(*whole, *joined);
    int64_t rows = 0, parts = 0;
    for (const v1::MatMulRequest& request : server_.requests()) {
      EXPECT_LE(request.ByteSizeLong(), parts == 0 ? size_t{64} << 20 : static_cast<size_t>(limit));
      rows += request.activations().shape(0);
      ++parts;
    }
    EXPECT_GT(parts, 3) << "it was cut";
    EXPECT_GE(rows, 2 * kRows);
  }

  FakeServer server_;
  Inputs inputs_;
};

TEST_F(Split, ByTheRequestsSize) {
  const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}},
                              {.weight = "n3", .output = {.dtype = DataType::kF32}},
                              {.weight = "n8", .output = {.dtype = DataType::kInt8}}};
  ExpectSameInParts(products, {.verify = true}, 6000);
}

TEST_F(Split, TopKAndItsIndices) {
  const Product products[] = {
      {.weight = "n50", .output = {.dtype = DataType::kInt32, .top_k = 30}}};
  ExpectSameInParts(products, {}, 5000);
}

TEST_F(Split, AChain) {
  const ChainStep then[] = {{.weight = "n9", .output = {.dtype = DataType::kF32}},
                            {.weight = "n4", .output = {.dtype = DataType::kInt32}}};
  const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kF32}}};
  ExpectSameInParts(products, {.then = then}, 6000);
  const auto request = server_.requests().back();
  ASSERT_EQ(request.then_size(), 2);
  EXPECT_EQ(request.then(0).weight(), "weights/n9");
  EXPECT_EQ(request.then(1).output().dtype(), v1::DATA_TYPE_INT32);
}

TEST_F(Split, ByTheReplysSizeWhichIsLearnedWhenItDidNotFit) {
  const Product products[] = {{.weight = "n500", .output = {.dtype = DataType::kInt32}}};
  ExpectSameInParts(products, {}, 40'000);
  const size_t before = server_.requests().size();
  Client small({.server = server_.address(), .message_bytes_max = 40'000});
  ASSERT_TRUE(small.MatMul(products, inputs_.a).ok());
  const size_t first = server_.requests().size() - before;
  ASSERT_TRUE(small.MatMul(products, inputs_.a).ok());
  EXPECT_EQ(server_.requests().size() - before, 2 * first - 1) << "known from then on";
}

TEST_F(Split, ByTheServersLimitOnReplies) {
  server_.on_matmul = [](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    return FakeProduct(request, response, 40'000);
  };
  Client client({.server = server_.address()});
  const Product products[] = {{.weight = "n500", .output = {.dtype = DataType::kInt32}}};
  const auto y = client.MatMul(products, inputs_.a);
  ASSERT_FALSE(y.ok()) << "the server's limit is lower than this side's: nothing here can know it";
  EXPECT_EQ(y.status().reason, "REPLY_TOO_LARGE");
  EXPECT_EQ(server_.requests().size(), 1u) << "and the same is not sent twice";
}

TEST_F(Split, IntoTheCallersBuffers) {
  const Product plain[] = {{.weight = "n50", .output = {.dtype = DataType::kInt32}}};
  Client large({.server = server_.address()});
  const auto whole = large.MatMul(plain, inputs_.a);
  ASSERT_TRUE(whole.ok());
  std::vector<int32_t> y(kRows * 50 + 1, 12345);
  const Product into[] = {
      {.weight = "n50",
       .output = {.dtype = DataType::kInt32},
       .into = std::as_writable_bytes(std::span(y).first(static_cast<size_t>(kRows) * 50))}};
  Client small({.server = server_.address(), .message_bytes_max = 6000});
  const auto joined = small.MatMul(into, inputs_.a);
  ASSERT_TRUE(joined.ok()) << joined.status().ToString();
  EXPECT_EQ(std::memcmp(y.data(), whole->front().bytes.data(), whole->front().bytes.size()), 0);
  EXPECT_EQ(y.back(), 12345);
  EXPECT_TRUE(joined->front().bytes.empty());
}

TEST_F(Split, AnOverflowIsToldAsInOnePiece) {
  // Small values first, so that a later part has the first overflow; the second output overflows
  // before the first one does.
  for (size_t i = 0; i < 70 * kK; ++i) inputs_.data[i] = 0;
  const Activations a = {.dtype = DataType::kInt8,
                         .rows = kRows,
                         .k = kK,
                         .data = std::as_bytes(std::span(inputs_.data))};
  const OutputSpec spec = {.dtype = DataType::kInt8, .overflow = Overflow::kError};
  const Product products[] = {{.weight = "n2", .output = spec}, {.weight = "n11", .output = spec}};
  Client large({.server = server_.address()});
  Client small({.server = server_.address(), .message_bytes_max = 4000});
  const Status whole = large.MatMul(products, a).status();
  const Status joined = small.MatMul(products, a).status();
  ASSERT_EQ(whole.reason, "OVERFLOW");
  EXPECT_GE(std::stoi(whole.metadata.at("row")), 70);
  EXPECT_EQ(joined.code, whole.code);
  EXPECT_EQ(joined.message, whole.message);
  EXPECT_EQ(joined.metadata, whole.metadata);
  EXPECT_GT(joined.attempts, 4);
}

TEST_F(Split, AnErrorEndsTheOtherParts) {
  server_.on_matmul = [](const v1::MatMulRequest& request, v1::MatMulResponse*) {
    return ErrorOf(grpc::StatusCode::INVALID_ARGUMENT, "ACTIVATION_RANGE",
                   "activation [2, 7] = nan");
  };
  const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}}};
  Client small({.server = server_.address(), .connections = 2, .message_bytes_max = 2000});
  const Status status = small.MatMul(products, inputs_.a).status();
  EXPECT_EQ(status.reason, "ACTIVATION_RANGE");
  EXPECT_NE(status.message.find("in the part of rows "), std::string::npos) << status.message;
  EXPECT_LE(server_.requests().size(), 3u) << "no part is sent after it";
}

TEST_F(Split, AWeightThatMovesBetweenThePartsIsNoticed) {
  std::atomic<int> calls = 0;
  server_.on_matmul = [&](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    const grpc::Status status = FakeProduct(request, response);
    if (++calls > 2) response->mutable_outputs(0)->mutable_execution()->set_digest("other");
    return status;
  };
  const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}}};
  Client small({.server = server_.address(), .message_bytes_max = 4000});
  const Status status = small.MatMul(products, inputs_.a).status();
  EXPECT_EQ(status.code, Code::kAborted);
  EXPECT_EQ(status.reason, "WEIGHT_REPLACED");
}

TEST_F(Split, ARefusedPartIsTriedAgain) {
  std::atomic<int> calls = 0;
  server_.on_matmul = [&](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    if (++calls % 4 == 2)
      return ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "full", {}, 1);
    return FakeProduct(request, response);
  };
  const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}}};
  Client large({.server = server_.address(), .retries = {.backoff = 1ms}});
  const auto whole = large.MatMul(products, inputs_.a);
  Client small(
      {.server = server_.address(), .message_bytes_max = 6000, .retries = {.backoff = 1ms}});
  const auto joined = small.MatMul(products, inputs_.a);
  ASSERT_TRUE(whole.ok() && joined.ok()) << joined.status().ToString();
  ExpectSame(*whole, *joined);
  EXPECT_EQ(joined->front().attempts,
            static_cast<int>(server_.requests().size()) - whole->front().attempts);
}

TEST_F(Split, OneRowThatDoesNotFitIsRefusedWithTheSizes) {
  Client small({.server = server_.address(), .message_bytes_max = 600});
  const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}}};
  const Status status = small.MatMul(products, inputs_.a).status();
  EXPECT_EQ(status.code, Code::kResourceExhausted);
  EXPECT_EQ(status.reason, "ROW_TOO_LARGE");
  EXPECT_EQ(status.metadata.at("limit"), "600");
  EXPECT_EQ(status.attempts, 0);
  EXPECT_TRUE(server_.requests().empty());
}

TEST_F(Split, OneRowOfTheReplyThatDoesNotFitIsRefusedWithTheSizes) {
  Client small({.server = server_.address(), .message_bytes_max = 2000});
  for (const int64_t rows : {int64_t{1}, int64_t{2}}) {
    Activations a = {.dtype = DataType::kInt8, .rows = rows, .k = kK};
    a.data = std::as_bytes(std::span(inputs_.data).first(static_cast<size_t>(rows * kK)));
    const Status status = small.MatMul("n500", a, {.dtype = DataType::kInt32}).status();
    EXPECT_EQ(status.code, Code::kResourceExhausted) << rows;
    EXPECT_EQ(status.reason, "ROW_TOO_LARGE") << status.ToString();
    EXPECT_EQ(status.metadata.at("reply_bytes"), std::to_string(500 * 4 + 4 + 1024));
    EXPECT_EQ(status.metadata.at("limit"), "2000");
  }
}

// What must be cut must agree in size; in one piece the server is asked.
TEST_F(Split, SizesThatDoNotAgreeAreNotCut) {
  Client small({.server = server_.address(), .message_bytes_max = 6000});
  const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}}};
  Activations a = inputs_.a;
  a.scales = Scales(std::span(inputs_.scales).first(7));
  EXPECT_EQ(small.MatMul(products, a).status().reason, "SCALE_COUNT");
  a = inputs_.a;
  a.zero_points = std::span(inputs_.zero_points).first(7);
  EXPECT_EQ(small.MatMul(products, a).status().reason, "ZERO_POINT_COUNT");
  a = inputs_.a;
  a.data = a.data.first(a.data.size() - 1);
  EXPECT_EQ(small.MatMul(products, a).status().reason, "BYTES_MISMATCH");
  std::vector<std::byte> buffer(kRows * 20 + 1);
  const Product into[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}, .into = buffer}};
  EXPECT_EQ(small.MatMul(into, inputs_.a).status().reason, "BUFFER_SIZE");
  EXPECT_TRUE(server_.requests().empty());
}

TEST_F(Split, PlansAreInOrderWithoutGapsAndNearlyEqual) {
  const MatMulOptions options;
  for (const int64_t limit : {900, 1500, 3000, 7000, 20'000, 30'000}) {
    const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}}};
    const Question question{products, &inputs_.a, &options};
    const int64_t columns[] = {5};
    const auto plan = PlanRows(question, columns, limit);
    ASSERT_EQ(plan.ok(), limit > 1000) << limit;
    if (!plan.ok()) continue;
    int64_t next = 0;
    for (const RowRange& part : *plan) {
      EXPECT_EQ(part.begin, next);
      EXPECT_NEAR(static_cast<double>(part.rows()),
                  static_cast<double>(kRows) / static_cast<double>(plan->size()), 1);
      next = part.end;
    }
    EXPECT_EQ(next, kRows);
    EXPECT_EQ(plan->size() == 1, limit == 30'000) << limit;
  }
}

// An owner's payload of 64 KiB or more goes out as it lies, and is let go.
TEST_F(Split, OwnedPayloadsArriveAndAreReleased) {
  auto data = std::make_shared<std::vector<int8_t>>(400 * 500);
  std::iota(data->begin(), data->end(), int8_t{0});
  const std::weak_ptr<std::vector<int8_t>> alive = data;
  for (const int64_t limit : {int64_t{64} << 20, int64_t{150'000}}) {
    Activations a = {.dtype = DataType::kInt8, .rows = 400, .k = 500};
    a.data = std::as_bytes(std::span(*data));
    a.owner = data;
    Client client({.server = server_.address(), .message_bytes_max = limit});
    const auto y = client.MatMul("n1", a, {.dtype = DataType::kInt32});
    ASSERT_TRUE(y.ok()) << y.status().ToString();
  }
  std::string sent = server_.requests()[0].activations().data();
  EXPECT_EQ(std::memcmp(sent.data(), data->data(), data->size()), 0);
  std::multiset<std::string> expected, parts;
  for (size_t i = 1; i < server_.requests().size(); ++i)
    parts.insert(server_.requests()[i].activations().data());
  EXPECT_EQ(parts.size(), 2u);
  for (size_t i = 0; i < 2; ++i) expected.insert(sent.substr(i * 100'000, 100'000));
  EXPECT_EQ(parts, expected);
  data.reset();
  EXPECT_TRUE(alive.expired()) << "the clients are gone, and so is every reference";
}

TEST_F(Split, OverAUnixSocket) {
  const std::string path = ::testing::TempDir() + "/qmatmul-sdk-" + std::to_string(getpid());
  FakeServer server({.unix_socket = path});
  server.on_matmul = server_.on_matmul;
  Client client({.server = "unix:" + path, .message_bytes_max = 6000});
  const auto y = client.MatMul("n5", inputs_.a, {.dtype = DataType::kInt32});
  ASSERT_TRUE(y.ok()) << y.status().ToString();
  for (const std::string& peer : server.peers()) EXPECT_TRUE(peer.starts_with("unix:")) << peer;
}

class Async : public Split {};

TEST_F(Async, ManyAtOnceWithoutAThreadEach) {
  Client client({.server = server_.address()});
  const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}}};
  const auto expected = client.MatMul(products, inputs_.a);
  ASSERT_TRUE(expected.ok());
  std::vector<std::promise<Result<std::vector<Output>>>> answers(50);
  for (auto& answer : answers)
    client.MatMulAsync(products, inputs_.a, {}, [&answer](Result<std::vector<Output>> outputs) {
      answer.set_value(std::move(outputs));
    });
  for (auto& answer : answers) {
    const auto outputs = answer.get_future().get();
    ASSERT_TRUE(outputs.ok()) << outputs.status().ToString();
    ExpectSame(*expected, *outputs);
  }
}

TEST_F(Async, SplitsLearnsAndRetriesAsTheBlockingCallDoes) {
  std::atomic<int> calls = 0;
  server_.on_matmul = [&](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    if (++calls == 3) return ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "full", {}, 1);
    return FakeProduct(request, response);
  };
  Client large({.server = server_.address()});
  Client small({.server = server_.address(), .message_bytes_max = 40'000});
  const ChainStep then[] = {{.weight = "n500", .output = {.dtype = DataType::kInt32}}};
  std::promise<Result<std::vector<Output>>> answer;
  {
    // The callback's arguments may be gone before it runs.
    const std::vector<Product> products = {{.weight = "n5", .output = {.dtype = DataType::kF32}}};
    const std::vector<ChainStep> steps(std::begin(then), std::end(then));
    small.MatMulAsync(
        products, inputs_.a, {.then = steps},
        [&](Result<std::vector<Output>> outputs) { answer.set_value(std::move(outputs)); });
  }
  const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kF32}}};
  const auto outputs = answer.get_future().get();
  const auto expected = large.MatMul(products, inputs_.a, {.then = then});
  ASSERT_TRUE(outputs.ok() && expected.ok()) << outputs.status().ToString();
  ExpectSame(*expected, *outputs);
}

TEST_F(Async, ErrorsReachTheCallback) {
  Client client({.server = server_.address()});
  std::promise<Status> answer;
  const Product bad[] = {{.weight = "a\nb"}};
  client.MatMulAsync(bad, inputs_.a, {}, [&](Result<std::vector<Output>> outputs) {
    answer.set_value(outputs.status());
  });
  EXPECT_EQ(answer.get_future().get().reason, "WEIGHT_ID");
  Client nobody({.server = "127.0.0.1:1", .retries = {.attempts_max = 2, .backoff = 1ms}});
  const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}}};
  std::promise<Status> lost;
  nobody.MatMulAsync(products, inputs_.a, {}, [&](Result<std::vector<Output>> outputs) {
    lost.set_value(outputs.status());
  });
  const Status status = lost.get_future().get();
  EXPECT_EQ(status.code, Code::kUnavailable);
  EXPECT_EQ(status.attempts, 2);
}

TEST_F(Async, TheClientWaitsForItsCallbacks) {
  std::atomic<int> answered = 0;
  {
    Client client({.server = server_.address()});
    const Product products[] = {{.weight = "n5", .output = {.dtype = DataType::kInt32}}};
    for (int i = 0; i < 20; ++i)
      client.MatMulAsync(products, inputs_.a, {},
                         [&](Result<std::vector<Output>> outputs) { answered += outputs.ok(); });
  }
  EXPECT_EQ(answered, 20);
}

}  // namespace
}  // namespace qmatmul::client
