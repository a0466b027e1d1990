#include "kernels/cpu/calibration.h"

#include <elf.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#include "kernels/cpu/activation_packer.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/tile_loop.h"

namespace qmatmul::cpu {
namespace {

constexpr char kMagic[] = "qmatmul-calibration/3";
// Lines of the probe's panel: 512 values of K, which stay in L1.
constexpr int64_t kProbeLines = 128;
constexpr int kSamples = 5;
// A weight that streams past, as the last-level cache holds it.
constexpr int64_t kStreamK = 4096, kStreamN = 2048;
constexpr double kStreamNsMax = 1e6;
// Weights up to this are taken to be in L1, or near it.
constexpr int64_t kL1Bytes = int64_t{64} << 10;
// Weights beyond this are taken to come from DRAM.
constexpr int64_t kLlcBytes = int64_t{16} << 20;
// What else may be touched ahead, where it takes less than this share of the time: by that much it is no noise. Nothing
// only for one row, which is too busy loading; a tile gains little by it, and loses where the cache is shared and the
// weight comes from DRAM after all.
constexpr int64_t kAheadOthers[] = {0, 10240};
constexpr double kAheadGain = 0.95;

int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

// How many units cover so many.
double Cover(int64_t count, int64_t unit) {
  const int64_t units = (count + unit - 1) / unit;
  return double(units);
}

// What two times take that pass side by side.
double Overlap(double a, double b) { return std::max(a, b) + std::min(a, b) / 8; }

// Of one line of one panel, for all rows: cleaned once for each block of rows, put back for each strip.
double OutliersNs(const MicroKernel& kernel, const KernelCost& cost, const KernelQuery& query,
                  int64_t strips, double lines) {
  const double blocks = Cover(query.rows, BlockRowsMax(kernel, query.k));
  const double outliers = query.outlier_share * double(kLineValues);
  // Outliers are put back for a few lines at a time, by a call where there are any.
  const int64_t block_lines = BlockKMax(kernel) / kLineK;
  const double call_lines = std::min(lines, double(block_lines));
  const double calls = std::min(1.0, outliers * call_lines) / call_lines;
  return blocks * (cost.clean_ns + outliers * cost.aside_ns) +
         double(strips) * (outliers * cost.add_ns + calls * cost.add_call_ns);
}

// The least of a few samples of `repeats` calls, per call: what it takes when nobody disturbs.
template <typename F>
double LeastNs(int repeats, const F& call) {
  double least = 1e18;
  for (int i = 0; i < kSamples; ++i) {
    const int64_t start = NowNs();
    for (int j = 0; j < repeats; ++j) call();
    least = std::min(least, double(NowNs() - start) / repeats);
  }
  return least;
}

// A panel with an outlier on every other line or so.
int64_t PutOutliers(uint32_t seed, uint8_t* panel, int64_t lines) {
  uint32_t state = seed;
  int64_t count = 0;
  for (int64_t i = 0; i < lines; ++i) {
    for (int64_t v = 0; v < kLineValues; v += 2) {
      state = state * 1664525 + 1013904223;
      const bool outlier = state >> 26 == 0;  // one pair of 64, 32 pairs a line
      panel[i * kLineValues + v] = panel[i * kLineValues + v + 1] = outlier ? 100 : 1;
      count += outlier;
    }
  }
  return count;
}

void MeasureOutliers(const MicroKernel& kernel, TileArgs t, uint8_t* panel, KernelCost* cost) {
  Arena clean_lines, list;
  auto* cleaned = static_cast<uint8_t*>(clean_lines.Reserve(size_t(t.lines) * kLineValues));
  auto* outliers =
      static_cast<Outlier*>(list.Reserve(size_t(t.lines) * kLineValues / 2 * sizeof(Outlier)));
  const auto clean = [&] { kernel.set_outliers_aside(t.panel, t.lines, cleaned, outliers); };
  const double without = LeastNs(8, clean);
  cost->clean_ns = without / double(t.lines);
  // Each panel once: an outlier costs mostly the branch that did not expect it, and a processor that has
  // seen a panel before expects them all.
  cost->aside_ns = 1e18;
  for (uint32_t seed = 1; seed <= 15; ++seed) {
    const int64_t count = PutOutliers(seed, panel, t.lines);
    const int64_t start = NowNs();
    clean();
    const double ns = std::max(double(NowNs() - start) - without, 0.0);
    cost->aside_ns = std::min(cost->aside_ns, ns / double(std::max<int64_t>(count, 1)));
  }
  // One on every line, in turn through the columns.
  for (int64_t i = 0; i < t.lines; ++i)
    outliers[i] = {static_cast<uint16_t>(i), static_cast<uint8_t>(i * 7 % kLineValues), 1};
  t.rows = kernel.mr;
  const std::span<const Outlier> all(outliers, size_t(t.lines));
  cost->add_call_ns = LeastNs(64, [&] { kernel.add_outliers(t, all.first(1)); });
  const double all_ns = LeastNs(8, [&] { kernel.add_outliers(t, all); });
  cost->add_ns = std::max(all_ns - cost->add_call_ns, 0.0) / double(t.lines - 1);
}

// A weight of zeros, as real ones lie in memory; null when that is short.
std::shared_ptr<const PackedWeight> MakeStream() {
  const WeightSpec spec{
      .dtype = DataType::kInt8, .layout = Layout::kKN, .k = kStreamK, .n = kStreamN};
  auto weight = CpuPackedWeight::Allocate(spec, "cpu");
  if (weight == nullptr) return nullptr;
  CpuPacker packer(std::move(weight));
  const std::vector<std::byte> zeros(size_t(kStreamN) * 64);
  for (int64_t k = 0; k < kStreamK; k += 64)
    if (!packer.Append(zeros).ok()) return nullptr;
  std::shared_ptr<const PackedWeight> packed;
  return packer.Finish(&packed).ok() ? packed : nullptr;
}

// `rows` rows of `k` values against the first `bytes` of a weight, again and again, touching `ahead` bytes ahead: ns a
// line of a panel.
double StreamNs(const MicroKernel& kernel, const CpuPackedWeight& weight, int64_t k, int64_t bytes,
                int64_t ahead, int rows, const void* strip, void* sums) {
  const int unit = kernel.nr / int(kPanelColumns);
  TileArgs t{};
  t.strip = strip;
  t.lines = k / kLineK;
  t.panel_stride = t.lines * kLineValues * BitsOf(kernel.weight) / 8;
  t.c = sums;
  t.ldc = kernel.nr;
  t.rows = rows;
  t.panels = unit;
  const int64_t tiles = bytes / (unit * t.panel_stride);
  const double ns = LeastNs(int(std::max<int64_t>((int64_t{4} << 20) / bytes, 1)), [&] {
    for (int64_t i = 0; i < tiles; ++i) {
      t.panel = weight.panel(0) + i * unit * t.panel_stride;
      t.prefetch = t.panel + kernel.PanelAhead(ahead);
      kernel.run(t);
    }
  });
  return ns / double(tiles * unit * t.lines);
}

// What a kernel takes while the weight streams past it, and what it should touch meanwhile, where memory is what it
// waits for.
void MeasureStreams(const MicroKernel& kernel, const CpuPackedWeight& weight, double llc_gbps,
                    KernelCost* cost) {
  const int rows = std::min(kernel.mr, 2);
  const double read_ns = double(kLineValues * BitsOf(kernel.weight)) / 8 / llc_gbps;
  const double line_ns = cost->line_ns[size_t(rows)];
  constexpr int64_t kLines = kStreamK / kLineK * kStreamN / kPanelColumns;
  // Unoptimised and watched code takes so long that nothing else would be done at a start.
  if (kernel.split() || line_ns > 2 * read_ns || line_ns * double(kLines) > kStreamNsMax) return;
  Arena strip, sums;
  const size_t strip_bytes = size_t(kStreamK) * size_t(rows * ElementBytes(kernel.operand));
  const void* const a = std::memset(strip.Reserve(strip_bytes), 0, strip_bytes);
  void* const c = sums.Reserve(size_t(rows * kernel.nr) * 4);
  const auto stream = [&](int64_t k, int64_t bytes, int64_t ahead) {
    return StreamNs(kernel, weight, k, bytes, ahead, rows, a, c);
  };
  double least = stream(kStreamK, kStreamK * kStreamN, kAheadBytes);
  for (const int64_t ahead : kAheadOthers) {
    if (ahead == 0 && kernel.mr > 1) continue;
    const double ns = stream(kStreamK, kStreamK * kStreamN, ahead);
    if (ns > kAheadGain * least) continue;
    cost->ahead_bytes = ahead;
    least = ns;
  }
  if (kernel.release != nullptr) kernel.release();
  if (kernel.mr > 1) return;
  cost->llc_line_ns = least;
  // Weights that L2 holds have short panels: another begins every few hundred lines.
  cost->l2_line_ns = stream(kStreamK / 8, int64_t{256} << 10, cost->ahead_bytes);
}

KernelCost MeasureKernel(const MicroKernel& kernel, Arena* strip, Arena* panel, Arena* sums) {
  KernelCost cost;
  const int64_t k = kProbeLines * kLineK;
  const int64_t line_bytes = kLineValues * BitsOf(kernel.weight) / 8;
  const int panels = kernel.nr / int(kPanelColumns);
  const size_t strip_bytes = size_t(kernel.mr) * size_t(k) * size_t(ElementBytes(kernel.operand));
  const size_t panel_bytes = size_t(panels * kProbeLines * line_bytes);
  TileArgs t{};
  t.strip = std::memset(strip->Reserve(strip_bytes), 0, strip_bytes);
  auto* values = static_cast<uint8_t*>(std::memset(panel->Reserve(panel_bytes), 1, panel_bytes));
  t.panel = values;
  t.panel_stride = kProbeLines * line_bytes;
  t.lines = kProbeLines;
  t.c = sums->Reserve(size_t(kernel.mr * kernel.nr) * 4);
  t.ldc = kernel.nr;
  t.panels = panels;
  t.prefetch = t.panel;
  for (t.rows = 1; t.rows <= kernel.mr; ++t.rows)
    cost.line_ns[size_t(t.rows)] =
        LeastNs(8, [&] { kernel.run(t); }) / double(kProbeLines * panels);
  if (kernel.split()) MeasureOutliers(kernel, t, values, &cost);
  if (kernel.release != nullptr) kernel.release();
  const std::vector<float> row(size_t(k), 0.0f);
  const std::vector<SourceRow> rows(size_t(kernel.mr), {row.data(), false});
  void* const packed = strip->Reserve(strip_bytes);
  const double ns = LeastNs(16, [&] {
    kernel.ops->interleave(kernel.operand, kernel.kr, rows.data(), kernel.mr, k, packed);
  });
  cost.pack_ns = ns / double(kernel.mr * k);
  return cost;
}

double MeasureRead(int64_t bytes) {
  Arena arena;
  auto* data = static_cast<uint64_t*>(arena.Reserve(size_t(bytes)));
  std::memset(data, 1, size_t(bytes));
  const int repeats = static_cast<int>(std::max<int64_t>(1, (int64_t{4} << 20) / bytes));
  const double ns = LeastNs(repeats, [&] {
    uint64_t sums[8] = {};
    for (int64_t i = 0; i < bytes / 8; i += 8)
      for (int j = 0; j < 8; ++j) sums[j] += data[i + j];
    for (uint64_t s : sums) asm volatile("" ::"r"(s));
  });
  return double(bytes) / ns;
}

double MeasureHandOver(ThreadTeam* team) {
  if (team->size() < 2) return 0;
  double least = 1e18;
  for (int i = 0; i < 9; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(300));  // let the members park
    const int64_t start = NowNs();
    team->Run(2, [](int) {});
    least = std::min(least, double(NowNs() - start));
  }
  return least;
}

int AppendBuildId(dl_phdr_info* info, size_t, void* out) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = info->dlpi_phdr[i];
    if (header.p_type != PT_NOTE) continue;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): this is how the loader says where it is
    const auto* p = reinterpret_cast<const uint8_t*>(info->dlpi_addr + header.p_vaddr);
    for (const uint8_t* end = p + header.p_memsz; p + sizeof(ElfW(Nhdr)) <= end;) {
      const auto* note = reinterpret_cast<const ElfW(Nhdr)*>(p);
      const uint8_t* name = p + sizeof(*note);
      const uint8_t* value = name + (note->n_namesz + 3) / 4 * 4;
      if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4) {
        for (uint32_t b = 0; b < note->n_descsz; ++b) {
          char hex[3];
          std::snprintf(hex, sizeof hex, "%02x", value[b]);
          *static_cast<std::string*>(out) += hex;
        }
      }
      p = value + (note->n_descsz + 3) / 4 * 4;
    }
  }
  return 1;  // the program itself comes first; look no further
}

