// What the server counts. Always on, so it must cost next to nothing: every thread adds to a shard
// that few or no others touch, and only a reader pays for summing the shards.
//
// Thread-safety: all methods may be called from any thread. Reads are not a snapshot of one
// instant: two counters read together may differ by the calls in flight. No counter ever goes back.
//
// This header speaks no exporter's language; server/metrics_page renders a MetricsReading.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace qmatmul {

enum class Counter : uint8_t {
  kRequestsOk,
  kRequestsFailed,
  kRows,
  kOutputOverflows,
  kCopiedBytes,  // payload bytes copied beyond the one gather that packing is
  // Requests not answered since their deadline passed or could not be kept, or they were cancelled.
  kExpired,
  kInlineRuns,   // runs on the RPC thread
  kMetricCount,  // not a counter: how many there are
};

enum class Histogram : uint8_t {
  kRequestNs,  // from the parsed request to its answer
  kQueueNs,    // from admission to the start of the computation
  kComputeNs,  // packing the activations, product, epilogue
  kOutputNs,   // from the end of the computation to the answer handed to the transport
  kPackNs,     // packing one registered weight
  kBatchRows,  // rows that ran together
  kMetricCount,
};

// Upper bounds of the buckets: 10 µs · 1.8^i in nanoseconds (to 7.4 s), and powers of two for rows.
inline constexpr int kBuckets = 24;
std::array<int64_t, kBuckets> BucketBounds(Histogram histogram);

struct HistogramReading {
  std::array<int64_t, kBuckets + 1> counts{};  // per bucket, the last without an upper bound
  int64_t sum = 0;
  int64_t count() const;
};

// What one kernel of one device did.
struct KernelReading {
  std::string device;
  std::string kernel;
  int64_t runs = 0;
  int64_t rows = 0;
  int64_t ops = 0;  // 2·M·K·N
  int64_t compute_ns = 0;
  double gops_10s = 0;  // ops over the compute time of the last 10 s; 0 when idle

  double gops() const {
    return compute_ns > 0 ? static_cast<double>(ops) / static_cast<double>(compute_ns) : 0;
  }
};

struct MetricsReading {
  std::array<int64_t, static_cast<size_t>(Counter::kMetricCount)> counters{};
  std::array<HistogramReading, static_cast<size_t>(Histogram::kMetricCount)> histograms{};
  std::vector<KernelReading> kernels;
  std::map<std::string, int64_t> rejected;   // by reason
  std::map<std::string, int64_t> fallbacks;  // by reason

  int64_t at(Counter c) const { return counters[static_cast<size_t>(c)]; }
  const HistogramReading& at(Histogram h) const { return histograms[static_cast<size_t>(h)]; }
};

class Metrics {
 public:
  // One kernel that AddRun may name; the list is fixed for the life of the Metrics.
  struct KernelKey {
    std::string device;
    std::string kernel;
  };
  // `enabled` false turns Add, Observe and AddRun into nothing, so that their cost can be measured.
  explicit Metrics(std::vector<KernelKey> kernels, bool enabled = true);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void Add(Counter counter, int64_t amount = 1);
  void Observe(Histogram histogram, int64_t value);
  void AddRun(std::string_view device, std::string_view kernel, int64_t rows, int64_t ops,
              int64_t compute_ns);
  // These two take a lock: they are off the usual path of work.
  void Reject(std::string_view reason);
  void CountFallback(std::string_view reason);  // a slower way than the best was taken

  // Remembers the totals of this moment, so that Read can say what happened in the last 10 s.
  // Called about once a second.
  void Tick(int64_t now_ns);

  MetricsReading Read() const;

 private:
  struct Shard;
  using ReasonCounts = std::map<std::string, int64_t, std::less<>>;
  struct Totals {
    int64_t ops = 0;
    int64_t compute_ns = 0;
  };
  struct Moment {
    int64_t time_ns = 0;
    std::vector<Totals> totals;
  };

  Shard& MyShard() const;
  void CountReason(std::string_view reason, ReasonCounts* counts);
  std::vector<KernelReading> ReadKernels() const;

  const std::vector<KernelKey> kernels_;
  const bool enabled_;
  std::vector<std::unique_ptr<Shard>> shards_;
  mutable std::mutex mutex_;  // guards what follows
  ReasonCounts rejected_;
  ReasonCounts fallbacks_;
  std::deque<Moment> moments_;
};

}  // namespace qmatmul
