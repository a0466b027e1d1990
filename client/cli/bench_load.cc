// qmatmul bench against a server: the load tester.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <list>
#include <thread>

#include "client/cli/bench_target.h"
#include "client/cli/commands.h"
#include "client/cli/load_options.h"
#include "client/cli/load_report.h"
#include "client/cli/metrics_text.h"
#include "client/cli/temporary_weight.h"

namespace qmatmul::cli {
namespace {

using client::LoadProgress;
using client::LoadReply;

constexpr auto kConnectWait = std::chrono::seconds(5);
constexpr auto kThrottleForgets = std::chrono::milliseconds(1'100);
constexpr int64_t kInFlightMax = 16'384;
constexpr int64_t kCallsMax = int64_t{1} << 40;
constexpr double kRateMax = 1e7;
constexpr double kSecondsMax = 86'400;

// How hard: so many in flight, or so many a second.
struct Level {
  int64_t in_flight = 0;
  double rate = 0;
};

// The line under which a long run can be watched; silent unless stderr is a terminal.
class ProgressLine {
 public:
  explicit ProgressLine(std::string label)
      : label_(std::move(label)), terminal_(isatty(STDERR_FILENO) == 1) {}
  ~ProgressLine() {
    if (terminal_) std::fputs("\r\x1b[K", stderr);
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  void Show(const LoadProgress& progress) {
    if (!terminal_) return;
    std::fprintf(stderr, "\r\x1b[K%s: %.1f s, %lld calls, %lld failed, %lld in flight",
                 label_.c_str(), progress.seconds, static_cast<long long>(progress.ok),
                 static_cast<long long>(progress.failed),
                 static_cast<long long>(progress.in_flight));
    std::fflush(stderr);
  }

 private:
  std::string label_;
  bool terminal_;
};

std::vector<Level> LevelsOf(const Arguments& arguments) {
  if (arguments.Has("--rate") && arguments.Has("--concurrency"))
    throw Failure(kExitUsage, "--rate and --concurrency exclude each other",
                  "--concurrency waits for replies before it sends more, --rate does not");
  if (arguments.Has("--rate")) return {{0, arguments.Number("--rate", 0, 1e-3, kRateMax)}};
  std::vector<Level> levels;
  for (int64_t count : arguments.Integers("--concurrency", {1}, 1, kInFlightMax))
    levels.push_back({count, 0});
  return levels;
}

bool PoissonOf(const Arguments& arguments) {
  const std::string text = arguments.Text("--arrivals").value_or("poisson");
  if (text != "poisson" && text != "constant")
    throw Failure(kExitUsage, "--arrivals " + text + " is neither poisson nor constant");
  return text == "poisson";
}

std::string NamesOf(const std::vector<LoadWeight>& weights) {
  std::string names;
  for (const LoadWeight& weight : weights)
    names += (names.empty() ? "" : ",") + weight.id + " [" + std::to_string(weight.k) + "," +
             std::to_string(weight.n) + "]";
  return names;
}

// Every request once, before anything is measured: caches are warm, and one that is refused says so
// in full.
void WarmUp(client::LoadClient* load, const std::vector<client::LoadItem>& items) {
  std::vector<client::Status> statuses(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    load->Send(items[i].call, [&statuses, i](const LoadReply& reply) {
      if (!reply.ok()) statuses[i] = reply.status();
    });
    load->Drain();
    if (!statuses[i].ok()) throw Failure(statuses[i], load->options().server);
  }
}

// Do the reply's outputs, one after the other, have these bytes?
bool SameBytes(const LoadReply& reply, std::span<const std::byte> expected) {
  const auto outputs = reply.Outputs();
  if (!outputs.ok()) return false;
  size_t at = 0;
  for (const client::Output& output : *outputs) {
    if (output.bytes.size() > expected.size() - at) return false;
    if (!std::ranges::equal(std::as_bytes(std::span(output.bytes)),
                            expected.subspan(at, output.bytes.size())))
      return false;
    at += output.bytes.size();
  }
  return at == expected.size();
}

class LoadBench {
 public:
  explicit LoadBench(const Arguments& arguments)
      : arguments_(arguments),
        client_(OptionsOf(arguments)),
        poisson_(PoissonOf(arguments)),
        verify_(arguments.Number("--verify", 0, 0, 1)),
        limit_ms_(arguments.Number("--latency-limit-ms", 0, 1e-3, 1e9)),
        calls_path_(arguments.Text("--calls").value_or("")),
        page_(arguments.Text("--metrics").value_or("")) {}

  int Run() {
    const std::vector<Level> levels = LevelsOf(arguments_);
    std::vector<LoadMix> mixes = MixesOf(arguments_, kBenchRows);
    std::vector<LoadCases> runs;
    if (const auto path = arguments_.Text("--cases")) {
      runs.push_back(ReadCases(*path));
      mixes = {{.name = "cases", .rows = {}}};
      Register(&runs[0].weights);
    } else {
      std::vector<LoadWeight> weights = Weights();
      for (const LoadMix& mix : mixes) runs.push_back(CasesOf(arguments_, weights, mix));
    }
    Connect();
    TextTable table = LoadTable();
    for (size_t i = 0; i < runs.size(); ++i) Sweep(mixes[i], runs[i], levels, &table);
    if (!arguments_.Has("--json") && !arguments_.Has("--csv"))
      std::printf("server %s, %s, %d connection%s%s; latencies as the client saw them\n%s%s",
                  client_.options().server.c_str(), NamesOf(runs[0].weights).c_str(),
                  load_->options().connections, load_->options().connections == 1 ? "" : "s",
                  load_->options().stream ? ", one stream each" : "", table.ToString().c_str(),
                  remarks_.c_str());
    if (wrong_ > 0)
      throw Failure(kExitServer,
                    std::to_string(wrong_) + " replies differ from the reference in some byte",
                    "`qmatmul doctor` shows which kernel");
    if (answered_ == 0) throw Failure(kExitUnreachable, "no call was answered with a result");
    return kExitOk;
  }

 private:
  std::vector<LoadWeight> Weights() {
    std::vector<LoadWeight> weights = NamedWeights(arguments_, &client_);
    if (!weights.empty() && verify_ > 0)
      throw Failure(kExitUsage,
                    "--verify needs to know the weight's numbers, and --weight names one",
                    "use --shape KxN or --cases FILE.json: their numbers are made here");
    std::vector<LoadWeight> shaped = ShapedWeights(arguments_);
    if (weights.empty() && shaped.empty()) {
      const int64_t k = arguments_.Integer("--k", 4096, 1, 131'071);
      const int64_t n = arguments_.Integer("--n", 4096, 1, int64_t{1} << 24);
      shaped.push_back(RandomWeight("qmatmul-bench", k, n, 2));
    }
    Register(&shaped);
    weights.insert(weights.end(), shaped.begin(), shaped.end());
    return weights;
  }

  // For the time of this object, under names of their own.
  void Register(std::vector<LoadWeight>* weights) {
    for (LoadWeight& weight : *weights) {
      registered_.emplace_back(client_, weight.Upload());
      weight.id = registered_.back().id();
    }
  }

  void Connect() {
    client::LoadOptions options;
    options.server = client_.options().server;
    options.timeout = client_.options().timeout;
    options.message_bytes_max = client_.options().message_bytes_max;
    options.connections = static_cast<int>(arguments_.Integer("--connections", 1, 1, 256));
    options.stream = arguments_.Has("--stream");
    options.routing_header = arguments_.Has("--routing-header");
    if (arguments_.Has("--throttle")) {
      if (!arguments_.Has("--rate"))
        throw Failure(kExitUsage, "--throttle goes with --rate",
                      "--concurrency waits for replies, which holds calls back by itself");
      options.sent_per_accepted = client::RetryOptions().sent_per_accepted;
    }
    load_ = std::make_unique<client::LoadClient>(options);
    if (const auto status = load_->Connect(kConnectWait); !status.ok())
      throw Failure(status, options.server);
  }

  void Sweep(const LoadMix& mix, const LoadCases& cases, const std::vector<Level>& levels,
             TextTable* table) {
    client::LoadPlan plan;
    plan.items = cases.Items();
    plan.poisson = poisson_;
    plan.calls_max = arguments_.Integer("--requests", 0, 1, kCallsMax);
    plan.seconds = arguments_.Number("--seconds", plan.calls_max > 0 ? 0 : 1.0, 0.001, kSecondsMax);
    plan.seed = static_cast<uint64_t>(arguments_.Integer("--seed", 1, 0, int64_t{1} << 62));
    plan.latency_limit_s = limit_ms_ / 1e3;
    plan.check_share = verify_;
    plan.keep_calls = !calls_path_.empty();
    std::vector<std::vector<std::byte>> expected;
    if (verify_ > 0) expected = ReferenceBytes(cases);
    plan.check = [&expected](size_t item, const LoadReply& reply) {
      return SameBytes(reply, expected[item]);
    };
    // What the run before was refused is forgotten after a second.
    if (load_->options().sent_per_accepted > 0) std::this_thread::sleep_for(kThrottleForgets);
    WarmUp(load_.get(), plan.items);
    for (const Level& level : levels) {
      ProgressLine line(mix.name + " rows");
      plan.progress = [&line](const LoadProgress& progress) { line.Show(progress); };
      plan.in_flight = level.in_flight;
      plan.rate = level.rate;
      const auto before = page_.empty() ? std::map<std::string, double>() : ReadMetrics(page_);
      LoadReport report;
      report.result = client::RunLoad(load_.get(), plan);
      if (!page_.empty()) report.server_page_us = MeanTimes(before, ReadMetrics(page_));
      report.mix = mix.name;
      report.weights = NamesOf(cases.weights);
      report.in_flight = level.in_flight;
      report.rate = level.rate;
      Tell(&report, table);
    }
  }

  void Tell(LoadReport* report, TextTable* table) {
    report->server = client_.options().server;
    report->poisson = poisson_;
    report->stream = load_->options().stream;
    report->connections = load_->options().connections;
    report->latency_limit_ms = limit_ms_;
    answered_ += report->result->ok;
    wrong_ += report->result->wrong;
    WriteCalls(report->result->calls);
    const Json json = ToJson(*report);
    if (arguments_.Has("--json")) {
      std::printf("%s\n", json.dump().c_str());
    } else if (arguments_.Has("--csv")) {
      if (lines_++ == 0) std::fputs(CsvHeader(json).c_str(), stdout);
      std::fputs(CsvLine(json).c_str(), stdout);
    } else {
      AddTo(table, *report);
      remarks_ += Remarks(*report);
    }
    std::fflush(stdout);
  }

  void WriteCalls(const std::vector<client::LoadedCall>& calls) const {
    if (calls_path_.empty()) return;
    std::ofstream file(calls_path_, std::ios::trunc);
    file << "intended_ns,sent_ns,done_ns,rows,code\n";
    for (const client::LoadedCall& call : calls)
      file << call.intended_ns << ',' << call.sent_ns << ',' << call.done_ns << ',' << call.rows
           << ',' << client::NameOf(call.code) << '\n';
    if (!file.flush()) throw Failure(kExitFile, calls_path_ + ": cannot be written");
  }

  const Arguments& arguments_;
  client::Client client_;
  bool poisson_;
  double verify_;
  double limit_ms_;
  std::string calls_path_;
  std::string page_;
  std::list<TemporaryWeight> registered_;
  std::unique_ptr<client::LoadClient> load_;
  std::string remarks_;
  int64_t answered_ = 0;
  int64_t wrong_ = 0;
  int lines_ = 0;
};

}  // namespace

int RunBenchLoad(const Arguments& arguments) { return LoadBench(arguments).Run(); }

}  // namespace qmatmul::cli
