// Calls that the `qmatmul` program does not make, as fast as it makes its own: the health check, and
// echoes of given sizes. For tests/figures, which compares MatMul with them.
//   load_probe SERVER CALL LOAD SECONDS
// CALL is `health` or `echo:IN:OUT` (bytes; of echo_server), LOAD is a number in flight or
// `RATE/s`, evenly spaced. Prints one line of JSON; the CPU times are this process's over the run.
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "client/load.h"
#include "client/load_run.h"

namespace {

using qmatmul::client::EncodedCall;

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

bool CallOf(const std::string& text, EncodedCall* call) {
  unsigned long long in = 0, out = 0;
  if (text == "health") {
    *call = EncodedCall::Health();
    return true;
  }
  if (std::sscanf(text.c_str(), "echo:%llu:%llu", &in, &out) != 2) return false;
  std::vector<std::byte> message(in);
  if (message.size() >= sizeof out) std::memcpy(message.data(), &out, sizeof out);
  *call = EncodedCall::Of("/qmatmul.v1.MatMulService/MatMul", message);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  qmatmul::client::SetUpProcess();  // as the `qmatmul` program
  qmatmul::client::LoadPlan plan;
  EncodedCall call;
  if (argc != 5 || !CallOf(argv[2], &call)) {
    std::fprintf(stderr, "usage: load_probe SERVER health|echo:IN:OUT IN_FLIGHT|RATE/s SECONDS\n");
    return 2;
  }
  const std::string load = argv[3];
  if (load.ends_with("/s")) {
    plan.rate = std::atof(load.c_str());
    plan.poisson = false;
  } else {
    plan.in_flight = std::atoll(load.c_str());
  }
  plan.items.push_back({call, 1, 0, 0});
  plan.seconds = std::atof(argv[4]);
  qmatmul::client::LoadClient client({.server = argv[1]});
  if (const auto status = client.Connect(std::chrono::seconds(10)); !status.ok()) {
    std::fprintf(stderr, "load_probe: %s\n", status.ToString().c_str());
    return 1;
  }
  const double cpu_before = CpuSeconds();
  const auto result = qmatmul::client::RunLoad(&client, plan);
  const double cpu = CpuSeconds() - cpu_before;
  const auto& latency = result->latency_ns;
  std::printf(
      "{\"call\":\"%s\",\"seconds\":%.3f,\"ok\":%lld,\"failed\":%lld,\"qps\":%.1f,\"late_sends\":%"
      "lld,"
      "\"p50_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,\"client_cpu_us\":%.2f,"
      "\"request_bytes\":%.0f,\"reply_bytes\":%.0f}\n",
      argv[2], result->seconds, static_cast<long long>(result->ok),
      static_cast<long long>(result->failed),
      static_cast<double>(result->ok_in_window) / result->seconds,
      static_cast<long long>(result->late), static_cast<double>(latency.Percentile(50)) / 1e3,
      static_cast<double>(latency.Percentile(99)) / 1e3, static_cast<double>(latency.max()) / 1e3,
      cpu * 1e6 / static_cast<double>(std::max<int64_t>(result->ok, 1)), result->request_bytes_mean,
      result->reply_bytes_mean);
  if (!result->first_error.empty())
    std::fprintf(stderr, "load_probe: %s\n", result->first_error.c_str());
  return result->ok > 0 ? 0 : 1;
}
