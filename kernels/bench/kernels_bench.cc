// kernels_bench: GOPS of every kernel by shape, its share of the roof measured in the same run, and
// its ratio to peers, interleaved. `kernels_bench --help` lists the options.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/bench/call_cost.h"
#include "kernels/bench/contest.h"
#include "kernels/bench/device_time.h"
#include "kernels/bench/roof.h"
#include "kernels/bench/team_contest.h"
#include "kernels/devices.h"

namespace qmatmul::bench {
namespace {

struct Shape3 {
  int64_t m, k, n;
};

struct Settings {
  std::vector<Shape3> shapes = {{1, 4096, 4096},    {1, 4096, 11008}, {4, 4096, 4096},
                                {8, 4096, 4096},    {16, 4096, 4096}, {64, 4096, 4096},
                                {256, 4096, 4096},  {1, 768, 768},    {32, 768, 3072},
                                {1024, 1024, 1024}, {7, 333, 517}};
  std::vector<int> threads = {1};
  std::vector<std::string> peers;
  std::string kernel;
  std::string python = "build/venv/bin/python";
  std::string weights = "uniform";
  DataType weight_type = DataType::kInt8;
  int64_t group_size = 0;
  DataType activations = DataType::kInt8;
  DataType output = DataType::kInt32;
  double seconds = 2.0;
  bool call_cost = false;
  bool teams = false;
  bool alone = false;
  bool json = false;
  bool device_time = false;
  bool shapes_given = false;
  std::string device;
};

constexpr char kHelp[] =
    "kernels_bench [options]\n"
    "  --shapes M,K,N;M,K,N…   default: the first eleven shapes of the README's table\n"
    "  --threads 1,2           team sizes to measure, default 1\n"
    "  --kernel NAME           force one kernel\n"
    "  --weights KIND          uniform (default), gaussian, laplace or file:PATH (K * N int8)\n"
    "  --weight-type TYPE      INT8 (default) or INT4\n"
    "  --group-size G          of INT4, default 128\n"
    "  --activations TYPE      INT8 (default), F32, F16, BF16 (quantized per row)\n"
    "  --output TYPE           INT32 (default), INT8, INT16, F32, F16, BF16\n"
    "  --peers onednn,onnxruntime   measure these too, interleaved\n"
    "  --python PATH           interpreter with onnxruntime, or torch, default "
    "build/venv/bin/python\n"
    "  --seconds S             per shape, default 2\n"
    "  --call-cost             instead: what a call costs beside its arithmetic, at one row\n"
    "  --teams                 instead: our thread team beside pthreadpool, by --threads\n"
    "  --alone                 instead: run each product for --seconds and measure nothing, for a "
    "profiler\n"
    "  --device ID             a device other than the CPU: its id or kind; host to host, by wall "
    "time\n"
    "  --device-time           instead: kernels of the first GPU alone, by events, beside "
    "cuBLASLt and torch\n"
    "  --json                  one JSON object a line\n"
    "One thread is timed by CPU time, several by wall time. Peers get the int8 problem with int32 "
    "sums.\n";

[[noreturn]] void Usage(const std::string& problem) {
  std::fprintf(stderr, "kernels_bench: %s\n%s", problem.c_str(), kHelp);
  std::exit(2);
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

DataType ParseType(const std::string& name) {
  for (DataType d : {DataType::kInt4, DataType::kInt8, DataType::kInt16, DataType::kInt32,
                     DataType::kF32, DataType::kF16, DataType::kBF16})
    if (name == NameOf(d)) return d;
  Usage("unknown type '" + name + "'");
}

Settings Parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= argc) Usage(option + " needs a value");
      return argv[++i];
    };
    if (option == "--help") {
      std::fputs(kHelp, stdout);
      std::exit(0);
    } else if (option == "--shapes") {
      s.shapes.clear();
      s.shapes_given = true;
      for (const std::string& part : Split(value(), ';')) {
        Shape3 x{};
        if (std::sscanf(part.c_str(), "%ld,%ld,%ld", &x.m, &x.k, &x.n) != 3 || x.m < 1 || x.k < 1 ||
            x.n < 1)
          Usage("shape '" + part + "' is not M,K,N with each at least 1");
        s.shapes.push_back(x);
      }
    } else if (option == "--threads") {
      s.threads.clear();
      for (const std::string& part : Split(value(), ','))
        s.threads.push_back(std::max(1, std::atoi(part.c_str())));
    } else if (option == "--kernel") s.kernel = value();
    else if (option == "--weights") s.weights = value();
    else if (option == "--weight-type") s.weight_type = ParseType(value());
    else if (option == "--group-size") s.group_size = std::atoll(value().c_str());
    else if (option == "--activations") s.activations = ParseType(value());
    else if (option == "--output") s.output = ParseType(value());
    else if (option == "--peers") s.peers = Split(value(), ',');
    else if (option == "--python") s.python = value();
    else if (option == "--seconds") s.seconds = std::atof(value().c_str());
    else if (option == "--call-cost") s.call_cost = true;
    else if (option == "--teams") s.teams = true;
    else if (option == "--alone") s.alone = true;
    else if (option == "--json") s.json = true;
    else if (option == "--device") s.device = value();
    else if (option == "--device-time") s.device_time = true;
    else Usage("unknown option '" + option + "'");
  }
  if (s.weight_type == DataType::kInt4 && s.group_size == 0) s.group_size = 128;
  if (!s.device.empty())
    s.threads = {2};  // more than one: by wall time, since another processor computes
  return s;
}

