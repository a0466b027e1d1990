// What one request costs the server beyond the kernel: starts a server of its own, calls it, and
// reads the server process's CPU time. A figure, not a test:
//   build/release/bin/request_cost build/release/bin/qmatmul-server
// prints one JSON object a line. The kernel's own CPU time is measured beside it, in this process,
// on the same device code with one thread: a run's wall time would count what other processes took
// from it.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "kernels/devices.h"
#include "qmatmul/v1/qmatmul.grpc.pb.h"

namespace {

namespace v1 = qmatmul::v1;

constexpr int64_t kSide = 4096;

// A server process; stopped and reaped with the object.
class ServerProcess {
 public:
  explicit ServerProcess(const char* program) {
    int out[2];
    if (pipe(out) != 0) return;
    pid_ = fork();
    if (pid_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      close(out[0]);
      execl(program, program, "--listen=127.0.0.1:0", "--http-listen=", "--threads=1",
            "--grace-ms=0", nullptr);
      _exit(127);
    }
    close(out[1]);
    char line[512] = {};
    const ssize_t got = read(out[0], line, sizeof line - 1);
    close(out[0]);
    const std::string text(line, got > 0 ? static_cast<size_t>(got) : 0);
    const size_t at = text.find("grpc=");
    if (at != std::string::npos)
      address_ = text.substr(at + 5, text.find_first_of(" \n", at) - at - 5);
  }
  ~ServerProcess() {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
  }
  const std::string& address() const { return address_; }

  // User and system time so far.
  double CpuSeconds() const {
    std::ifstream stat("/proc/" + std::to_string(pid_) + "/stat");
    std::string text((std::istreambuf_iterator<char>(stat)), {});
    std::istringstream fields(text.substr(text.rfind(')') + 2));
    std::string skipped;
    for (int i = 0; i < 11; ++i) fields >> skipped;
    double user = 0, system = 0;
    fields >> user >> system;
    return (user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
  }

 private:
  pid_t pid_ = -1;
  std::string address_;
};

struct Client {
  explicit Client(const std::string& address) {
    auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
    weights = v1::WeightService::NewStub(channel);
    matmul = v1::MatMulService::NewStub(channel);
  }
  bool Register() {
    grpc::ClientContext context;
    v1::RegisterWeightResponse reply;
    auto writer = weights->RegisterWeight(&context, &reply);
    v1::RegisterWeightRequest message;
    v1::WeightSpec* spec = message.mutable_spec();
    spec->set_weight_id("w");
    spec->set_dtype(v1::DATA_TYPE_INT8);
    spec->set_layout(v1::LAYOUT_KN);
    spec->set_k(kSide);
    spec->set_n(kSide);
    writer->Write(message);
    message.set_chunk(std::string(1 << 20, '\3'));
    for (int i = 0; i < kSide * kSide >> 20; ++i) writer->Write(message);
    writer->WritesDone();
    return writer->Finish().ok();
  }
  bool Call() {
    v1::MatMulRequest request;
    request.add_weights("weights/w");
    request.mutable_activations()->set_dtype(v1::DATA_TYPE_INT8);
    request.mutable_activations()->add_shape(1);
    request.mutable_activations()->add_shape(kSide);
    request.mutable_activations()->set_data(std::string(kSide, '\1'));
    request.add_outputs()->set_dtype(v1::DATA_TYPE_INT32);
    grpc::ClientContext context;
    v1::MatMulResponse reply;
    return matmul->MatMul(&context, request, &reply).ok();
  }