uint64_t Fnv(std::string_view text) {
  uint64_t hash = 14695981039346656037ull;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  return hash;
}

}  // namespace

Calibration Calibration::Measure(std::span<const MicroKernel* const> kernels, ThreadTeam* team) {
  Calibration c;
  Arena strip, panel, sums;
  for (const MicroKernel* kernel : kernels)
    c.kernels_[kernel->name] = MeasureKernel(*kernel, &strip, &panel, &sums);
  c.machine_.call_ns = 400;  // kernels_bench --call-cost
  c.machine_.finish_ns = 0.3;
  c.machine_.hand_over_ns = MeasureHandOver(team);
  c.machine_.read_l2_gbps = MeasureRead(int64_t{256} << 10);
  c.machine_.read_llc_gbps = MeasureRead(int64_t{8} << 20);
  c.machine_.read_dram_gbps = MeasureRead(int64_t{64} << 20);
  if (const auto stream = MakeStream(); stream != nullptr)
    for (const MicroKernel* kernel : kernels)
      MeasureStreams(*kernel, static_cast<const CpuPackedWeight&>(*stream),
                     c.machine_.read_llc_gbps, &c.kernels_[kernel->name]);
  return c;
}

Calibration Calibration::Load(const std::string& path, std::span<const MicroKernel* const> kernels,
                              ThreadTeam* team) {
  if (path.empty()) return Measure(kernels, team);
  const std::string key = Key(kernels);
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();  // a folder in its place reads as nothing; an iterator would throw
  if (auto known = Parse(text.str(), key)) {
    known->from_file_ = true;
    return *known;
  }
  Calibration measured = Measure(kernels, team);
  const std::string beside = path + "." + std::to_string(getpid());
  std::ofstream out(beside, std::ios::binary | std::ios::trunc);
  out << measured.Print(key);
  out.close();
  if (!out || std::rename(beside.c_str(), path.c_str()) != 0) std::remove(beside.c_str());
  return measured;
}

