// The SDK, the `qmatmul` program and the README's example against the real server: every number is
// compared with a product computed here.
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/util/delimited_message_util.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <sstream>

#include "client/cli/npy.h"
#include "client/client.h"
#include "client/pack.h"
#include "qmatmul/v1/qmatmul.pb.h"
#include "tests/client/program.h"

namespace qmatmul::client {
namespace {

using nlohmann::json;
using ::qmatmul::testing::ProgramResult;
using ::qmatmul::testing::RunProgram;
using ::qmatmul::testing::ServerProcess;

constexpr int64_t kK = 70, kN = 45;

std::vector<int8_t> Random(int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<int8_t> values(static_cast<size_t>(count));
  for (int8_t& value : values) value = static_cast<int8_t>(generator());
  return values;
}

// x [rows, kK] times w [kK, kN].
std::vector<int32_t> Product32(const std::vector<int8_t>& x, const std::vector<int8_t>& w) {
  std::vector<int32_t> y;
  for (size_t m = 0; m < x.size() / kK; ++m) {
    for (size_t n = 0; n < kN; ++n) {
      int32_t sum = 0;
      for (size_t k = 0; k < kK; ++k) sum += x[m * kK + k] * w[k * kN + n];
      y.push_back(sum);
    }
  }
  return y;
}

template <class T>
std::vector<T> VectorOf(std::span<const T> values) {
  return {values.begin(), values.end()};
}

class Live : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = new ServerProcess(QMATMUL_SERVER_PROGRAM); }
  static void TearDownTestSuite() {
    EXPECT_EQ(server_->Stop(), 0) << "SIGTERM drains and exits 0";
    delete server_;
  }
  void SetUp() override { ASSERT_FALSE(server_->address().empty()) << "the server did not start"; }

  Client client_{{.server = server_->address()}};

  Result<Registration> Register(const std::string& id, const std::vector<int8_t>& w,
                                bool replace = false) {
    WeightUpload weight = {.id = id, .dtype = DataType::kInt8, .layout = Layout::kKN};
    weight.k = kK;
    weight.n = kN;
    weight.data = std::as_bytes(std::span(w));
    weight.replace = replace;
    return client_.RegisterWeight(weight);
  }
  static Activations Rows(const std::vector<int8_t>& x) {
    return {.dtype = DataType::kInt8,
            .rows = static_cast<int64_t>(x.size()) / kK,
            .k = kK,
            .data = std::as_bytes(std::span(x))};
  }
  ProgramResult Run(std::vector<std::string> words) {
    words.insert(words.begin(), QMATMUL_PROGRAM);
    return RunProgram(words, {"QMATMUL_SERVER=" + server_->address()});
  }

  static ServerProcess* server_;
};
ServerProcess* Live::server_ = nullptr;

TEST_F(Live, SumsAreExactForOneAndManyRows) {
  const auto w = Random(kK * kN, 1);
  ASSERT_TRUE(Register("sums", w).ok());
  for (const int64_t rows : {0, 1, 2, 7, 64, 85}) {
    const auto x = Random(rows * kK, static_cast<unsigned>(rows) + 2);
    const auto y = client_.MatMul("sums", Rows(x), {.dtype = DataType::kInt32});
    ASSERT_TRUE(y.ok()) << y.status().ToString();
    EXPECT_EQ(y->shape, (std::vector<int64_t>{rows, kN}));
    EXPECT_EQ(VectorOf(y->As<int32_t>()), Product32(x, w)) << rows << " rows";
    EXPECT_EQ(y->execution.weight, "sums");
  }
}

TEST_F(Live, SeveralWeightsShareOneActivationAndCallersBuffers) {
  const auto w1 = Random(kK * kN, 3), w2 = Random(kK * kN, 4), x = Random(3 * kK, 5);
  ASSERT_TRUE(Register("first-of-two", w1).ok());
  ASSERT_TRUE(Register("second-of-two", w2).ok());
  std::vector<int32_t> y2(3 * kN);
  const Product products[] = {{.weight = "first-of-two", .output = {.dtype = DataType::kInt32}},
                              {.weight = "second-of-two",
                               .output = {.dtype = DataType::kInt32},
                               .into = std::as_writable_bytes(std::span(y2))}};
  const auto y = client_.MatMul(products, Rows(x));
  ASSERT_TRUE(y.ok()) << y.status().ToString();
  EXPECT_EQ(VectorOf(y->at(0).As<int32_t>()), Product32(x, w1));
  EXPECT_EQ(y2, Product32(x, w2));
}

