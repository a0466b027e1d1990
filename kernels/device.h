// The one door to anything that multiplies: a Device packs weights into its own memory and runs
// products on them. CPU, CUDA and Vulkan are rows behind this header; nothing outside kernels/ sees
// more.
//
// Thread-safety: every method may be called from any thread. Run blocks; DeviceInfo::lanes says how
// many Runs may usefully overlap. Ownership: PackedWeight is shared and immutable; deleting the
// last reference frees its device memory at once.
//
// Invariants
//   1. Every Device and every kernel gives the bytes of kernels/reference.h.
//   2. A PackedWeight is made only by a Packer (or loaded from an image that a Packer made), and a
//   kernel
//      whose layout differs refuses it (LAYOUT_MISMATCH): wrong numbers are never an outcome.
//   3. Packing needs at most 4 MiB beyond the packed copy.
//   4. No exception crosses this door; faults are returned. Out of memory is a Fault, not an abort.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/matmul.h"

namespace qmatmul {

struct DeviceInfo {
  std::string id;           // "cpu", "cuda:0"
  std::string kind;         // "cpu"
  std::string description;  // the processor's own name
  int threads = 1;          // size of the compute team
  int lanes = 1;            // Runs that may overlap usefully
  int64_t memory_bytes = 0;
  std::vector<std::string> features;
};

struct KernelInfo {
  std::string name;        // "cpu.avx2.s8s8s32.6x16x4": device.isa.types.mr x nr x kr, unique
  bool supported = false;  // this machine can run it
  bool disabled = false;   // by configuration
  std::string reason;      // why not supported or disabled
  std::string layout;      // the packed layout it reads
  DataType weight = DataType::kUnspecified;  // the weight type it multiplies by
  Arithmetic arithmetic = Arithmetic::kW8A8;

  bool usable() const { return supported && !disabled; }
};

// A kernel put aside for some rows because it gave a wrong result.
struct QuarantineInfo {
  std::string key;  // "cpu.avx2.s8s8s32.6x16x4/m2-16": what Rearm takes
  std::string kernel;
  std::string reason;
  int64_t unix_time_ns = 0;
};

// A weight in device memory: panels, column sums, scales, bias. Immutable.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  PackedWeight(const PackedWeight&) = delete;
  PackedWeight& operator=(const PackedWeight&) = delete;

  const WeightSpec& spec() const { return spec_; }
  // Names everything that makes two packed layouts differ: "n16k4.s8".
  const std::string& layout() const { return layout_; }
  const std::string& device() const { return device_; }
  // Device memory held, to the byte.
  int64_t bytes() const { return bytes_; }
  // Σ_k W[k][n], host memory, n of them.
  virtual std::span<const int32_t> column_sums() const = 0;
  // The device was lost since, and the packed weight with it: a Run that names it says DEVICE_LOST.
  virtual bool is_lost() const { return false; }

 protected:
  PackedWeight(WeightSpec spec, std::string layout, std::string device)
      : spec_(spec), layout_(std::move(layout)), device_(std::move(device)) {}
  int64_t bytes_ = 0;

 private:
  WeightSpec spec_;
  std::string layout_;
  std::string device_;
};

// Packs one weight from its upload bytes: data, scales, bias, in that order, cut anywhere.
// Used by one thread at a time. Dropping it before Finish frees everything.
class Packer {
 public:
  virtual ~Packer() = default;
  // Faults: INVALID_ARGUMENT UPLOAD_LONG, SCALE_RANGE, BIAS_RANGE, INT2_CODE, PADDING_BITS.
  virtual Fault Append(std::span<const std::byte> bytes) = 0;
  // Faults: INVALID_ARGUMENT UPLOAD_SHORT.
  virtual Fault Finish(std::shared_ptr<const PackedWeight>* weight) = 0;
};

// Where one output of a segment's request goes and what became of it. Views of the whole request.
struct SegmentOutput {
  Epilogue epilogue;
  OutputView view;  // [rows, n]; with top_k [rows, top_k]
  Outcome outcome;  // looks at all n columns, with top_k too
  // 1 … n: only the greatest of each finished row (numerics §6), greatest first, -0 = +0, ties to the
  // lower column, and at `indices` their columns: int32 [rows, top_k], dense, rows of the request, not
  // necessarily aligned. 0: all columns, and no indices.
  int64_t top_k = 0;
  std::byte* indices = nullptr;
  // When not empty: row_checks[m] receives c[m] = Σ_n acc[m][n]·r[n] mod 2⁶⁴ (numerics §7), for r
  // of Work::Step::check_vectors.
  std::span<uint64_t> row_checks;
};

// A run of rows of one request. Several segments, of different requests, types and epilogues, share
// one Run: the answer of a row never depends on its neighbours.
struct RowSegment {
  const ActivationView* activations = nullptr;
  int64_t row_begin = 0;  // rows [row_begin, row_begin + rows) of the request
  int64_t rows = 0;
  std::span<SegmentOutput> outputs;  // one per weight of the (last) step
  // A chain: one for each step but the last, of dtype kF32; activation and skip_bias are as free as in
  // an output's.
  std::span<const Epilogue> intermediates;
  // Dynamic quantization (of a chain: by its last step, if that is W8A8): receives sa of each row of the
  // request when not empty.
  std::span<float> scales_used;
  // Set by Run when this segment's own input, or one of its intermediate results, was refused
  // (ACTIVATION_RANGE); its outputs are then void.
  Fault fault;
};