const KernelCost* Calibration::find(const MicroKernel& kernel) const {
  const auto it = kernels_.find(std::string_view(kernel.name));
  return it == kernels_.end() ? nullptr : &it->second;
}

int64_t Calibration::AheadBytes(const KernelCost& cost, int64_t weight_bytes) {
  return weight_bytes <= kLlcBytes ? cost.ahead_bytes : std::max(cost.ahead_bytes, kAheadBytes);
}

double Calibration::ReadGBps(int64_t bytes) const {
  if (bytes <= RowBlockBytes()) return machine_.read_l2_gbps;
  return bytes <= kLlcBytes ? machine_.read_llc_gbps : machine_.read_dram_gbps;
}

std::optional<double> Calibration::ProductNs(const MicroKernel& kernel,
                                             const KernelQuery& query) const {
  const KernelCost* cost = find(kernel);
  if (cost == nullptr) return {};
  return RunNs(WorkNs(kernel, *cost, query), query.members);
}

double Calibration::WorkNs(const MicroKernel& kernel, const KernelCost& cost,
                           const KernelQuery& query) const {
  const double lines = Cover(query.k, kLineK), panels = Cover(query.n, kPanelColumns);
  // Strips are as equal as can be: some of one height, the rest one row higher.
  const int64_t strips = (query.rows + kernel.mr - 1) / kernel.mr;
  double strips_ns = 0;
  if (strips > 0) {
    const int64_t low = query.rows / strips, high = query.rows % strips;
    strips_ns = double(strips - high) * cost.line_ns[size_t(low)];
    if (high > 0) strips_ns += double(high) * cost.line_ns[size_t(low + 1)];
  }
  const double memory = double(query.weight_bytes) / ReadGBps(query.weight_bytes);
  const double rest = cost.pack_ns * double(query.rows * query.k) +
                      machine_.finish_ns * double(query.rows * query.n);
  if (query.rows == 1 && cost.llc_line_ns > 0 && query.weight_bytes > kL1Bytes) {
    const bool from_l2 = query.weight_bytes <= L2CacheBytes() / 4 * 3;
    const double stream = (from_l2 ? cost.l2_line_ns : cost.llc_line_ns) * lines * panels;
    return (query.weight_bytes <= kLlcBytes ? stream : Overlap(stream, memory)) + rest;
  }
  if (!kernel.split()) return Overlap(strips_ns * lines * panels, memory) + rest;
  strips_ns += OutliersNs(kernel, cost, query, strips, lines);
  return strips_ns * lines * panels + memory + rest;
}