struct PeerResult {
  std::string name;
  double gops;
  bool exact;
  double ratio;  // ours to theirs
};

// Exact on this problem and on one of extreme values, where saturating paths show themselves.
bool PeerIsExact(Peer* peer, const Problem& p) {
  std::vector<int8_t> activations(p.activations.size(), 127), weight(p.weight.size(), 127);
  const Problem extreme{p.m, p.k, p.n, p.threads, activations, weight};
  bool exact = true;
  for (const Problem* problem : {&extreme, &p}) {
    if (!peer->Prepare(*problem)) return false;
    peer->Run(1);
    exact = exact && CountWrong(*problem, peer->result()) == 0;
  }
  return exact;
}

// One line of the answer.
struct Measured {
  Shape3 shape;
  int threads;
  std::string kernel;
  double gops, gops_best;
  double probe_share;  // of the kernel's own tile on data in L1, a thread
  double roof_gops;    // the lower of the instruction set's and the memory's
  double roof_share;
  double read_gbps;  // reading as many bytes as the weight has
  double pack_gbps;
  std::vector<PeerResult> peers;
};

void PrintText(const Measured& x) {
  std::printf("%6ld %6ld %6ld  %d  %-34s %8.1f GOPS (best %.1f)", x.shape.m, x.shape.k, x.shape.n,
              x.threads, x.kernel.c_str(), x.gops, x.gops_best);
  if (x.roof_gops > 0) std::printf("  %5.1f %% of roof", 100 * x.roof_share);
  for (const PeerResult& p : x.peers)
    std::printf("  | %s %.1f%s ratio %.2f", p.name.c_str(), p.gops, p.exact ? "" : " (inexact)",
                p.ratio);
  std::printf("\n");
}

