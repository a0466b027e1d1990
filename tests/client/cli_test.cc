// The `qmatmul` program as a user meets it: exit codes, errors with their way out, files in and
// out. The server behind it is the fake one, so that each refusal can be had at will.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "client/cli/failure.h"
#include "client/cli/npy.h"
#include "tests/client/fake_product.h"
#include "tests/client/fake_server.h"
#include "tests/client/program.h"

namespace qmatmul::cli {
namespace {

using nlohmann::json;
using ::qmatmul::testing::ErrorOf;
using ::qmatmul::testing::FakeProduct;
using ::qmatmul::testing::FakeServer;
using ::qmatmul::testing::ProgramResult;
using ::qmatmul::testing::RunProgram;

class Cli : public ::testing::Test {
 protected:
  Cli()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                ("qmatmul-cli-test-" + std::to_string(getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~Cli() override { std::filesystem::remove_all(folder_); }

  ProgramResult Run(std::vector<std::string> words) {
    words.insert(words.begin(), QMATMUL_PROGRAM);
    return RunProgram(words, {"QMATMUL_SERVER=" + server_.address()});
  }
  std::string Path(const std::string& name) const { return folder_ / name; }
  template <class T>
  std::string File(const std::string& name, NpyType type, std::vector<int64_t> shape,
                   const std::vector<T>& values) {
    WriteNpy(Path(name), type, shape, std::as_bytes(std::span(values)));
    return Path(name);
  }
  std::string WeightFile() {
    return File<int8_t>("w.npy", NpyType::kInt8, {3, 2}, {1, -2, 3, -4, 5, -6});
  }

  FakeServer server_;
  std::filesystem::path folder_;
};

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_F(Cli, WrongCommandLinesExitWithTwoAndSayTheWayOut) {
  const std::string w = WeightFile();
  struct Row {
    std::vector<std::string> words;
    const char* says;
  };
  const Row rows[] = {
      {{}, "usage: qmatmul COMMAND"},
      {{"regster"}, "did you mean `qmatmul register`?"},
      {{"xyzzy"}, "the commands are register, list"},
      {{"help", "xyzzy"}, "no command 'xyzzy'"},
      {{"list", "--srever", "x"}, "did you mean --server?"},
      {{"--server", "x", "list"}, "`qmatmul COMMAND --server …`"},
      {{"list", "extra"}, "takes no arguments, not 1"},
      {{"show"}, "takes ID, not 0"},
      {{"register", "w"}, "takes ID WEIGHT.npy, not 1"},
      {{"register", "w", w}, "--layout is required"},
      {{"register", "w", w, "--layout", "nk"}, "--layout nk is not KN or NK"},
      {{"matmul", "w", w}, "--out is required"},
      {{"matmul", "w", w, "--out", "F64"}, "--out F64 is not INT32"},
      {{"matmul", "w", w, "--out", "F32", "--arithmetic", "W4A4"}, "is not W8A8 or W8A32"},
      {{"matmul", "a", "b", w, "--out", "F32", "-o", "y.npy"}, "given 1 times for 2 weights"},
      {{"matmul", "w", w, "--out", "F32", "--indices", "i.npy"}, "--indices is for --top-k"},
      {{"matmul", "w", w, "--out", "F32", "--top-k", "0"}, "--top-k 0 is not a whole number"},
      {{"matmul", "a", "b", w, "--out", "F32", "--then", "c"},
       "the result of one weight, not of 2"},
      {{"matmul", "a:gelu", w, "--out", "F32"}, "'a:gelu' is neither an ID nor ID:relu"},
      {{"matmul", "a", w, "--out", "F32", "--then", "c:"}, "'c:' is neither an ID nor ID:relu"},
      {{"register", "w", w, "--layout", "KN", "--dtype", "INT4"}, "--group-size is required"},
      {{"register", "w", w, "--layout", "KN", "--group-size", "3"}, "is for --dtype INT4"},
      {{"register", "w", w, "--layout", "KN", "--dtype", "F32"}, "is not INT8, INT4 or INT2"},
      {{"list", "--timeout", "0"}, "--timeout 0 is not a number from"},
      {{"bench", "--ab", "avx2"}, "--ab avx2 is not two kernels"},
      {{"bench", "--threads", "2"}, "--threads needs --in-process"},
      {{"bench", "--rows", "1,,2"}, "is not a whole number"},
      {{"bench", "--in-process", "--k", "131072"},
       "--k 131072 is not a whole number from 1 to 131071"},
  };
  for (const Row& row : rows) {
    const ProgramResult r = Run(row.words);
    const std::string name = row.words.empty() ? "(nothing)" : row.words[0];
    EXPECT_EQ(r.exit_code, kExitUsage) << name << ": " << row.says;
    EXPECT_TRUE(Has(r.err, row.says)) << name << " says: " << r.err;
    EXPECT_EQ(r.out, "") << name;
  }
}

TEST_F(Cli, HelpForEveryCommand) {
  const ProgramResult all = Run({"--help"});
  EXPECT_EQ(all.exit_code, kExitOk);
  for (const char* command : {"register", "list", "show", "delete", "matmul", "explain", "bench",
                              "health", "doctor", "admin"}) {
    EXPECT_TRUE(Has(all.out, command)) << command;
    const ProgramResult one = Run({command, "--help"});
    EXPECT_EQ(one.exit_code, kExitOk) << command;
    EXPECT_TRUE(Has(one.out, std::string("usage: qmatmul ") + command)) << one.out;
    EXPECT_TRUE(Has(one.out, "--server HOST:PORT")) << command;
    EXPECT_EQ(Run({"help", command}).out, one.out) << command;
  }
  EXPECT_TRUE(Has(all.out, "Exit codes"));
  EXPECT_TRUE(Has(Run({"--version"}).out, "qmatmul "));
}

TEST_F(Cli, BadFilesExitWithThree) {
  const std::string x = File<int8_t>("x.npy", NpyType::kInt8, {1, 3}, {1, 2, 3});
  const std::string f = File<float>("f.npy", NpyType::kFloat32, {3, 2}, {1, 2, 3, 4, 5, 6});
  const std::string i32 = File<int32_t>("i.npy", NpyType::kInt32, {2}, {1, 2});
  const std::string u16 = File<uint16_t>("u.npy", NpyType::kUint16, {1, 3}, {1, 2, 3});
  const std::string cube = File<int8_t>("c.npy", NpyType::kInt8, {1, 1, 1}, {1});
  const std::string w = WeightFile();
  struct Row {
    std::vector<std::string> words;
    const char* says;
  };
  const Row rows[] = {
      {{"register", "w", "/no/such.npy", "--layout", "KN"}, "No such file"},
      {{"register", "w", f, "--layout", "KN"}, "a weight is int8, this is float32"},
      {{"register", "w", cube, "--layout", "KN"}, "a weight has 2 dimensions"},
      {{"register", "w", w, "--layout", "KN", "--dtype", "INT2"},
       "value [0, 1] = -2 is outside -1 ... 1 of INT2"},
      {{"register", "w", w, "--layout", "KN", "--scales", i32}, "scales are int32"},
      {{"register", "w", w, "--layout", "KN", "--scales", u16}, "scales are uint16"},
      {{"register", "w", w, "--layout", "KN", "--bias", i32}, "the bias is int32"},
      {{"matmul", "w", i32, "--out", "INT32"}, "activations are int32"},
      {{"matmul", "w", u16, "--out", "INT32"}, "activations are uint16"},
      {{"matmul", "w", cube, "--out", "INT32"}, "activations are [M, K] or [K]"},
      {{"matmul", "w", x, "--out", "INT32", "--scales", i32}, "scales are int32"},
      {{"matmul", "w", x, "--out", "INT32", "--zero-points", x}, "zero points are int8"},
      {{"matmul", "w", QMATMUL_PROGRAM, "--out", "INT32"}, "is not a .npy file"},
  };
  for (const Row& row : rows) {
    const ProgramResult r = Run(row.words);
    EXPECT_EQ(r.exit_code, kExitFile) << row.says << "\n" << r.err;
    EXPECT_TRUE(Has(r.err, row.says)) << r.err;
  }
  EXPECT_TRUE(server_.uploads().empty()) << "nothing was sent";
}

TEST_F(Cli, RefusalsHaveTheirExitCodes) {
  using grpc::StatusCode;
  struct Row {
    grpc::Status status;
    int exit_code;
    const char* says;
  };
  const Row rows[] = {
      {ErrorOf(StatusCode::NOT_FOUND, "WEIGHT_UNKNOWN", "no weight 'w'"), kExitNotFound,
       "`qmatmul list` shows"},
      {ErrorOf(StatusCode::INVALID_ARGUMENT, "WEIGHT_ID", "bad id"), kExitRefused,
       "field activations.shape: bad id"},
      {ErrorOf(StatusCode::PERMISSION_DENIED, "SCOPE", "needs admin"), kExitRefused, "needs admin"},
      {ErrorOf(StatusCode::UNAVAILABLE, "DRAINING", "going", {}, 50), kExitUnreachable,
       "try again in 50 ms"},
      {{StatusCode::UNAVAILABLE, "broken pipe"}, kExitUnreachable, "is a server listening on"},
      {{StatusCode::DEADLINE_EXCEEDED, "late"}, kExitUnreachable, "--timeout SECONDS"},
      {{StatusCode::RESOURCE_EXHAUSTED, "too large"}, kExitRefused, "send fewer rows"},
      {{StatusCode::UNIMPLEMENTED, "no such method"}, kExitRefused, "a qmatmul server?"},
      {ErrorOf(StatusCode::DATA_LOSS, "DIGEST", "rotten"), kExitServer, "DATA_LOSS DIGEST: rotten"},
      {{StatusCode::UNKNOWN, "odd"}, kExitServer, "UNKNOWN: odd"},
  };
  for (const Row& row : rows) {
    server_.on_named = [&row](const std::string&) { return row.status; };
    const ProgramResult r = Run({"show", "w"});
    EXPECT_EQ(r.exit_code, row.exit_code) << row.says;
    EXPECT_TRUE(Has(r.err, row.says)) << r.err;
    const ProgramResult as_json = Run({"delete", "w", "--json"});
    EXPECT_EQ(as_json.exit_code, row.exit_code);
    EXPECT_EQ(as_json.out, "") << "no answer, no stdout";
    const json error = json::parse(as_json.err).at("error");
    EXPECT_EQ(error.at("exit_code"), row.exit_code);
    EXPECT_EQ(error.at("message"), row.status.error_message());
  }
}

TEST_F(Cli, RegisterSendsTheFiles) {
  const std::string w = WeightFile();
  const std::string s = File<float>("s.npy", NpyType::kFloat32, {2}, {0.5f, 0.25f});
  const std::string b = File<float>("b.npy", NpyType::kFloat32, {2}, {1.0f, -1.0f});
  const ProgramResult r =
      Run({"register", "w", w, "--layout=KN", "--scales", s, "--bias", b, "--replace", "--json"});
  ASSERT_EQ(r.exit_code, kExitOk) << r.err;
  EXPECT_EQ(r.err, "") << "no progress bar where there is no terminal";
  // The digest of these bytes by Python's hashlib: see client_test.cc.
  EXPECT_EQ(json::parse(r.out).at("weight").at("digest"),
            "3c7867c205d84786e66a758ffa501a38d7be06fb2c10a838ecf0d2d13400fa4e");
  EXPECT_EQ(json::parse(r.out).at("uploaded_bytes"), 22);
  EXPECT_TRUE(server_.uploads().back().spec.replace());

  const std::string half = File<uint16_t>("h.npy", NpyType::kFloat16, {}, {0x3800});
  ASSERT_EQ(Run({"register", "w", w, "--layout", "NK", "--scales", half}).exit_code, kExitOk);
  const auto spec = server_.uploads().back().spec;
  EXPECT_EQ(spec.k(), 2);
  EXPECT_EQ(spec.n(), 3);
  EXPECT_EQ(spec.layout(), v1::LAYOUT_NK);
  EXPECT_EQ(spec.scale_dtype(), v1::DATA_TYPE_F16);
  EXPECT_EQ(spec.scale_count(), 1);
  const std::string brain = File<uint16_t>("bf.npy", NpyType::kUint16, {1}, {0x3f80});
  ASSERT_EQ(Run({"register", "w", w, "--layout", "NK", "--scales", brain, "--bf16-scales",
                 "--replace-digest", std::string(64, 'f')})
                .exit_code,
            kExitOk);
  EXPECT_EQ(server_.uploads().back().spec.scale_dtype(), v1::DATA_TYPE_BF16);
  EXPECT_EQ(server_.uploads().back().spec.replace_digest(), std::string(64, 'f'));
}

TEST_F(Cli, RegisterPacksInt4AndInt2) {
  // [K, N] = [2, 3]: each line of three ends in a byte that is not full.
  const std::string w = File<int8_t>("w4.npy", NpyType::kInt8, {2, 3}, {-8, 7, 0, 1, -1, -7});
  const std::string s = File<float>("s4.npy", NpyType::kFloat32, {2, 3}, {1, 1, 1, 1, 1, 1});
  const ProgramResult r = Run({"register", "w", w, "--layout", "KN", "--dtype", "INT4",
                               "--group-size", "1", "--scales", s});
  ASSERT_EQ(r.exit_code, kExitOk) << r.err;
  auto upload = server_.uploads().back();
  EXPECT_EQ(upload.spec.dtype(), v1::DATA_TYPE_INT4);
  EXPECT_EQ(upload.spec.group_size(), 1);
  EXPECT_EQ(upload.spec.k(), 2);
  EXPECT_EQ(upload.spec.n(), 3);
  EXPECT_EQ(upload.spec.scale_count(), 6);
  EXPECT_EQ(upload.content.substr(0, 4), std::string("\xf0\x08\x79\x01"));
  EXPECT_EQ(upload.content.size(), 4u + 24u);

  const std::string t =
      File<int8_t>("w2.npy", NpyType::kInt8, {2, 5}, {-1, 0, 1, -1, 1, 1, 1, 0, 0, 0});
  ASSERT_EQ(Run({"register", "t", t, "--layout", "NK", "--dtype", "INT2"}).exit_code, kExitOk);
  upload = server_.uploads().back();
  EXPECT_EQ(upload.spec.dtype(), v1::DATA_TYPE_INT2);
  EXPECT_EQ(upload.spec.k(), 5);
  EXPECT_EQ(upload.content, std::string("\x24\x02\x5a\x01"));
}

TEST_F(Cli, MatMulChains) {
  server_.on_matmul = [](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    return FakeProduct(request, response);
  };
  const std::string x = File<int8_t>("x.npy", NpyType::kInt8, {2, 3}, {1, 2, 3, 4, 5, 6});
  const ProgramResult r = Run({"matmul", "n8:relu", x, "--then", "n9:relu", "--then", "n4", "--out",
                               "INT32", "--top-k", "2", "--skip-bias"});
  ASSERT_EQ(r.exit_code, kExitOk) << r.err;
  const auto request = server_.requests().back();
  ASSERT_EQ(request.outputs_size(), 1);
  EXPECT_EQ(request.weights(0), "weights/n8");
  EXPECT_EQ(request.outputs(0).dtype(), v1::DATA_TYPE_F32);
  EXPECT_EQ(request.outputs(0).activation(), v1::ACTIVATION_RELU);
  EXPECT_EQ(request.outputs(0).top_k(), 0);
  ASSERT_EQ(request.then_size(), 2);
  EXPECT_EQ(request.then(0).weight(), "weights/n9");
  EXPECT_EQ(request.then(0).arithmetic(), v1::ARITHMETIC_W8A8);
  EXPECT_EQ(request.then(0).output().dtype(), v1::DATA_TYPE_F32);
  EXPECT_EQ(request.then(0).output().activation(), v1::ACTIVATION_RELU);
  EXPECT_EQ(request.then(1).weight(), "weights/n4");
  EXPECT_EQ(request.then(1).output().dtype(), v1::DATA_TYPE_INT32);
  EXPECT_EQ(request.then(1).output().top_k(), 2);
  EXPECT_TRUE(request.then(1).output().skip_bias());
  EXPECT_NE(request.then(1).output().activation(), v1::ACTIVATION_RELU);
  EXPECT_TRUE(Has(r.out, "n4: INT32 [2, 2]")) << r.out;
  EXPECT_TRUE(Has(r.out, "@")) << "the preview has the columns\n" << r.out;
  (void)Run({"matmul", "n8", x, "--then", "n9", "--out", "F32", "--arithmetic", "W8A32"});
  EXPECT_EQ(server_.requests().back().then(0).arithmetic(), v1::ARITHMETIC_W8A32);
}

TEST_F(Cli, MatMulBeyondTheMessageLimitIsSentInParts) {
  server_.on_matmul = [](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    return FakeProduct(request, response);
  };
  std::vector<int8_t> values(100 * 50);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int8_t>(i * 7);
  const std::string x = File<int8_t>("x.npy", NpyType::kInt8, {100, 50}, values);
  ASSERT_EQ(Run({"matmul", "n3", x, "--out", "INT32", "-o", Path("whole.npy")}).exit_code, kExitOk);
  const ProgramResult r = Run({"matmul", "n3", x, "--out", "INT32", "-o", Path("parts.npy"),
                               "--message-bytes-max", "2000", "--json"});
  ASSERT_EQ(r.exit_code, kExitOk) << r.err;
  EXPECT_EQ(ReadNpy(Path("parts.npy")).shape, (std::vector<int64_t>{100, 3}));
  EXPECT_TRUE(ReadNpy(Path("parts.npy")).data == ReadNpy(Path("whole.npy")).data);
  EXPECT_EQ(json::parse(r.out).at("outputs").at(0).at("attempts"), server_.requests().size() - 1);
  EXPECT_GT(server_.requests().size(), 4u);
}

TEST_F(Cli, MatMulWritesOneFilePerWeight) {
  server_.on_matmul = [](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    for (int i = 0; i < request.weights_size(); ++i) {
      auto* output = response->add_outputs();
      output->set_dtype(request.outputs(i).dtype());
      output->add_shape(1);
      output->add_shape(2);
      const std::vector<float> values = {static_cast<float>(i), 0.5f};
      const std::vector<int32_t> indices = {7, i};
      output->set_data(values.data(), 8);
      output->set_indices(indices.data(), 8);
      output->mutable_execution()->set_weight(request.weights(i));
      output->mutable_execution()->set_kernel("cpu.scalar.s8s8s32.4x16x4");
    }
    return grpc::Status::OK;
  };
  const std::string x = File<float>("x.npy", NpyType::kFloat32, {3}, {1.0f, 2.0f, 3.0f});
  const ProgramResult r = Run({"matmul",
                               "q",
                               "k",
                               x,
                               "--out",
                               "F32",
                               "--dynamic",
                               "-o",
                               Path("yq.npy"),
                               "-o",
                               Path("yk.npy"),
                               "--top-k",
                               "2",
                               "--indices",
                               Path("iq.npy"),
                               "--indices",
                               Path("ik.npy"),
                               "--relu",
                               "--skip-bias",
                               "--verify",
                               "--device",
                               "cpu"});
  ASSERT_EQ(r.exit_code, kExitOk) << r.err;
  const NpyArray yk = ReadNpy(Path("yk.npy"));
  EXPECT_EQ(yk.type, NpyType::kFloat32);
  EXPECT_EQ(yk.shape, (std::vector<int64_t>{1, 2}));
  const float expected[] = {1.0f, 0.5f};
  EXPECT_EQ(std::memcmp(yk.data.data(), expected, 8), 0);
  const int32_t columns[] = {7, 0};
  EXPECT_EQ(std::memcmp(ReadNpy(Path("iq.npy")).data.data(), columns, 8), 0);
  const auto request = server_.requests().back();
  EXPECT_EQ(request.activations().shape(0), 1) << "[K] is one row";
  EXPECT_TRUE(request.activations().has_dynamic());
  EXPECT_EQ(request.options().arithmetic(), v1::ARITHMETIC_W8A8) << "--dynamic implies it";
  EXPECT_TRUE(request.options().verify());
  EXPECT_TRUE(request.outputs(1).skip_bias());
  EXPECT_EQ(request.outputs(1).top_k(), 2);

  const ProgramResult preview = Run({"matmul", "q", x, "--out", "F32", "--arithmetic", "W8A32"});
  EXPECT_TRUE(Has(preview.out, "0@7 0.5@0")) << "the columns stand by the values\n" << preview.out;
  EXPECT_EQ(server_.requests().back().options().arithmetic(), v1::ARITHMETIC_W8A32);
}

TEST_F(Cli, MatMulSendsScalesAndZeroPoints) {
  const std::string x = File<uint8_t>("x.npy", NpyType::kUint8, {2, 1}, {1, 2});
  const std::string s = File<float>("s.npy", NpyType::kFloat32, {2}, {0.5f, 0.25f});
  const std::string z = File<int32_t>("z.npy", NpyType::kInt32, {2}, {128, 3});
  (void)Run({"matmul", "w", x, "--out", "INT8", "--scales", s, "--zero-points", z, "--out-scale",
             "0.5", "--out-zero-point", "-3", "--overflow", "WRAP"});
  auto request = server_.requests().at(0);
  EXPECT_EQ(request.activations().dtype(), v1::DATA_TYPE_UINT8);
  EXPECT_EQ(request.activations().zero_points(1), 3);
  EXPECT_EQ(request.activations().static_scales().scales().data().size(), 8u);
  EXPECT_EQ(request.outputs(0).scale(), 0.5f);
  EXPECT_EQ(request.outputs(0).zero_point(), -3);
  EXPECT_EQ(request.outputs(0).overflow(), v1::OVERFLOW_WRAP);
  EXPECT_EQ(request.options().arithmetic(), v1::ARITHMETIC_UNSPECIFIED) << "integers need none";

  const std::string b = File<uint16_t>("b.npy", NpyType::kUint16, {2, 1}, {0x3f80, 0});
  (void)Run(
      {"matmul", "w", b, "--bf16", "--out", "BF16", "--scales", "0.5", "--zero-points", "-4"});
  request = server_.requests().at(1);
  EXPECT_EQ(request.activations().dtype(), v1::DATA_TYPE_BF16);
  EXPECT_EQ(request.activations().zero_points(0), -4);
  EXPECT_EQ(request.options().arithmetic(), v1::ARITHMETIC_W8A8);
}

TEST_F(Cli, ListShowAndDelete) {
  server_.on_list = [](const v1::ListWeightsRequest&, v1::ListWeightsResponse* response) {
    auto* weight = response->add_weights();
    weight->set_name("weights/q_proj");
    weight->set_dtype(v1::DATA_TYPE_INT8);
    weight->set_layout(v1::LAYOUT_KN);
    weight->set_k(384);
    weight->set_digest(std::string(64, 'e'));
    weight->add_copies()->set_bytes(1 << 20);
    return grpc::Status::OK;
  };
  const ProgramResult list = Run({"list"});
  EXPECT_TRUE(Has(list.out, "q_proj")) << list.out;
  EXPECT_TRUE(Has(list.out, "1.0 MiB")) << list.out;
  EXPECT_TRUE(Has(list.out, "\n1 weight\n")) << list.out;
  EXPECT_EQ(json::parse(Run({"list", "--json"}).out).at("weights").at(0).at("k"), 384);
  EXPECT_TRUE(Has(Run({"show", "w"}).out, "id          w"));
  EXPECT_EQ(
      json::parse(Run({"delete", "a", "b", "--json"}).out).at("deleted").at(1).at("freed_bytes"),
      4096);
}

TEST_F(Cli, Health) {
  EXPECT_EQ(Run({"health"}).out, "SERVING\n");
  server_.on_health = [](const std::string&, int* status) {
    *status = grpc::health::v1::HealthCheckResponse::NOT_SERVING;
    return grpc::Status::OK;
  };
  const ProgramResult r = Run({"health", "--wait", "0.3"});
  EXPECT_EQ(r.exit_code, kExitNo);
  EXPECT_EQ(r.out, "NOT_SERVING\n");
  EXPECT_EQ(Run({"health", "--server", "127.0.0.1:1"}).exit_code, kExitUnreachable)
      << "the flag is stronger than the environment";
}

// A server that multiplies wrongly, or not at all, does not pass.
TEST_F(Cli, DoctorSeesWhatIsWrong) {
  server_.on_matmul = [](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    auto* output = response->add_outputs();
    output->set_dtype(v1::DATA_TYPE_INT32);
    output->set_data(
        std::string(static_cast<size_t>(request.activations().shape(0)) * 37 * 4, '\0'));
    return grpc::Status::OK;
  };
  server_.devices.add_devices()->set_id("cpu");
  server_.devices.mutable_devices(0)->set_state("lost");
  const ProgramResult r = Run({"doctor"});
  EXPECT_EQ(r.exit_code, kExitNo);
  EXPECT_TRUE(Has(r.out, "ok    reachable")) << r.out;
  EXPECT_TRUE(Has(r.out, "FAIL  product: ")) << r.out;
  EXPECT_TRUE(Has(r.out, "do not trust this server")) << r.out;
  EXPECT_TRUE(Has(r.out, "FAIL  device cpu: lost")) << r.out;
  EXPECT_TRUE(Has(r.out, "warn  version: ")) << "the fake has none\n" << r.out;
  EXPECT_TRUE(Has(r.out, "warn  clock: ")) << "the fake's weights are of 1970\n" << r.out;

  const ProgramResult absent = Run({"doctor", "--server", "127.0.0.1:1", "--json"});
  EXPECT_EQ(absent.exit_code, kExitNo);
  EXPECT_EQ(json::parse(absent.out).at("findings").at(0).at("level"), "FAIL");
}

// One product of zeros for whatever is asked: seldom right.
grpc::Status AnswerZeros(const v1::MatMulRequest& request, v1::MatMulResponse* response) {
  v1::OutputTensor* output = response->add_outputs();
  output->set_data(std::string(static_cast<size_t>(request.activations().shape(0)) * 2 * 4, '\0'));
  return grpc::Status::OK;
}

TEST_F(Cli, BenchSeesWrongRepliesAndExitsWithSeven) {
  server_.on_matmul = AnswerZeros;
  const std::vector<std::string> words = {"bench",      "--shape", "30x2",     "--rows", "3",
                                          "--requests", "12",      "--verify", "0.5",    "--json"};
  const ProgramResult r = Run(words);
  EXPECT_EQ(r.exit_code, 7) << r.err;
  const json line = json::parse(r.out);
  EXPECT_EQ(line.at("verified"), 6);
  EXPECT_EQ(line.at("wrong"), 6);
  EXPECT_TRUE(Has(r.err, "6 replies differ")) << r.err;
}

TEST_F(Cli, BenchCountsRefusalsByReasonAndGivesUpWhenTheFirstCallIsRefused) {
  std::atomic<int> calls{0};
  server_.on_matmul = [&calls](const v1::MatMulRequest& request, v1::MatMulResponse* response) {
    // Four requests warm up.
    if (++calls > 4 && calls % 2 == 0)
      return ErrorOf(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "come later");
    return AnswerZeros(request, response);
  };
  ProgramResult r = Run({"bench", "--shape", "30x2", "--rows", "1", "--requests", "10"});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_TRUE(Has(r.out, "5 x UNAVAILABLE QUEUE_FULL")) << r.out;
  EXPECT_TRUE(Has(r.out, "come later")) << r.out;
  server_.on_matmul = [](const v1::MatMulRequest&, v1::MatMulResponse*) {
    return ErrorOf(grpc::StatusCode::INVALID_ARGUMENT, "SHAPE", "never");
  };
  r = Run({"bench", "--shape", "30x2", "--rows", "1", "--requests", "10"});
  EXPECT_EQ(r.exit_code, 5) << r.err;
  EXPECT_TRUE(Has(r.err, "SHAPE")) << r.err;
}

TEST_F(Cli, BenchWritesEveryCallAndSendsTheRoutingHeaderWhenAsked) {
  server_.on_matmul = AnswerZeros;
  const ProgramResult r =
      Run({"bench", "--shape", "30x2", "--mix", "1:0.5,2:0.5", "--rate", "500", "--requests", "20",
           "--seconds", "5", "--calls", Path("calls.csv"), "--routing-header"});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  std::ifstream file(Path("calls.csv"));
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, "intended_ns,sent_ns,done_ns,rows,code");
  int ones = 0, twos = 0;
  while (std::getline(file, line)) {
    ones += Has(line, ",1,OK");
    twos += Has(line, ",2,OK");
  }
  EXPECT_EQ(ones + twos, 20);
  EXPECT_GT(ones, 2);
  EXPECT_GT(twos, 2);
  const auto routes = server_.routes();
  EXPECT_EQ(
      std::count_if(routes.begin(), routes.end(),
                    [](const std::string& id) { return id.rfind("qmatmul-bench-30x2", 0) == 0; }),
      static_cast<std::ptrdiff_t>(routes.size()))
      << "uploads, 8 calls to warm up, 20 calls, and the deletion";
}

}  // namespace
}  // namespace qmatmul::cli