std::string Calibration::Key(std::span<const MicroKernel* const> kernels) {
  std::string table, build;
  for (const MicroKernel* kernel : kernels) table += std::string(kernel->name) + ';';
  dl_iterate_phdr(AppendBuildId, &build);
  char hash[32];
  std::snprintf(hash, sizeof hash, "%016llx", static_cast<unsigned long long>(Fnv(table)));
  return CpuModelName() + ' ' + CpuIdentity() + " x" + std::to_string(UsableThreads()) + " build " +
         build + " kernels " + hash;
}

std::string Calibration::Print(const std::string& key) const {
  std::ostringstream out;
  out.precision(17);
  const MachineCost& m = machine_;
  out << kMagic << '\n' << key << '\n';
  out << "machine " << m.call_ns << ' ' << m.finish_ns << ' ' << m.hand_over_ns << ' '
      << m.read_l2_gbps << ' ' << m.read_llc_gbps << ' ' << m.read_dram_gbps << '\n';
  for (const auto& [name, cost] : kernels_) {
    out << name << ' ' << cost.pack_ns << ' ' << cost.l2_line_ns << ' ' << cost.llc_line_ns << ' '
        << cost.ahead_bytes << ' ' << cost.clean_ns << ' ' << cost.aside_ns << ' ' << cost.add_ns
        << ' ' << cost.add_call_ns;
    for (const double ns : cost.line_ns) out << ' ' << ns;
    out << '\n';
  }
  const std::string body = out.str();
  return body + "checksum " + std::to_string(Fnv(body)) + '\n';
}

