// qmatmul doctor: is the server there, is it well, and does it multiply exactly?
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "client/cli/commands.h"
#include "client/cli/console.h"
#include "client/cli/json.h"
#include "client/cli/random_bytes.h"
#include "client/cli/temporary_weight.h"

namespace qmatmul::cli {
namespace {

using client::DataType;

// Odd on purpose: neither a multiple of a tile nor of a vector.
constexpr int64_t kSelfTestK = 67;
constexpr int64_t kSelfTestN = 37;
constexpr int64_t kSelfTestRows = 5;
// gRPC's own default limit, which a server that was not told better still has.
constexpr int64_t kGrpcMessageBytes = int64_t{4} << 20;
constexpr int kLatencyCalls = 21;
constexpr int64_t kLatencyNsGood = 5'000'000;
constexpr int64_t kClockNsGood = 5'000'000'000;

enum class Level : uint8_t { kOk, kWarn, kFail };

std::string_view NameOf(Level level) {
  switch (level) {
    case Level::kOk: return "ok";
    case Level::kWarn: return "warn";
    case Level::kFail: return "FAIL";
  }
  return "";
}

struct Finding {
  Level level;
  std::string check;
  std::string detail;
  std::string way_out;
};

// The checks, in the order in which they make sense; each adds its findings.
class Doctor {
 public:
  explicit Doctor(const client::ClientOptions& options) : client_(options) {}

  const std::vector<Finding>& Examine() {
    if (!CheckReachable()) return findings_;
    CheckHealth();
    CheckLatency();
    CheckVersion();
    CheckDevices();
    CheckKernels();
    CheckProducts();
    return findings_;
  }

 private:
  void Add(Level level, std::string check, std::string detail, std::string way_out = {}) {
    findings_.push_back({level, std::move(check), std::move(detail),
                         level == Level::kOk ? std::string() : std::move(way_out)});
  }
  // A call that failed where it should not have.
  void AddFailed(std::string check, const client::Status& status) {
    const Failure failure(status, client_.options().server);
    Add(Level::kFail, std::move(check), failure.what(), failure.way_out());
  }

  bool CheckReachable();
  void CheckHealth();
  void CheckLatency();
  void CheckVersion();
  void CheckDevices();
  void CheckKernels();
  void CheckProducts();
  void CheckExact(const std::string& id, const std::vector<int8_t>& weight);
  void CheckMessageLimits(const std::string& id, const std::vector<int8_t>& weight);
  void CheckClock(const client::WeightInfo& weight);
  // Sums of random activations by the server, compared with a plain product; how many are wrong.
  client::Result<int64_t> CountWrong(const std::string& id, const std::vector<int8_t>& weight,
                                     int64_t rows, const std::string& kernel);