void PrintJson(const Settings& s, const Measured& x) {
  std::printf("{\"m\":%ld,\"k\":%ld,\"n\":%ld,\"threads\":%d,\"kernel\":\"%s\",", x.shape.m,
              x.shape.k, x.shape.n, x.threads, x.kernel.c_str());
  std::printf("\"weights\":\"%s\",\"weight_type\":\"%s\",\"activations\":\"%s\",\"output\":\"%s\",",
              s.weights.c_str(), std::string(NameOf(s.weight_type)).c_str(),
              std::string(NameOf(s.activations)).c_str(), std::string(NameOf(s.output)).c_str());
  std::printf("\"gops\":%.1f,\"gops_best\":%.1f,\"roof_gops\":%.1f,\"roof_share\":%.3f,", x.gops,
              x.gops_best, x.roof_gops, x.roof_share);
  std::printf("\"probe_share\":%.3f,\"read_gbps\":%.1f,\"pack_gbps\":%.2f,\"peers\":[",
              x.probe_share, x.read_gbps, x.pack_gbps);
  for (size_t i = 0; i < x.peers.size(); ++i)
    std::printf("%s{\"name\":\"%s\",\"gops\":%.1f,\"exact\":%s,\"ratio\":%.3f}", i ? "," : "",
                x.peers[i].name.c_str(), x.peers[i].gops, x.peers[i].exact ? "true" : "false",
                x.peers[i].ratio);
  std::printf("]}\n");
}

std::vector<int8_t> MakeActivations(const Shape3& shape) {
  std::vector<int8_t> activations(size_t(shape.m * shape.k));
  std::mt19937 generator(7);
  for (int8_t& a : activations) a = static_cast<int8_t>(generator());
  return activations;
}

// The operands of one measurement, and our side of it.
struct Subject {
  Subject(const Settings& s, const Shape3& shape, int threads, Device* device)
      : weight(MakeWeight(s.weights, shape.k, shape.n)),
        activations(MakeActivations(shape)),
        problem{shape.m, shape.k, shape.n, threads, activations, weight},
        own(device, problem, s.weight_type, s.group_size, s.activations, {.dtype = s.output},
            s.kernel) {}

  const std::vector<int8_t> weight;
  const std::vector<int8_t> activations;
  const Problem problem;
  OwnProduct own;
};

void RunAlone(const Settings& s, const Shape3& shape, int threads, Device* device) {
  Subject subject(s, shape, threads, device);
  for (double ns = 0; ns < s.seconds * 1e9;) ns += subject.own.Run(1);
}

void MeasureShape(const Settings& s, const Shape3& shape, int threads, Device* device, Roof* roof,
                  std::vector<std::unique_ptr<Peer>>* peers,
                  std::vector<std::pair<std::string, double>>* logs) {
  Subject subject(s, shape, threads, device);
  OwnProduct& own = subject.own;
  const Problem& problem = subject.problem;
  std::vector<Contender> contenders = {{"qmatmul", [&own](int count) { return own.Run(count); }}};
  own.Run(1);  // which says what kernel it takes
  const std::string kernel(own.kernel());
  const bool cpu = device->info().kind == "cpu";  // whose roofs are known
  std::unique_ptr<Probe> probe;
  Peak peak(kernel);
  if (cpu) {
    probe = std::make_unique<Probe>(kernel);
    contenders.push_back({"probe", [&probe](int count) { return probe->Run(count); }});
    if (peak.is_known())
      contenders.push_back({"peak", [&peak](int count) { return peak.Run(count); }});
  }
  const size_t peers_begin = contenders.size();
  std::vector<bool> exact;
  for (auto& peer : *peers) {
    exact.push_back(PeerIsExact(peer.get(), problem));
    contenders.push_back({peer->name(), [&peer](int count) { return peer->Run(count); }});
  }
  Compete(&contenders, 31, s.seconds * double(contenders.size()));
  if (s.weight_type == DataType::kInt8 && s.activations == DataType::kInt8 &&
      s.output == DataType::kInt32) {
    const auto* sums = reinterpret_cast<const int32_t*>(own.output().data());
    if (CountWrong(problem, {sums, size_t(shape.m * shape.n)}) != 0) {
      std::fprintf(stderr, "kernels_bench: WRONG result of %s\n",
                   std::string(own.kernel()).c_str());
      std::exit(1);
    }
  }
  const double ops = 2.0 * double(shape.m) * double(shape.k) * double(shape.n);
  const double read_gbps = roof->ReadGBps(own.weight().spec().data_bytes());
  double probe_share = 0, roof_gops = 0, roof_share = 0;
  if (cpu) {
    probe_share = contenders[0].RatioOf(contenders[1]) * ops / probe->ops() / threads;
    roof_gops = 2.0 * double(shape.m) * read_gbps;  // the weight is read once a call
    roof_share = ops / contenders[0].best_ns / roof_gops;
    const double peak_gops =
        peak.is_known() ? threads * peak.ops() / contenders[2].median_ns : roof_gops;
    if (peak_gops < roof_gops) {
      roof_gops = peak_gops;
      roof_share = contenders[0].RatioOf(contenders[2]) * ops / peak.ops() / threads;
    }
  }
  Measured x{shape,
             threads,
             kernel,
             ops / contenders[0].median_ns,
             ops / contenders[0].best_ns,
             probe_share,
             roof_gops,
             roof_share,
             read_gbps,
             own.pack_gbps(),
             {}};
  for (size_t i = peers_begin; i < contenders.size(); ++i) {
    const double ratio = contenders[0].RatioOf(contenders[i]);
    x.peers.push_back(
        {contenders[i].name, ops / contenders[i].median_ns, exact[i - peers_begin], ratio});
    logs->push_back({contenders[i].name, std::log(ratio)});
  }
  s.json ? PrintJson(s, x) : PrintText(x);
  std::fflush(stdout);
}