  std::unique_ptr<v1::WeightService::Stub> weights;
  std::unique_ptr<v1::MatMulService::Stub> matmul;
};

// The same product by the device alone, on this thread.
class Kernel {
 public:
  Kernel()
      : devices_(
            qmatmul::OpenDevices({.threads = 1, .team_spin_us_max = 0, .disabled_kernels = {}})) {
    qmatmul::WeightView view;
    view.spec.dtype = qmatmul::DataType::kInt8;
    view.spec.layout = qmatmul::Layout::kKN;
    view.spec.k = kSide;
    view.spec.n = kSide;
    const std::string data(kSide * kSide, '\3');
    view.data = data.data();
    if (!devices_.front()->Pack(view, &weight_).ok()) std::abort();
  }
  // CPU time of a Run, the median of many.
  double CpuUs() {
    std::vector<double> runs_us;
    for (int i = 0; i < 300; ++i) runs_us.push_back(RunUs());
    std::nth_element(runs_us.begin(), runs_us.begin() + 150, runs_us.end());
    return runs_us[150];
  }

 private:
  static double ThreadUs() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) * 1e-3;
  }
  double RunUs() {
    const qmatmul::ByteSpan bytes{input_.data(), input_.size()};
    qmatmul::ActivationView activations;
    activations.dtype = qmatmul::DataType::kInt8;
    activations.rows = 1;
    activations.k = kSide;
    activations.bytes = {&bytes, 1};
    qmatmul::SegmentOutput output;
    output.view = {reinterpret_cast<std::byte*>(output_.data()), kSide * 4};
    qmatmul::RowSegment segment;
    segment.activations = &activations;
    segment.rows = 1;
    segment.outputs = {&output, 1};
    qmatmul::WorkStep step;
    step.weights = {&weight_, 1};
    qmatmul::Work work;
    work.segments = {&segment, 1};
    work.steps = {&step, 1};
    qmatmul::RunReport report;
    const double begin = ThreadUs();
    if (!devices_.front()->Run(work, &report).ok()) std::abort();
    return ThreadUs() - begin;
  }

  std::vector<std::unique_ptr<qmatmul::Device>> devices_;
  std::shared_ptr<const qmatmul::PackedWeight> weight_;
  std::vector<std::byte> input_ = std::vector<std::byte>(kSide, std::byte{1});
  std::vector<int32_t> output_ = std::vector<int32_t>(kSide);
};

bool Measure(const ServerProcess& server, Client& client, Kernel& kernel, int in_flight,
             int calls) {
  for (int i = 0; i < 50; ++i)
    if (!client.Call()) return false;
  const double kernel_before_us = kernel.CpuUs();
  const double cpu_before = server.CpuSeconds();
  std::atomic<int> left{calls}, failed{0};
  std::vector<std::thread> threads;
  const auto begin = std::chrono::steady_clock::now();
  for (int t = 0; t < in_flight; ++t)
    threads.emplace_back([&] {
      while (left.fetch_sub(1) > 0)
        if (!client.Call()) ++failed;
    });
  for (std::thread& thread : threads) thread.join();
  const double wall_s =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const double cpu_us = (server.CpuSeconds() - cpu_before) * 1e6 / calls;
  const double kernel_us = (kernel_before_us + kernel.CpuUs()) / 2;
  std::printf(
      "{\"name\":\"request_cost\",\"m\":1,\"k\":%ld,\"n\":%ld,\"in_flight\":%d,\"calls\":%d,"
      "\"failed\":%d,"
      "\"calls_per_s\":%.0f,\"server_cpu_us\":%.1f,\"kernel_cpu_us\":%.1f,\"beyond_kernel_us\":%."
      "1f}\n",
      kSide, kSide, in_flight, calls, failed.load(), calls / wall_s, cpu_us, kernel_us,
      cpu_us - kernel_us);
  return failed == 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: request_cost PATH_OF_QMATMUL_SERVER\n");
    return 2;
  }
  const ServerProcess server(argv[1]);
  Client client(server.address());
  if (server.address().empty() || !client.Register()) {
    std::fprintf(stderr, "request_cost: %s did not start or took no weight\n", argv[1]);
    return 1;
  }
  Kernel kernel;
  bool ok = true;
  for (const int in_flight : {1, 8, 32})
    ok = Measure(server, client, kernel, in_flight, 4000) && ok;
  return ok ? 0 : 1;
}
