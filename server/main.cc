// qmatmul-server: options in, a server until SIGTERM or SIGINT, then a drain.
//
// Standard output gets one line when the server is ready, for scripts:
//   qmatmul-server ready grpc=127.0.0.1:8500 http=127.0.0.1:8501
// Exit status: 0 after a drain, 1 when it could not start or the drain was cut short, 2 for bad
// options.
#include <absl/synchronization/mutex.h>
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <string>

#include "kernels/devices.h"
#include "server/log.h"
#include "server/options.h"
#include "server/server.h"

namespace {

using namespace qmatmul;

// Replies of several MiB come and go with each call. Left to itself malloc maps and unmaps each,
// which costs a fifth of the server's CPU; these keep them in the heap.
void SetUpMalloc() {
  // NOLINTBEGIN(concurrency-mt-unsafe): there is no other thread yet
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  // NOLINTEND(concurrency-mt-unsafe)
}

// Debian builds Abseil with its checks on: each lock of gRPC's then goes through one graph of all
// locks, under a lock of its own. Without it an echo costs the server a tenth less.
void SetUpLocks() { absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore); }

// Threads inherit the mask, so that only the main thread sees these, where it waits for them.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// The one line that says why a build with GPU devices serves without; empty when a GPU is there, or none was
// asked for.
std::string NoGpuLine(const std::vector<std::unique_ptr<Device>>& devices,
                      const std::vector<AbsentKind>& absent) {
  if (devices.size() > 1 || absent.empty()) return "";
  std::string line = "no GPU is served, the CPU computes everything";
  for (const AbsentKind& a : absent) line += "; " + a.kind + ": " + a.reason;
  return line;
}

int Serve(const Options& options, const sigset_t& signals) {
  DeviceOptions device_options;
  device_options.threads = static_cast<int>(options.threads);
  device_options.team_spin_us_max = static_cast<int>(options.team_spin_us_max);
  device_options.disabled_kernels = options.disable_kernels;
  device_options.calibration_file = options.calibration_file;
  device_options.vulkan_devices = options.vulkan_devices;
  device_options.pipeline_cache_file = options.pipeline_cache_file;
  std::vector<AbsentKind> absent;
  auto devices = OpenDevices(device_options, &absent);
  if (const std::string line = NoGpuLine(devices, absent); !line.empty())
    Log(LogLevel::kInfo, line);
  std::string error;
  const std::unique_ptr<Server> server = Server::Start(options, std::move(devices), &error);
  if (server == nullptr) {
    Log(LogLevel::kError, error);
    return 1;
  }
  std::string ready = "ready";
  for (const std::string& address : server->addresses()) ready += " grpc=" + address;
  if (!server->http_address().empty()) ready += " http=" + server->http_address();
  Log(LogLevel::kInfo, ready);
  std::printf("qmatmul-server %s\n", ready.c_str());
  std::fflush(stdout);

  int signal = 0;
  sigwait(&signals, &signal);
  Log(LogLevel::kInfo, signal == SIGTERM ? "SIGTERM" : "SIGINT");
  server->BeginDrain();
  // A second signal ends the grace: whoever sends it does not want to wait.
  const timespec grace{options.grace_ms / 1000, options.grace_ms % 1000 * 1'000'000};
  sigtimedwait(&signals, nullptr, &grace);
  return server->Shutdown() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  SetUpMalloc();
  SetUpLocks();
  size_t variables = 0;
  while (environ[variables] != nullptr) ++variables;
  LoadedOptions loaded;
  std::string error;
  if (!LoadOptions({argv + 1, static_cast<size_t>(argc - 1)}, {environ, variables}, &loaded,
                   &error)) {
    std::fprintf(stderr, "qmatmul-server: %s\n", error.c_str());
    return 2;
  }
  if (loaded.help || loaded.version || loaded.print_config) {
    const std::string text = loaded.help      ? HelpText()
                             : loaded.version ? std::string("qmatmul-server " QMATMUL_VERSION "\n")
                                              : ConfigText(loaded);
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  const sigset_t signals = BlockStopSignals();
  SetUpLog(loaded.options.log_format, loaded.options.log_level);
  for (const std::string& warning : loaded.warnings) Log(LogLevel::kWarn, warning);
  return Serve(loaded.options, signals);
}