void PrintMeans(const std::vector<std::pair<std::string, double>>& logs,
                std::vector<std::unique_ptr<Peer>>* peers) {
  for (auto& peer : *peers) {
    double sum = 0;
    int count = 0;
    for (const auto& [name, log] : logs)
      if (name == peer->name()) {
        sum += log;
        ++count;
      }
    if (count > 0)
      std::printf("geometric mean of the ratio to %s over %d rows: %.2f\n", peer->name().c_str(),
                  count, std::exp(sum / count));
  }
}

// The CPU is always the first.
Device* Named(const std::vector<std::unique_ptr<Device>>& devices, const std::string& name) {
  if (name.empty()) return devices[0].get();
  for (const auto& device : devices)
    if (device->info().id == name || device->info().kind == name) return device.get();
  Usage("device '" + name + "' is not on this machine, or not in this build");
}

int Main(int argc, char** argv) {
  const Settings s = Parse(argc, argv);
  if (s.call_cost) {
    PrintCallCosts(s.json);
    return 0;
  }
  if (s.teams) {
    for (const int threads : s.threads) PrintTeams(threads, s.seconds, s.json);
    return 0;
  }
  if (s.device_time) {
    DeviceTimeSettings times{{}, s.kernel, s.python, s.json};
    if (s.shapes_given)
      for (const Shape3& x : s.shapes) times.shapes.push_back({x.m, x.k, x.n});
    return PrintDeviceTimes(times);
  }
  std::vector<std::unique_ptr<Peer>> peers;
  for (const std::string& name : s.peers) {
    auto made = name == "onnxruntime" ? MakeOnnxRuntimePeers(s.python) : MakePeers(name);
    if (made.empty())
      Usage(
          "peer '" + name +
          "' is unknown or not in this build (deploy/install-deps --peers, then configure again)");
    for (auto& peer : made) peers.push_back(std::move(peer));
  }
  std::vector<std::pair<std::string, double>> logs;
  for (int threads : s.threads) {
    DeviceOptions options;
    options.threads = threads;
    options.team_spin_us_max = 50;
    auto devices = OpenDevices(options);
    Device* const device = Named(devices, s.device);
    if (s.alone) {
      for (const Shape3& shape : s.shapes) RunAlone(s, shape, threads, device);
      continue;
    }
    if (!s.json) std::printf("# %s, %d thread(s)\n", device->info().description.c_str(), threads);
    Roof roof(threads);
    for (const Shape3& shape : s.shapes)
      MeasureShape(s, shape, threads, device, &roof, &peers, &logs);
  }
  if (!s.json) PrintMeans(logs, &peers);
  return 0;
}

}  // namespace
}  // namespace qmatmul::bench

int main(int argc, char** argv) { return qmatmul::bench::Main(argc, argv); }