TEST_F(Live, InPartsAndWithoutWaitingTheAnswerIsTheSame) {
  const auto w = Random(kK * kN, 30), x = Random(400 * kK, 31);
  ASSERT_TRUE(Register("parts", w).ok());
  Client small({.server = server_->address(), .connections = 3, .message_bytes_max = 9000});
  const auto y = small.MatMul("parts", Rows(x), {.dtype = DataType::kInt32});
  ASSERT_TRUE(y.ok()) << y.status().ToString();
  EXPECT_EQ(y->shape, (std::vector<int64_t>{400, kN}));
  EXPECT_EQ(VectorOf(y->As<int32_t>()), Product32(x, w));
  EXPECT_GT(y->attempts, 8) << "a reply row has 180 bytes";
  EXPECT_EQ(y->execution.weight, "parts");

  std::promise<Result<std::vector<Output>>> answer;
  const Product product = {.weight = "parts", .output = {.dtype = DataType::kInt32}};
  client_.MatMulAsync(std::span(&product, 1), Rows(x), {},
                      [&](auto outputs) { answer.set_value(std::move(outputs)); });
  const auto later = answer.get_future().get();
  ASSERT_TRUE(later.ok()) << later.status().ToString();
  EXPECT_TRUE(later->front().bytes == y->bytes);
}

TEST_F(Live, AnOverflowInPartsIsToldAsInOnePiece) {
  const auto w = Random(kK * kN, 32);
  auto x = Random(300 * kK, 33);
  std::fill(x.begin(), x.begin() + 200 * kK, int8_t{0});
  ASSERT_TRUE(Register("overflows", w).ok());
  const OutputSpec spec = {.dtype = DataType::kInt8, .overflow = Overflow::kError};
  Client small({.server = server_->address(), .message_bytes_max = 9000});
  const Status whole = client_.MatMul("overflows", Rows(x), spec).status();
  const Status parts = small.MatMul("overflows", Rows(x), spec).status();
  ASSERT_EQ(whole.reason, "OVERFLOW");
  EXPECT_EQ(parts.ToString(), whole.ToString());
  EXPECT_EQ(parts.metadata, whole.metadata);
  EXPECT_GT(parts.attempts, 2);
}

TEST_F(Live, Int4AndInt2ArePackedAsTheServerReadsThem) {
  for (const DataType dtype : {DataType::kInt4, DataType::kInt2}) {
    const bool int4 = dtype == DataType::kInt4;
    auto w = Random(kK * kN, 34);
    for (int8_t& value : w)
      value = static_cast<int8_t>(int4 ? (value & 15) - 8 : (value & 255) % 3 - 1);
    const auto packed = PackWeight(dtype, w, kN);
    ASSERT_TRUE(packed.ok());
    const std::vector<float> scales(kN, 0.5f);
    WeightUpload weight = {.id = std::string(NameOf(dtype)), .dtype = dtype, .layout = Layout::kKN};
    weight.k = kK;
    weight.n = kN;
    weight.group_size = int4 ? kK : 0;
    weight.data = *packed;
    weight.scales = Scales(scales);
    const auto r = client_.RegisterWeight(weight);
    ASSERT_TRUE(r.ok()) << r.status().ToString();
    const auto x = Random(9 * kK, 35);
    const auto y = client_.MatMul(weight.id, Rows(x), {.dtype = DataType::kInt32});
    ASSERT_TRUE(y.ok()) << y.status().ToString();
    EXPECT_EQ(VectorOf(y->As<int32_t>()), Product32(x, w)) << NameOf(dtype);
  }
}

