// qmatmul bench.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "client/cli/bench_target.h"
#include "client/cli/commands.h"
#include "client/cli/console.h"
#include "client/cli/json.h"

namespace qmatmul::cli {
namespace {

using std::chrono::steady_clock;

constexpr int64_t kRowsMax = 65'536;
// The scalar kernel's GOPS do not grow with M; measuring it at more rows would only take longer.
constexpr int64_t kScalarRowsMax = 8;
// Each side is measured in so many slices, and the sides take turns.
constexpr int kSlices = 5;

// One figure to measure, and what was measured.
struct Side {
  int64_t rows = 0;
  int64_t threads = 0;
  std::string kernel;  // forced; empty: the target chooses
  std::vector<int64_t> total_ns = {};
  std::vector<int64_t> compute_ns = {};
  BenchSample last = {};
};

int64_t Median(std::vector<int64_t> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double Gops(const BenchShape& shape, int64_t rows, int64_t ns) {
  const double ops =
      2.0 * static_cast<double>(rows) * static_cast<double>(shape.k) * static_cast<double>(shape.n);
  return ops / static_cast<double>(std::max<int64_t>(ns, 1));
}

double Gops(const BenchShape& shape, const Side& side) {
  return Gops(shape, side.rows, Median(side.total_ns));
}

// Of the device alone: what a round trip adds is no part of a comparison of kernels.
double ComputeGops(const BenchShape& shape, const Side& side) {
  return Gops(shape, side.rows, Median(side.compute_ns));
}

// Interleaved: slice by slice, every side in turn.
void Measure(BenchTarget& target, double seconds, std::vector<Side>* sides) {
  for (Side& side : *sides) target.Run(side.rows, side.threads, side.kernel);  // warm up
  const auto slice = std::chrono::duration_cast<steady_clock::duration>(
      std::chrono::duration<double>(seconds / kSlices));
  for (int i = 0; i < kSlices; ++i) {
    for (Side& side : *sides) {
      const auto until = steady_clock::now() + slice;
      do {
        side.last = target.Run(side.rows, side.threads, side.kernel);
        side.total_ns.push_back(side.last.total_ns);
        side.compute_ns.push_back(side.last.compute_ns);
      } while (steady_clock::now() < until);
    }
  }
}

struct Plan {
  BenchShape shape;
  std::vector<int64_t> rows;
  std::vector<int64_t> threads;
  std::string kernel;
  double seconds = 0;
  bool json = false;
};

Json SideJson(const BenchShape& shape, const Side& side) {
  Json json = {{"rows", side.rows}, {"kernel", side.last.kernel}};
  if (side.threads > 0) json["threads"] = side.threads;
  json["padded_rows"] = side.last.padded_rows;
  json["gops"] = Gops(shape, side);
  json["compute_gops"] = ComputeGops(shape, side);
  json["median_us"] = static_cast<double>(Median(side.total_ns)) / 1e3;
  json["compute_us"] = static_cast<double>(Median(side.compute_ns)) / 1e3;
  json["runs"] = side.total_ns.size();
  return json;
}

Json Header(const BenchTarget& target, const BenchShape& shape) {
  return {{"where", target.where()}, {"k", shape.k}, {"n", shape.n}};
}

std::pair<std::string, std::string> SplitPair(const std::string& text) {
  const size_t comma = text.find(',');
  if (comma == std::string::npos || comma == 0 || comma + 1 == text.size() ||
      text.find(',', comma + 1) != std::string::npos)
    throw Failure(kExitUsage, "--ab " + text + " is not two kernels",
                  "write --ab avx2,scalar or two full names");
  return {text.substr(0, comma), text.substr(comma + 1)};
}

// Two kernels by turns: seeds row T5.
int RunAb(BenchTarget& target, const Plan& plan, const std::string& ab) {
  const auto [a, b] = SplitPair(ab);
  const int64_t threads = plan.threads.back();
  Json results = Json::array();
  TextTable table({"M", "A", "GOPS", "B", "GOPS", "A/B"});
  for (int64_t rows : plan.rows) {
    std::vector<Side> sides = {{rows, threads, ResolveKernel(target, rows, a)},
                               {rows, threads, ResolveKernel(target, rows, b)}};
    Measure(target, plan.seconds, &sides);
    const double gops_a = ComputeGops(plan.shape, sides[0]);
    const double gops_b = ComputeGops(plan.shape, sides[1]);
    results.push_back({{"rows", rows},
                       {"a", SideJson(plan.shape, sides[0])},
                       {"b", SideJson(plan.shape, sides[1])},
                       {"ratio", gops_a / gops_b}});
    table.Add({std::to_string(rows), sides[0].last.kernel, FixedText(gops_a, 1),
               sides[1].last.kernel, FixedText(gops_b, 1), FixedText(gops_a / gops_b, 2)});
  }
  if (plan.json) {
    Json json = Header(target, plan.shape);
    json["ab"] = results;
    PrintJson(json);
  } else {
    std::printf(
        "%s, K=%lld N=%lld, %s threads; A and B by turns, compute time\n%s", target.where().c_str(),
        static_cast<long long>(plan.shape.k), static_cast<long long>(plan.shape.n),
        threads > 0 ? std::to_string(threads).c_str() : "the server's", table.ToString().c_str());
  }
  return kExitOk;
}

// GOPS per M and team size, with the ratio to the scalar kernel and to one thread.
int RunInProcess(BenchTarget& target, const Plan& plan) {
  Json results = Json::array();
  TextTable table({"M", "THREADS", "KERNEL", "GOPS", "/SCALAR", "/1 THREAD", "MEDIAN"});
  for (int64_t rows : plan.rows) {
    const std::string kernel =
        plan.kernel.empty() ? std::string() : ResolveKernel(target, rows, plan.kernel);
    std::vector<Side> sides;
    for (int64_t threads : plan.threads) sides.push_back({rows, threads, kernel});
    const int64_t scalar_rows = std::min(rows, kScalarRowsMax);
    sides.push_back({scalar_rows, 1, ResolveKernel(target, scalar_rows, "scalar")});
    Measure(target, plan.seconds, &sides);
    const double scalar = Gops(plan.shape, sides.back());
    const auto single = std::find_if(sides.begin(), sides.end() - 1,
                                     [](const Side& side) { return side.threads == 1; });
    for (auto side = sides.begin(); side != sides.end() - 1; ++side) {
      const double gops = Gops(plan.shape, *side);
      Json json = SideJson(plan.shape, *side);
      json["ratio_to_scalar"] = gops / scalar;
      std::string to_single = "-";
      if (single != sides.end() - 1) {
        json["ratio_to_one_thread"] = gops / Gops(plan.shape, *single);
        to_single = FixedText(gops / Gops(plan.shape, *single), 2);
      }
      results.push_back(json);
      table.Add({std::to_string(rows), std::to_string(side->threads), side->last.kernel,
                 FixedText(gops, 1), FixedText(gops / scalar, 1), to_single,
                 DurationText(Median(side->total_ns))});
    }
  }
  if (plan.json) {
    Json json = Header(target, plan.shape);
    json["scalar_rows_max"] = kScalarRowsMax;
    json["results"] = results;
    PrintJson(json);
  } else {
    std::printf("%s, K=%lld N=%lld; scalar: one thread, at most %lld rows\n%s",
                target.where().c_str(), static_cast<long long>(plan.shape.k),
                static_cast<long long>(plan.shape.n), static_cast<long long>(kScalarRowsMax),
                table.ToString().c_str());
  }
  return kExitOk;
}

// What was typed for one way of measuring is not left unheard by another.
void CheckOptionsFit(const Arguments& arguments, bool local) {
  if (!local && arguments.Has("--threads"))
    throw Failure(kExitUsage, "--threads needs --in-process: a server's team is its own");
  if (!local && !arguments.Has("--ab")) return;
  const std::string mode = local ? "--in-process" : "--ab";
  for (const char* name : {"--concurrency",
                           "--rate",
                           "--arrivals",
                           "--mix",
                           "--weight",
                           "--shape",
                           "--together",
                           "--cases",
                           "--verify",
                           "--requests",
                           "--latency-limit-ms",
                           "--stream",
                           "--connections",
                           "--metrics",
                           "--routing-header",
                           "--throttle",
                           "--calls",
                           "--csv",
                           "--out",
                           "--seed"})
    if (arguments.Has(name))
      throw Failure(kExitUsage,
                    std::string(name) + " is for loading a server and does not go with " + mode,
                    "leave " + mode + " out, or leave " + name + " out");
}

}  // namespace

std::string ResolveKernel(BenchTarget& target, int64_t rows, std::string_view pattern) {
  const auto dotted = [](std::string_view text) { return "." + std::string(text) + "."; };
  std::string known;
  for (const std::string& name : target.KernelsFor(rows)) {
    if (dotted(name).find(dotted(pattern)) != std::string::npos) return name;
    known += (known.empty() ? "" : ", ") + name;
  }
  throw Failure(kExitUsage, "no kernel that can run here is called '" + std::string(pattern) + "'",
                "there are " + known);
}

int RunBench(const Arguments& arguments) {
  const bool local = arguments.Has("--in-process");
  CheckOptionsFit(arguments, local);
  if (!local && !arguments.Has("--ab")) return RunBenchLoad(arguments);
  constexpr int64_t kInnerMax = 131'071;  // the contract's
  constexpr int64_t kColumnsMax = int64_t{1} << 24;
  constexpr int64_t kThreadsMax = 1024;
  Plan plan;
  plan.rows = arguments.Integers("--rows", kBenchRows, 1, kRowsMax);
  plan.shape.k = arguments.Integer("--k", 4096, 1, kInnerMax);
  plan.shape.n = arguments.Integer("--n", 4096, 1, kColumnsMax);
  plan.shape.rows_max = *std::max_element(plan.rows.begin(), plan.rows.end());
  plan.kernel = arguments.Text("--kernel").value_or("");
  plan.seconds = arguments.Number("--seconds", 0.3, 0.001, 3600);
  plan.json = arguments.Has("--json");
  const auto ab = arguments.Text("--ab");
  if (ab) SplitPair(*ab);  // a wrong one is said before anything is uploaded
  const auto threads = arguments.Integers("--threads", {}, 1, kThreadsMax);
  const int64_t threads_max =
      threads.empty() ? 0 : *std::max_element(threads.begin(), threads.end());
  const auto target = local ? OpenLocalTarget(plan.shape, threads_max)
                            : OpenServerTarget(plan.shape, OptionsOf(arguments));
  plan.threads = threads.empty() ? target->thread_counts() : threads;
  if (ab) return RunAb(*target, plan, *ab);
  return RunInProcess(*target, plan);
}

}  // namespace qmatmul::cli
