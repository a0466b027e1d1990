// What each kernel costs on this machine, measured: the base of selection, of routing and of what runs
// inline. A short run at start, kept in a file so that the next start need not repeat it.
//
// Model: T = call + pack·rows·K + overlap(Σ_strips line_ns[height]·lines·panels / members, weight bytes / read
// rate) + finish·rows·N + hand-over to a second member, where overlap(a, b) is the longer and an eighth of the
// shorter: neither hides the other wholly, and of two kernels that wait for memory the one that computes less is
// done first. Micro-kernels are timed on data in L1, memory by
// reading; the model then knows every shape, and its predictions are checked against whole products by
// tests (tests/kernels/calibration_test.cc). A one-row form is as fast as its weight streams past, which differs
// by processor and by how many panels it reads side by side: it is timed on a weight in L2 and on one in the
// last-level cache as well, and so is how far ahead of a single strip the weight is touched best. A kernel that sets outliers aside reads the weight while it
// cleans it, so that reading is added to computing there, and pays for every outlier it finds.
//
// The file is text: a key (CPU, build, kernel table), the numbers, a checksum. It is written beside its
// place and renamed, so a process killed half-way leaves the old one or none. Another key, a missing file
// or a wrong checksum mean measuring again; a file that cannot be written costs the next start the
// measurement and nothing else.
//
// Thread-safety: immutable once made.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>

#include "kernels/cpu/micro_kernel.h"
#include "kernels/cpu/thread_team.h"

namespace qmatmul::cpu {

// Weight bytes to touch ahead when they stream past a single strip, of all panels that stream side by side: where it was
// not measured, what measurements are compared with, and the least for weights from DRAM.
inline constexpr int64_t kAheadBytes = 4096;

// What a kernel's time depends on.
struct KernelQuery {
  int64_t rows = 0;
  int64_t k = 0;
  int64_t n = 0;
  int64_t weight_bytes = 0;  // what the panels take
  DataType weight = DataType::kInt8;
  Arithmetic arithmetic = Arithmetic::kW8A8;
  double outlier_share = 0.125;  // of the weight's values; see Outlier
  int members = 1;
};

// One kernel's times.
struct KernelCost {
  // A strip of `height` rows against one line of one panel, in L1, ns. [0] is unused.
  std::array<double, kStripRowsMax + 1> line_ns{};
  double pack_ns = 0;  // per activation value, int8
  // Of one row, per line of one panel, while the weight streams past from L2 and from the last-level cache; 0 for
  // kernels that are no one-row form, and for those that compute longer than that.
  double l2_line_ns = 0;
  double llc_line_ns = 0;
  int64_t ahead_bytes = kAheadBytes;  // from the last-level cache
  // Kernels that set outliers aside: cleaning a line of a panel that has none, setting one aside, adding
  // one to a strip, and what a call that adds any takes beside them.
  double clean_ns = 0;
  double aside_ns = 0;
  double add_ns = 0;
  double add_call_ns = 0;
};

// The machine's.
struct MachineCost {
  double call_ns = 0;         // a call with next to nothing to do
  double finish_ns = 0;       // per output value
  double hand_over_ns = 0;    // waking a parked team member and waiting for it
  double read_l2_gbps = 0;    // one member reading 256 KiB again and again
  double read_llc_gbps = 0;   // 8 MiB
  double read_dram_gbps = 0;  // 64 MiB
};

class Calibration {
 public:
  // Times every kernel of `kernels` (those this CPU can run). Takes well under 2 s.
  static Calibration Measure(std::span<const MicroKernel* const> kernels, ThreadTeam* team);
  // From the file when its key fits, else measured and, if it can be, written. An empty path: no file.
  static Calibration Load(const std::string& path, std::span<const MicroKernel* const> kernels,
                          ThreadTeam* team);

  bool from_file() const { return from_file_; }
  const MachineCost& machine() const { return machine_; }
  // Null for a kernel that was not measured.
  const KernelCost* find(const MicroKernel& kernel) const;

  // Predicted time of one product; empty when the kernel was not measured.
  std::optional<double> ProductNs(const MicroKernel& kernel, const KernelQuery& query) const;
  // Its two parts: what one member works on it, whatever query.members says, and what a Run of such work
  // takes with so many members. Since members only share the work, either one of them or all are best.
  double WorkNs(const MicroKernel& kernel, const KernelCost& cost, const KernelQuery& query) const;
  double RunNs(double work_ns, int members) const {
    const double wake = members > 1 ? machine_.hand_over_ns : 0;
    return machine_.call_ns + wake + work_ns / members;
  }

  // How far ahead a weight of so many bytes is touched best while it streams past a single strip. What comes from
  // DRAM is late without.
  static int64_t AheadBytes(const KernelCost& cost, int64_t weight_bytes);

  // What the file holds, checksum included.
  std::string Print(const std::string& key) const;
  static std::optional<Calibration> Parse(const std::string& text, const std::string& key);
  // CPU, build and kernel table in one line.
  static std::string Key(std::span<const MicroKernel* const> kernels);

 private:
  double ReadGBps(int64_t bytes) const;

  std::map<std::string, KernelCost, std::less<>> kernels_;
  MachineCost machine_;
  bool from_file_ = false;
};

}  // namespace qmatmul::cpu