TEST_F(Live, AStreamAnswersAsCallsDo) {
  const auto w = Random(kK * kN, 36), x = Random(50 * kK, 37);
  ASSERT_TRUE(Register("streamed", w).ok());
  const auto expected = Product32(x, w);
  std::vector<int32_t> y(expected.size());
  std::vector<Status> ends(50);
  auto stream = client_.OpenStream({.window = 8});
  for (size_t i = 0; i < 50; ++i) {
    const Product product = {.weight = "streamed",
                             .output = {.dtype = DataType::kInt32},
                             .into = std::as_writable_bytes(std::span(y).subspan(i * kN, kN))};
    const std::vector<int8_t> row(x.begin() + static_cast<int64_t>(i) * kK,
                                  x.begin() + static_cast<int64_t>(i + 1) * kK);
    const auto id = stream->Submit(std::span(&product, 1), Rows(row), {},
                                   [&ends, i](auto outputs) { ends[i] = outputs.status(); });
    if (!id.ok()) break;
  }
  const Status closed = stream->Close();
  ASSERT_TRUE(closed.ok()) << closed.ToString();
  for (const Status& end : ends) EXPECT_TRUE(end.ok()) << end.ToString();
  EXPECT_EQ(y, expected);
}

TEST_F(Live, AChainAndItsTopKAreTwoCallsAndASort) {
  const auto up = Random(kK * kN, 38), down = Random(kN * kN, 39), x = Random(20 * kK, 40);
  const std::vector<float> scales(kN, 0.01f);
  for (const bool first : {true, false}) {
    WeightUpload weight = {.dtype = DataType::kInt8, .layout = Layout::kKN};
    weight.id = first ? "up" : "down";
    weight.k = first ? kK : kN;
    weight.n = kN;
    weight.data = std::as_bytes(std::span(first ? up : down));
    weight.scales = Scales(scales);
    ASSERT_TRUE(client_.RegisterWeight(weight).ok());
  }
  const OutputSpec relu = {.dtype = DataType::kF32, .activation = Activation::kRelu};
  const auto between = client_.MatMul("up", Rows(x), relu);
  ASSERT_TRUE(between.ok()) << between.status().ToString();
  Activations y = {.dtype = DataType::kF32, .rows = 20, .k = kN, .dynamic = true};
  y.data = std::as_bytes(between->As<float>());
  const auto whole =
      client_.MatMul("down", y, {.dtype = DataType::kF32}, {.arithmetic = Arithmetic::kW8A8});
  ASSERT_TRUE(whole.ok()) << whole.status().ToString();
  ChainStep step = {
      .weight = "down", .arithmetic = Arithmetic::kW8A8, .output = {.dtype = DataType::kF32}};
  Client small({.server = server_->address(), .message_bytes_max = 2500});
  for (Client* client : {&client_, &small}) {
    const auto chained = client->MatMul("up", Rows(x), relu, {.then = std::span(&step, 1)});
    ASSERT_TRUE(chained.ok()) << chained.status().ToString();
    EXPECT_TRUE(chained->bytes == whole->bytes);
  }
  step.output.top_k = 4;
  const auto top = client_.MatMul("up", Rows(x), relu, {.then = std::span(&step, 1)});
  ASSERT_TRUE(top.ok()) << top.status().ToString();
  EXPECT_EQ(top->shape, (std::vector<int64_t>{20, 4}));
  ASSERT_EQ(top->indices.size(), 80u);
  for (size_t row = 0; row < 20; ++row) {
    const auto values = whole->As<float>().subspan(row * kN, kN);
    std::vector<int32_t> order(kN);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
    });
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(top->indices[row * 4 + i], order[i]) << row;
      EXPECT_EQ(top->As<float>()[row * 4 + i], values[static_cast<size_t>(order[i])]);
    }
  }
}