std::optional<Calibration> Calibration::Parse(const std::string& text, const std::string& key) {
  const size_t tail = text.rfind("checksum ");
  if (tail == std::string::npos) return {};
  const std::string body = text.substr(0, tail);
  if (text.substr(tail) != "checksum " + std::to_string(Fnv(body)) + '\n') return {};
  std::istringstream in(body);
  std::string magic, file_key, word;
  if (!std::getline(in, magic) || magic != kMagic) return {};
  if (!std::getline(in, file_key) || file_key != key) return {};
  Calibration c;
  MachineCost& m = c.machine_;
  if (!(in >> word >> m.call_ns >> m.finish_ns >> m.hand_over_ns >> m.read_l2_gbps >>
        m.read_llc_gbps >> m.read_dram_gbps) ||
      word != "machine")
    return {};
  while (in >> word) {
    KernelCost cost;
    in >> cost.pack_ns >> cost.l2_line_ns >> cost.llc_line_ns >> cost.ahead_bytes >>
        cost.clean_ns >> cost.aside_ns >> cost.add_ns >> cost.add_call_ns;
    for (double& ns : cost.line_ns) in >> ns;
    if (!in) return {};
    c.kernels_[word] = cost;
  }
  return c;
}

}  // namespace qmatmul::cpu