  client::Client client_;
  std::vector<Finding> findings_;
  std::vector<std::string> usable_kernels_;
  std::vector<std::string> int8_kernels_;  // those of them that can compute the self-test
};

bool Doctor::CheckReachable() {
  const auto health = client_.CheckHealth();
  // UNIMPLEMENTED comes from something that speaks gRPC: reached, and the next check says more.
  const bool reached = health.ok() || health.status().code == client::Code::kUnimplemented;
  if (reached) Add(Level::kOk, "reachable", client_.options().server + " answers");
  else AddFailed("reachable", health.status());
  return reached;
}

void Doctor::CheckHealth() {
  for (const char* service : {"", "qmatmul.v1.MatMulService", "qmatmul.v1.WeightService"}) {
    const auto health = client_.CheckHealth(service);
    const std::string check = *service != '\0' ? std::string("health of ") + service : "health";
    if (!health.ok()) AddFailed(check, health.status());
    else if (*health == client::Health::kServing) Add(Level::kOk, check, "SERVING");
    else
      Add(Level::kFail, check, std::string(NameOf(*health)),
          "it is starting, draining, or no qmatmul server; its log says which");
  }
}

void Doctor::CheckLatency() {
  std::vector<int64_t> times;
  for (int i = 0; i < kLatencyCalls; ++i) {
    const auto start = std::chrono::steady_clock::now();
    if (!client_.CheckHealth().ok()) break;
    times.push_back((std::chrono::steady_clock::now() - start) / std::chrono::nanoseconds(1));
  }
  if (times.empty()) return;  // CheckHealth has said why
  std::sort(times.begin(), times.end());
  const int64_t median = times[times.size() / 2];
  Add(median <= kLatencyNsGood ? Level::kOk : Level::kWarn, "latency",
      "median " + DurationText(median) + ", worst " + DurationText(times.back()) + " of " +
          std::to_string(times.size()) + " round trips",
      "over a few ms small products wait for the network: move client and server closer, or send "
      "more rows a call");
}

void Doctor::CheckVersion() {
  const auto statistics = client_.GetStatistics();
  if (!statistics.ok()) return AddFailed("version", statistics.status());
  const std::string ours(client::Version());
  const std::string& theirs = statistics->version;
  const auto minor = [](const std::string& v) { return v.substr(0, v.rfind('.')); };
  Add(minor(ours) == minor(theirs) ? Level::kOk : Level::kWarn, "version",
      "server " + theirs + ", client " + ours, "use a client and a server of the same version");
}

void Doctor::CheckDevices() {
  const auto devices = client_.ListDevices();
  if (!devices.ok()) return AddFailed("devices", devices.status());
  for (const auto& d : *devices)
    Add(d.state == "ready" ? Level::kOk : Level::kFail, "device " + d.id,
        d.state + ", " + d.description + ", " + std::to_string(d.threads) + " threads, " +
            BytesText(d.memory_used_bytes) + " of " + BytesText(d.memory_bytes) + " hold weights",
        "the server's log says when and why it was lost; restart the server to open it again");
  if (devices->empty())
    Add(Level::kFail, "devices", "the server has none", "the server's log says why");
}

void Doctor::CheckKernels() {
  const auto kernels = client_.ListKernels();
  if (!kernels.ok()) return AddFailed("kernels", kernels.status());
  bool vector_kernel = false;
  for (const auto& k : *kernels) {
    if (k.quarantined)
      Add(Level::kWarn, "kernel " + k.name, "quarantined: " + k.reason,
          "it gave a wrong answer; re-arm it only when the cause is known");
    if (k.disabled)
      Add(Level::kWarn, "kernel " + k.name, "disabled", "QMATMUL_DISABLE_KERNELS names it");
    if (!k.supported || k.disabled || k.quarantined) continue;
    usable_kernels_.push_back(k.name);
    if (k.weight == DataType::kInt8 && k.arithmetic == client::Arithmetic::kW8A8)
      int8_kernels_.push_back(k.name);
    vector_kernel |= k.name.find(".scalar.") == std::string::npos;
  }
  std::string names;
  for (const std::string& name : usable_kernels_) names += (names.empty() ? "" : ", ") + name;
  Add(vector_kernel ? Level::kOk : Level::kWarn, "kernels",
      std::to_string(usable_kernels_.size()) + " of " + std::to_string(kernels->size()) +
          " usable here: " + names,
      "only the scalar kernel is left: right, but slow; an AVX2 machine is ~50 times faster");
}

client::Result<int64_t> Doctor::CountWrong(const std::string& id, const std::vector<int8_t>& weight,
                                           int64_t rows, const std::string& kernel) {
  const auto x = RandomInt8(static_cast<size_t>(rows * kSelfTestK), static_cast<uint64_t>(rows));
  client::Activations activations;
  activations.dtype = DataType::kInt8;
  activations.rows = rows;
  activations.k = kSelfTestK;
  activations.data = std::as_bytes(std::span(x));
  client::OutputSpec sums;
  sums.dtype = DataType::kInt32;
  client::MatMulOptions options;
  options.kernel = kernel;
  const auto output = client_.MatMul(id, activations, sums, options);
  if (!output.ok()) return output.status();
  const auto got = output->As<int32_t>();
  int64_t wrong = std::abs(static_cast<int64_t>(got.size()) - rows * kSelfTestN);
  for (int64_t i = 0; i < std::min<int64_t>(rows * kSelfTestN, std::ssize(got)); ++i) {
    int32_t expected = 0;
    for (int64_t k = 0; k < kSelfTestK; ++k)
      expected += x[static_cast<size_t>(i / kSelfTestN * kSelfTestK + k)] *
                  weight[static_cast<size_t>(k * kSelfTestN + i % kSelfTestN)];
    wrong += got[static_cast<size_t>(i)] != expected;
  }
  return wrong;
}

// The routed product first, then every usable kernel of INT8 weights by name.
void Doctor::CheckExact(const std::string& id, const std::vector<int8_t>& weight) {
  std::vector<std::string> kernels = {""};
  kernels.insert(kernels.end(), int8_kernels_.begin(), int8_kernels_.end());
  for (const std::string& kernel : kernels) {
    const std::string check = kernel.empty() ? "product" : "product by " + kernel;
    for (const int64_t rows : {int64_t{1}, kSelfTestRows}) {
      const auto wrong = CountWrong(id, weight, rows, kernel);
      if (!wrong.ok()) {
        AddFailed(check, wrong.status());
        continue;
      }
      Add(*wrong == 0 ? Level::kOk : Level::kFail, check,
          std::to_string(*wrong) + " of " + std::to_string(rows * kSelfTestN) +
              " sums wrong, M = " + std::to_string(rows),
          "do not trust this server; disable the kernel with QMATMUL_DISABLE_KERNELS and report "
          "it");
    }
  }
}

// A request and a reply that are each over gRPC's default limit.
void Doctor::CheckMessageLimits(const std::string& id, const std::vector<int8_t>& weight) {
  const int64_t rows = kGrpcMessageBytes / kSelfTestK + 1;  // the reply is 4 * 37 / 67 times larger
  const auto wrong = CountWrong(id, weight, rows, "");
  const std::string bytes =
      BytesText(rows * kSelfTestK) + " up, " + BytesText(rows * kSelfTestN * 4) + " down";
  if (wrong.ok())
    Add(*wrong == 0 ? Level::kOk : Level::kFail, "large messages",
        bytes + ", " + std::to_string(*wrong) + " sums wrong", "do not trust this server");
  else if (wrong.status().code == client::Code::kResourceExhausted && wrong.status().reason.empty())
    Add(Level::kWarn, "large messages", bytes + " refused: " + wrong.status().message,
        "the server or a proxy allows less than 64 MiB a message: send fewer rows a call, or raise "
        "it");
  else AddFailed("large messages", wrong.status());
}

void Doctor::CheckClock(const client::WeightInfo& weight) {
  const auto now =
      std::chrono::system_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
  const int64_t skew = std::abs(static_cast<int64_t>(now) - weight.create_time_ns);
  Add(skew <= kClockNsGood ? Level::kOk : Level::kWarn, "clock",
      "within " + DurationText(skew) + " of the server's",
      "set both clocks by NTP: logs and times of the two cannot be compared");
}

// What needs a weight: it is registered, used and deleted here.
void Doctor::CheckProducts() {
  const auto data = RandomInt8(static_cast<size_t>(kSelfTestK * kSelfTestN), 1);
  try {
    TemporaryWeight weight(client_, "qmatmul-doctor", kSelfTestK, kSelfTestN, data);
    Add(Level::kOk, "register", "a test weight of " + std::to_string(data.size()) + " bytes");
    CheckClock(weight.info());
    CheckExact(weight.id(), data);
    CheckMessageLimits(weight.id(), data);
    const auto freed = weight.Delete();
    if (freed.ok()) Add(Level::kOk, "delete", BytesText(*freed) + " freed");
    else AddFailed("delete", freed.status());
  } catch (const Failure& failure) {
    Add(Level::kFail, "register", failure.what(), failure.way_out());
  }
}

}  // namespace

int RunDoctor(const Arguments& arguments) {
  auto options = OptionsOf(arguments);
  options.connections = 1;
  Doctor doctor(options);
  const auto& findings = doctor.Examine();
  Json list = Json::array();
  int failed = 0, warned = 0;
  for (const Finding& finding : findings) {
    failed += finding.level == Level::kFail;
    warned += finding.level == Level::kWarn;
    list.push_back({{"level", NameOf(finding.level)},
                    {"check", finding.check},
                    {"detail", finding.detail},
                    {"way_out", finding.way_out}});
    if (arguments.Has("--json")) continue;
    std::printf("%-4s  %s: %s\n", std::string(NameOf(finding.level)).c_str(), finding.check.c_str(),
                finding.detail.c_str());
    if (!finding.way_out.empty()) std::printf("      %s\n", finding.way_out.c_str());
  }
  if (arguments.Has("--json"))
    PrintJson(
        {{"server", options.server}, {"failed", failed}, {"warned", warned}, {"findings", list}});
  else std::printf("%zu checks, %d failed, %d warnings\n", findings.size(), failed, warned);
  return failed == 0 ? kExitOk : kExitNo;
}

}  // namespace qmatmul::cli