TEST_F(Live, AKnownWeightIsNotUploadedAgainAndANameMovesOnlyWhenTold) {
  const auto w1 = Random(kK * kN, 6), w2 = Random(kK * kN, 7);
  const auto first = Register("moves", w1);
  ASSERT_TRUE(first.ok()) << first.status().ToString();
  EXPECT_EQ(first->uploaded_bytes, kK * kN);
  WeightUpload same = {.dtype = DataType::kInt8, .layout = Layout::kKN, .k = kK, .n = kN};
  same.data = std::as_bytes(std::span(w1));
  EXPECT_EQ(first->weight.digest, DigestOf(same)) << "both sides hash alike";

  const auto again = Register("moves", w1);
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(again->already_registered);
  EXPECT_EQ(again->uploaded_bytes, 0);

  const auto refused = Register("moves", w2);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code, Code::kAlreadyExists);
  EXPECT_EQ(refused.status().metadata.at("current_digest"), first->weight.digest);
  ASSERT_TRUE(Register("moves", w2, /*replace=*/true).ok());
  const auto x = Random(kK, 8);
  EXPECT_EQ(VectorOf(client_.MatMul("moves", Rows(x), {.dtype = DataType::kInt32})->As<int32_t>()),
            Product32(x, w2));
  const auto freed = client_.DeleteWeight("moves");
  ASSERT_TRUE(freed.ok());
  EXPECT_GE(*freed, kK * kN);
  EXPECT_EQ(client_.GetWeight("moves").status().reason, "WEIGHT_UNKNOWN");
}

TEST_F(Live, RefusalsArriveWithReasonAndField) {
  const auto w = Random(kK * kN, 9), x = Random(kK, 10);
  ASSERT_TRUE(Register("refuses", w).ok());
  Activations wrong = Rows(x);
  wrong.rows = 2;
  auto y = client_.MatMul("refuses", wrong, {.dtype = DataType::kInt32});
  EXPECT_EQ(y.status().code, Code::kInvalidArgument);
  EXPECT_EQ(y.status().reason, "BYTES_MISMATCH");
  EXPECT_FALSE(y.status().fields.empty());
  y = client_.MatMul("refuses", Rows(x), {});
  EXPECT_EQ(y.status().reason, "DTYPE_MISSING");
  y = client_.MatMul("nobody", Rows(x), {.dtype = DataType::kInt32});
  EXPECT_EQ(y.status().code, Code::kNotFound);
  EXPECT_TRUE(client_.MatMul("refuses", Rows(x), {.dtype = DataType::kInt32}).ok());
}

TEST_F(Live, TheServerSaysWhatItIs) {
  const auto devices = client_.ListDevices();
  ASSERT_TRUE(devices.ok());
  EXPECT_EQ(devices->front().id, "cpu");
  const auto kernels = client_.ListKernels();
  ASSERT_TRUE(kernels.ok());
  EXPECT_TRUE(std::any_of(kernels->begin(), kernels->end(),
                          [](const KernelInfo& k) { return k.supported; }));
  EXPECT_EQ(client_.GetStatistics()->version, Version());
  EXPECT_EQ(*client_.CheckHealth(), Health::kServing);
  EXPECT_EQ(*client_.CheckHealth("no.such.Service"), Health::kServiceUnknown);
}

