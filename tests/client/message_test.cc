// The SDK's own writing of requests and reading of replies against the generated messages.
#include "client/message.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "qmatmul/v1/qmatmul.pb.h"

namespace qmatmul::client {
namespace {

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices)
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

// Cut into slices of 1 to `longest` bytes, as a transport may.
grpc::ByteBuffer Pieces(const std::string& bytes, size_t longest, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size();) {
    const size_t size = std::min<size_t>(bytes.size() - begin, 1 + random() % longest);
    slices.emplace_back(bytes.data() + begin, size);
    begin += size;
  }
  return {slices.data(), slices.size()};
}

struct Call {
  explicit Call(int64_t rows, int64_t k) : data(static_cast<size_t>(rows * k)), products(2) {
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<int8_t>(i * 31);
    a = {.dtype = DataType::kInt8, .rows = rows, .k = k, .data = std::as_bytes(std::span(data))};
    products[0] = {.weight = "q", .output = {.dtype = DataType::kInt32}};
    products[1] = {.weight = "k", .output = {.dtype = DataType::kF32, .top_k = 3}};
  }
  Question question() const { return {products, &a, &options}; }

  std::vector<int8_t> data;
  std::vector<Product> products;
  Activations a;
  MatMulOptions options;
};

TEST(Message, RequestsAreReadByTheGeneratedParser) {
  for (const int64_t k : {1, 100, 70'000}) {
    for (const bool owned : {false, true}) {
      Call call(2, k);
      if (owned) call.a.owner = std::shared_ptr<const void>(&call, [](const void*) {});
      const std::vector<int32_t> zero_points = {-7, 100};
      call.a.zero_points = zero_points;
      const ChainStep then[] = {{.weight = "down", .arithmetic = Arithmetic::kW8A8}};
      call.options.then = then;
      v1::MatMulRequest request;
      ASSERT_TRUE(request.ParseFromString(BytesOf(RequestOf(call.question(), {0, 2}))));
      EXPECT_EQ(request.activations().data().size(), call.data.size());
      EXPECT_EQ(
          std::memcmp(request.activations().data().data(), call.data.data(), call.data.size()), 0);
      EXPECT_EQ(request.activations().zero_points(0), -7);
      EXPECT_EQ(request.activations().zero_points(1), 100);
      EXPECT_EQ(request.activations().shape(1), k);
      EXPECT_EQ(request.then(0).weight(), "weights/down");
      EXPECT_EQ(request.then(0).arithmetic(), v1::ARITHMETIC_W8A8);
      EXPECT_EQ(request.outputs(1).top_k(), 3);

      v1::StreamMatMulRequest stream;
      const uint64_t id = owned ? UINT64_MAX : 5;
      ASSERT_TRUE(stream.ParseFromString(BytesOf(StreamRequestOf(id, call.question()))));
      EXPECT_EQ(stream.request_id(), id);
      EXPECT_EQ(stream.request().SerializeAsString(), request.SerializeAsString());

      ASSERT_TRUE(request.ParseFromString(BytesOf(RequestOf(call.question(), {1, 2}))));
      EXPECT_EQ(request.activations().data().size(), static_cast<size_t>(k)) << "the second row";
      EXPECT_EQ(static_cast<int8_t>(request.activations().data()[0]),
                call.data[static_cast<size_t>(k)]);
      ASSERT_EQ(request.activations().zero_points_size(), 1);
      EXPECT_EQ(request.activations().zero_points(0), 100);
    }
  }
}

TEST(Message, NoRowsHaveNoData) {
  Call call(0, 7);
  v1::MatMulRequest request;
  ASSERT_TRUE(request.ParseFromString(BytesOf(RequestOf(call.question(), {0, 0}))));
  EXPECT_EQ(request.activations().shape(0), 0);
  EXPECT_EQ(request.activations().shape(1), 7);
}

v1::MatMulResponse Reply() {
  v1::MatMulResponse reply;
  for (int i = 0; i < 2; ++i) {
    auto* output = reply.add_outputs();
    output->set_dtype(i == 0 ? v1::DATA_TYPE_INT32 : v1::DATA_TYPE_F32);
    output->add_shape(2);
    output->add_shape(500);
    for (int e = 0; e < 4000; ++e) output->mutable_data()->push_back(static_cast<char>(e * 7 + i));
    output->mutable_execution()->set_weight(i == 0 ? "weights/q" : "weights/k");
    output->mutable_execution()->set_kernel("kernel");
  }
  reply.mutable_outputs(1)->set_indices(std::string(24, '\1'));
  return reply;
}

TEST(Message, RepliesInPiecesOfAnySize) {
  const v1::MatMulResponse reply = Reply();
  for (unsigned seed = 0; seed < 200; ++seed) {
    Call call(2, 3);
    std::string buffer(4000, 'x');
    if (seed % 2 == 1) call.products[0].into = std::as_writable_bytes(std::span(buffer));
    grpc::ByteBuffer pieces = Pieces(reply.SerializeAsString(), 1 + seed * 13, seed);
    const auto outputs = OutputsOf(&pieces, call.question(), {0, 2});
    ASSERT_TRUE(outputs.ok()) << outputs.status().ToString();
    EXPECT_TRUE((seed % 2 == 1 ? buffer : outputs->at(0).bytes) == reply.outputs(0).data()) << seed;
    EXPECT_TRUE(outputs->at(1).bytes == reply.outputs(1).data()) << seed;
    EXPECT_EQ(outputs->at(1).indices, std::vector<int32_t>(6, 0x01010101));
    EXPECT_EQ(outputs->at(1).execution.weight, "k");
    EXPECT_EQ(outputs->at(0).shape, (std::vector<int64_t>{2, 500}));
  }
}

TEST(Message, AStreamsReplyInAnyOrderOfItsFields) {
  v1::StreamMatMulResponse id_part, rest;
  id_part.set_request_id(77);
  *rest.mutable_response() = Reply();
  const std::string orders[] = {
      id_part.SerializeAsString() + rest.SerializeAsString(),
      rest.SerializeAsString() + id_part.SerializeAsString(),
      // an unknown field, number 15, in front
      std::string("\x7a\x02zz") + id_part.SerializeAsString() + rest.SerializeAsString()};
  for (const std::string& bytes : orders) {
    Call call(2, 3);
    grpc::ByteBuffer pieces = Pieces(bytes, 1000, 1);
    EXPECT_EQ(StreamIdOf(&pieces), 77u);
    const auto outputs = StreamOutputsOf(&pieces, call.question());
    ASSERT_TRUE(outputs.ok()) << outputs.status().ToString();
    EXPECT_TRUE(outputs->at(1).bytes == Reply().outputs(1).data());
  }
  grpc::ByteBuffer none = Pieces("\x7a\x02zz", 9, 1);
  EXPECT_EQ(StreamIdOf(&none), 0u);
}

// Every prefix and thousands of damaged replies: an error or an answer, never a crash. What the
// generated parser refuses is refused here.
TEST(Message, DamagedRepliesAreRefused) {
  const std::string whole = Reply().SerializeAsString();
  std::mt19937 random(11);
  int refused = 0;
  for (int i = 0; i < 6000; ++i) {
    std::string bytes = whole;
    if (i % 2 == 0) bytes.resize(random() % whole.size());
    else
      for (unsigned n = 0; n <= random() % 4; ++n)
        bytes[random() % 20 * (random() % 2 == 0 ? 1 : 200)] = static_cast<char>(random());
    Call call(2, 3);
    grpc::ByteBuffer pieces = Pieces(bytes, 3000, static_cast<unsigned>(i));
    const auto outputs = OutputsOf(&pieces, call.question(), {0, 2});
    refused += !outputs.ok();
    v1::MatMulResponse parsed;
    const bool parses = parsed.ParseFromString(bytes);
    EXPECT_EQ(outputs.ok(), parses && parsed.outputs_size() == 2) << i;
  }
  EXPECT_GT(refused, 2000);
}

TEST(Message, ABufferOfAnotherSizeIsNotWrittenTo) {
  Call call(2, 3);
  for (const size_t size : {1u, 3999u, 4001u}) {
    std::string buffer(size, 'x');
    call.products[0].into = std::as_writable_bytes(std::span(buffer));
    grpc::ByteBuffer pieces = Pieces(Reply().SerializeAsString(), 700, 1);
    const auto outputs = OutputsOf(&pieces, call.question(), {0, 2});
    ASSERT_FALSE(outputs.ok());
    EXPECT_EQ(outputs.status().reason, "BUFFER_SIZE");
    EXPECT_NE(outputs.status().message.find("'q' has " + std::to_string(size) +
                                            " bytes but the result has 4000"),
              std::string::npos)
        << outputs.status().message;
    EXPECT_EQ(buffer, std::string(size, 'x'));
  }
  // No data at all is no result either.
  v1::MatMulResponse empty = Reply();
  empty.mutable_outputs(0)->clear_data();
  grpc::ByteBuffer pieces = Pieces(empty.SerializeAsString(), 700, 1);
  EXPECT_EQ(OutputsOf(&pieces, call.question(), {0, 2}).status().reason, "BUFFER_SIZE");
}

}  // namespace
}  // namespace qmatmul::client