struct WorkStep {
  std::span<const std::shared_ptr<const PackedWeight>> weights;  // 1 … 16, sharing K; in a chain 1
  Arithmetic arithmetic = Arithmetic::kW8A8;
  // One per weight when a segment asks for row_checks: r[n] in [1, 2³¹).
  std::span<const std::span<const uint32_t>> check_vectors;
};

struct Work {
  std::span<RowSegment> segments;
  // One. A chain (numerics §6) has 2 … kChainStepsMax, the k of each the n before it: every result but
  // the last stays here, in F32, and is the next step's activations (quantized dynamically for W8A8).
  std::span<const WorkStep> steps;
  std::string_view kernel;  // forced kernel name; empty: the device chooses by rows
  int threads_max = 0;      // 0: the whole team; 1: the calling thread alone
};

// What a Run did.
struct RunReport {
  std::string_view kernel;  // of the first weight
  // The kernel that computed each weight of the step; of a chain, each step. Names live as long as the
  // device.
  std::array<std::string_view, std::max(kWeightsPerCallMax, kChainStepsMax)> kernels;
  // Why a slower way than the best was taken: "quarantine"; empty when it was not.
  std::string_view fallback;
  int64_t rows = 0;
  int64_t padded_rows = 0;
  // Rows gathered and packed: `rows`, and again for weights whose kernels read another packed form, and
  // for every step of a chain.
  int64_t packed_rows = 0;
  int64_t pack_ns = 0;     // gathering and quantizing the activations, where it is worth timing
  int64_t compute_ns = 0;  // all of it, packing included
};

// One kernel's standing for a given number of rows; see Device::Explain.
struct KernelChoice {
  std::string name;
  bool eligible = false;
  bool chosen = false;
  std::optional<int64_t> predicted_ns;  // unset until measured
  std::string reason;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceInfo& info() const = 0;
  // All kernels built in, best first, those this machine cannot run included.
  virtual std::vector<KernelInfo> Kernels() const = 0;

  // The spec must have passed CheckSpec. RESOURCE_EXHAUSTED when memory is short; UNIMPLEMENTED for
  // a data type this device does not pack.
  virtual Fault StartPack(const WeightSpec& spec, std::unique_ptr<Packer>* packer) = 0;
  // The same in one call.
  Fault Pack(const WeightView& weight, std::shared_ptr<const PackedWeight>* packed);
  // Rows [k_begin, k_end) of the weight as plain int8 values, row-major [k_end - k_begin, n].
  virtual Fault Unpack(const PackedWeight& weight, int64_t k_begin, int64_t k_end,
                       std::span<int8_t> out) const = 0;

  // Bytes [begin, begin + out.size()) of the upload that the weight was packed from, to pack it elsewhere.
  // UNIMPLEMENTED where only the host's copy can be read so.
  virtual Fault ReadUpload(const PackedWeight& weight, int64_t begin,
                           std::span<std::byte> out) const;

  // Computes every segment. A segment's own bad input lands in its `fault` and leaves the others
  // alone; the returned fault means that nothing was computed: LAYOUT_MISMATCH (INTERNAL),
  // KERNEL_UNKNOWN (INVALID_ARGUMENT), KERNEL_UNSUPPORTED (FAILED_PRECONDITION), device lost.
  virtual Fault Run(const Work& work, RunReport* report) = 0;

  // The kernels for `rows` rows of these weights, the choice first, each with its reason.
  virtual std::vector<KernelChoice> Explain(
      int64_t rows, std::span<const std::shared_ptr<const PackedWeight>> weights,
      Arithmetic arithmetic, std::string_view forced) const = 0;
  // Predicted time of a Run of `rows` rows of a weight of this device on `threads` threads (0: the team),
  // for routing and for what runs inline.
  virtual int64_t PredictNs(int64_t rows, const PackedWeight& weight, Arithmetic arithmetic,
                            int threads) const = 0;

  // Kernels that are put aside. A device without such a list has none.
  virtual std::vector<QuarantineInfo> Quarantined() const { return {}; }
  // Puts a kernel aside for products of about `rows` rows.
  virtual void Quarantine(std::string_view kernel, int64_t rows, std::string_view reason) {}
  // Takes one back; a lost device is a key too, its id, and tries to open anew. False when no such key is
  // put aside, or it is still lost.
  virtual bool Rearm(std::string_view) { return false; }
};

// A lost device is put aside under its own name.
inline bool IsLost(const Device& device) {
  const std::vector<QuarantineInfo> aside = device.Quarantined();
  return std::any_of(aside.begin(), aside.end(),
                     [&](const QuarantineInfo& q) { return q.key == device.info().id; });
}

}  // namespace qmatmul