TEST_F(Live, TheProgramFromFileToFile) {
  const auto folder = std::filesystem::path(::testing::TempDir()) /
                      ("qmatmul-live-test-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  const auto path = [&folder](const char* name) { return (folder / name).string(); };
  const auto w = Random(kK * kN, 11), x = Random(5 * kK, 12);
  cli::WriteNpy(path("w.npy"), cli::NpyType::kInt8, std::vector<int64_t>{kK, kN},
                std::as_bytes(std::span(w)));
  cli::WriteNpy(path("x.npy"), cli::NpyType::kInt8, std::vector<int64_t>{5, kK},
                std::as_bytes(std::span(x)));
  ProgramResult r = Run({"register", "file", path("w.npy"), "--layout", "KN"});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  r = Run({"matmul", "file", path("x.npy"), "--out", "INT32", "-o", path("y.npy"), "--json"});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  const cli::NpyArray y = cli::ReadNpy(path("y.npy"));
  const auto expected = Product32(x, w);
  ASSERT_EQ(y.data.size(), expected.size() * 4);
  EXPECT_EQ(std::memcmp(y.data.data(), expected.data(), y.data.size()), 0);
  EXPECT_EQ(y.shape, (std::vector<int64_t>{5, kN}));
  const json output = json::parse(r.out).at("outputs").at(0);
  EXPECT_EQ(output.at("execution").at("overflow"), "SATURATE");

  EXPECT_EQ(json::parse(Run({"show", "file", "--json"}).out).at("k"), kK);
  r = Run({"explain", "file", "--rows", "64", "--json"});
  EXPECT_EQ(json::parse(r.out).at("candidates").at(0).at("chosen"), true) << r.err;
  EXPECT_EQ(Run({"delete", "file"}).exit_code, 0);
  EXPECT_EQ(Run({"show", "file"}).exit_code, 6);
  std::filesystem::remove_all(folder);
}

TEST_F(Live, DoctorFindsNothingAndLeavesNothing) {
  const auto before = client_.ListWeights()->size();
  const ProgramResult r = Run({"doctor", "--json"});
  EXPECT_EQ(r.exit_code, 0) << r.out;
  const json report = json::parse(r.out);
  EXPECT_EQ(report.at("failed"), 0) << r.out;
  int products = 0;
  for (const json& finding : report.at("findings"))
    products += finding.at("check").get<std::string>().rfind("product", 0) == 0;
  EXPECT_GE(products, 4) << "the routed product and scalar's, each for two M\n" << r.out;
  EXPECT_EQ(client_.ListWeights()->size(), before);
}

TEST_F(Live, RearmingWhatIsNotPutAsideSaysSo) {
  const ProgramResult r = Run({"admin", "rearm", "cpu.avx2.s8s8s32.6x16x4/m1"});
  EXPECT_EQ(r.exit_code, 6) << r.err;
  EXPECT_NE(r.err.find("cpu.avx2.s8s8s32.6x16x4/m1"), std::string::npos) << r.err;
  EXPECT_EQ(Run({"admin", "disarm", "x"}).exit_code, 2);
}

std::vector<json> LinesOf(const ProgramResult& result) {
  std::vector<json> lines;
  std::istringstream text(result.out);
  for (std::string line; std::getline(text, line);) lines.push_back(json::parse(line));
  return lines;
}

TEST_F(Live, BenchLoadsTheServerVerifiesAndLeavesNothing) {
  const auto before = client_.ListWeights()->size();
  ProgramResult r = Run({"bench", "--k", "64", "--n", "45", "--rows", "1,8", "--concurrency", "1,4",
                         "--requests", "50", "--verify", "1", "--json"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  std::vector<json> lines = LinesOf(r);
  ASSERT_EQ(lines.size(), 4u) << "two row counts by two levels";
  for (const json& line : lines) {
    EXPECT_EQ(line.at("ok"), 50) << line;
    EXPECT_EQ(line.at("verified"), 50) << line;
    EXPECT_EQ(line.at("wrong"), 0) << line;
    EXPECT_GT(line.at("qps").get<double>(), 0) << line;
    EXPECT_GT(line.at("server_us").at("compute_mean").get<double>(), 0) << line;
    EXPECT_GE(line.at("batch_rows_mean").get<double>(),
              std::stod(line.at("rows").get<std::string>()));
  }
  r = Run({"bench", "--shape", "64x64", "--shape", "64x32", "--mix", "1:0.75,8:0.25", "--rate",
           "400", "--seconds", "0.5", "--verify", "1", "--latency-limit-ms", "1000", "--json"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  lines = LinesOf(r);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].at("arrivals"), "poisson");
  EXPECT_EQ(lines[0].at("by_rows").size(), 2u);
  EXPECT_EQ(lines[0].at("wrong"), 0);
  EXPECT_GT(lines[0].at("goodput_qps").get<double>(), 0);
  EXPECT_EQ(lines[0].at("sent"), lines[0].at("ok"));
  r = Run({"bench", "--shape", "64x64", "--shape", "64x32", "--together", "--rows", "3",
           "--requests", "20", "--verify", "1", "--json"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_EQ(LinesOf(r).at(0).at("verified"), 20) << "both outputs of each call";
  r = Run({"bench", "--k", "64", "--n", "64", "--rows", "8", "--seconds", "0.02", "--json", "--ab",
           "scalar,scalar"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_GT(json::parse(r.out).at("ab").at(0).at("ratio").get<double>(), 0);
  EXPECT_EQ(client_.ListWeights()->size(), before);
}

TEST_F(Live, BenchTellsTheSameAsTableAndCsv) {
  const ProgramResult csv =
      Run({"bench", "--k", "64", "--n", "64", "--rows", "1,2", "--requests", "20", "--csv"});
  ASSERT_EQ(csv.exit_code, 0) << csv.err;
  std::istringstream text(csv.out);
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 3u) << csv.out;
  EXPECT_NE(lines[0].find(",qps,"), std::string::npos) << lines[0];
  EXPECT_NE(lines[0].find("latency_us_p99_9"), std::string::npos) << lines[0];
  const ProgramResult table =
      Run({"bench", "--k", "64", "--n", "64", "--rows", "1", "--requests", "20", "--verify", "1"});
  EXPECT_NE(table.out.find("GOPS"), std::string::npos) << table.out;
  EXPECT_NE(table.out.find("0 of 20 replies"), std::string::npos) << table.out;
}

TEST_F(Live, BenchRefusesWhatDoesNotFit) {
  const std::vector<std::vector<std::string>> wrong = {
      {"--mix", "1"},           {"--mix", "1:0.5,0:0.5"}, {"--mix", "1:1", "--rows", "1"},
      {"--shape", "64"},        {"--shape", "64x0"},      {"--rate", "10", "--concurrency", "1"},
      {"--arrivals", "bursty"}, {"--threads", "1"},       {"--in-process", "--rate", "5"},
      {"--verify", "2"}};
  for (std::vector<std::string> words : wrong) {
    words.insert(words.begin(), "bench");
    const ProgramResult r = Run(words);
    EXPECT_EQ(r.exit_code, 2) << words[1] << ": " << r.err;
    EXPECT_NE(r.err.find("--"), std::string::npos) << r.err;
  }
  const auto w = Random(kK * kN, 1);
  ASSERT_TRUE(Register("bench-named", w).ok());
  EXPECT_EQ(Run({"bench", "--weight", "bench-named", "--verify", "1"}).exit_code, 2);
  EXPECT_EQ(Run({"bench", "--weight", "bench-named", "--rows", "1", "--requests", "5"}).exit_code,
            0);
  EXPECT_EQ(Run({"bench", "--weight", "nobody", "--requests", "5"}).exit_code, 6);
}

// The file is what the SDK would send: each message parses, and the server answers it.
TEST_F(Live, GenLoadWritesMessagesWithTheirLengths) {
  const auto w = Random(kK * kN, 13);
  ASSERT_TRUE(Register("gen", w).ok());
  const auto folder = std::filesystem::path(::testing::TempDir());
  const std::string path = (folder / ("qmatmul-gen-" + std::to_string(getpid()))).string();
  const ProgramResult r = Run({"gen-load", path, "--weight", "gen", "--mix", "1:0.75,5:0.25",
                               "--count", "40", "--seed", "3", "--json"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  EXPECT_EQ(json::parse(r.out).at("bytes"), bytes.size());
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  std::map<int64_t, int> rows;
  v1::MatMulRequest request;
  bool end = false;
  while (google::protobuf::util::ParseDelimitedFromZeroCopyStream(&request, &stream, &end)) {
    ++rows[request.activations().shape(0)];
    EXPECT_EQ(request.weights(0), "weights/gen");
    EXPECT_EQ(static_cast<int64_t>(request.activations().data().size()),
              request.activations().shape(0) * kK);
    request.Clear();  // parsing adds to what is there
  }
  EXPECT_TRUE(end);
  EXPECT_EQ(rows, (std::map<int64_t, int>{{1, 30}, {5, 10}}));
  EXPECT_EQ(Run({"gen-load", path, "--weight", "nobody"}).exit_code, 6);
  EXPECT_EQ(Run({"gen-load", path}).exit_code, 2);
  std::filesystem::remove(path);
}

// The lines of client/README.md: x = (127, 0, -127) * 0.01; y = 0.01 * 127 * (-4 * 0.5, 4 * 0.25).
TEST_F(Live, TheReadmesExampleRuns) {
  const ProgramResult r = RunProgram({QMATMUL_FIRST_CALL, server_->address()});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_EQ(r.out.rfind("y = -2.54 1.27 by cpu.", 0), 0u) << r.out;
}

}  // namespace
}  // namespace qmatmul::client
