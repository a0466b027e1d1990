#include "server/engine/metrics.h"

#include <algorithm>
#include <bit>

namespace qmatmul {
namespace {

// Threads are dealt onto shards in turn. More shards than threads that compute or serve here, in
// all but the largest machines; when two threads share one the counts stay right and only the cache
// line suffers.
constexpr size_t kShards = 32;
constexpr int64_t kWindowNs = 10'000'000'000;
// A label value that clients could influence must not grow the exposition without bound.
constexpr size_t kReasonsMax = 128;

constexpr auto kRelaxed = std::memory_order_relaxed;

std::atomic<size_t> g_threads{0};

size_t MyShardIndex() {
  // No initializer that runs: reading it is then a plain load.
  constinit thread_local size_t index = kShards;
  if (index == kShards) index = g_threads.fetch_add(1, kRelaxed) % kShards;
  return index;
}

constexpr std::array<int64_t, kBuckets> TimeBounds() {
  std::array<int64_t, kBuckets> bounds{};
  double bound = 10'000;
  for (int64_t& b : bounds) {
    b = static_cast<int64_t>(bound);
    bound *= 1.8;
  }
  return bounds;
}

constexpr std::array<int64_t, kBuckets> RowBounds() {
  std::array<int64_t, kBuckets> bounds{};
  for (int i = 0; i < kBuckets; ++i) bounds[static_cast<size_t>(i)] = int64_t{1} << i;
  return bounds;
}

// Bounds, and for each bit width the first bound that a value of that width may be within: the search
// begins there and is over in two steps.
struct Buckets {
  constexpr explicit Buckets(const std::array<int64_t, kBuckets>& of) : bounds(of) {
    for (size_t width = 0; width < first.size(); ++width) {
      const uint64_t least = width == 0 ? 0 : uint64_t{1} << (width - 1);
      uint8_t at = 0;
      while (at < kBuckets && static_cast<uint64_t>(bounds[at]) < least) ++at;
      first[width] = at;
    }
  }
  size_t Of(int64_t value) const {
    const auto known = static_cast<uint64_t>(std::max<int64_t>(value, 0));
    size_t at = first[static_cast<size_t>(std::bit_width(known))];
    while (at < kBuckets && static_cast<uint64_t>(bounds[at]) < known) ++at;
    return at;
  }

  std::array<int64_t, kBuckets> bounds;
  std::array<uint8_t, 65> first{};
};

size_t BucketOf(Histogram histogram, int64_t value) {
  static constexpr Buckets kTimes(TimeBounds()), kRows(RowBounds());
  return (histogram == Histogram::kBatchRows ? kRows : kTimes).Of(value);
}

}  // namespace

std::array<int64_t, kBuckets> BucketBounds(Histogram histogram) {
  return histogram == Histogram::kBatchRows ? RowBounds() : TimeBounds();
}

int64_t HistogramReading::count() const {
  int64_t total = 0;
  for (const int64_t c : counts) total += c;
  return total;
}

struct alignas(64) Metrics::Shard {
  struct KernelCells {
    std::atomic<int64_t> runs{0}, rows{0}, ops{0}, compute_ns{0};
  };
  struct HistogramCells {
    std::array<std::atomic<int64_t>, kBuckets + 1> counts{};
    std::atomic<int64_t> sum{0};
  };

  explicit Shard(size_t kernel_count) : kernels(kernel_count) {}

  std::array<std::atomic<int64_t>, static_cast<size_t>(Counter::kMetricCount)> counters{};
  std::array<HistogramCells, static_cast<size_t>(Histogram::kMetricCount)> histograms;
  std::vector<KernelCells> kernels;
  std::atomic<size_t> last_kernel{
      0};  // where the next search begins: most often it is the same again
};

Metrics::Metrics(std::vector<KernelKey> kernels, bool enabled)
    : kernels_(std::move(kernels)), enabled_(enabled) {
  shards_.reserve(kShards);
  for (size_t i = 0; i < kShards; ++i) shards_.push_back(std::make_unique<Shard>(kernels_.size()));
}

Metrics::~Metrics() = default;

Metrics::Shard& Metrics::MyShard() const { return *shards_[MyShardIndex()]; }

void Metrics::Add(Counter counter, int64_t amount) {
  if (enabled_) MyShard().counters[static_cast<size_t>(counter)].fetch_add(amount, kRelaxed);
}

void Metrics::Observe(Histogram histogram, int64_t value) {
  if (!enabled_) return;
  auto& cells = MyShard().histograms[static_cast<size_t>(histogram)];
  cells.counts[BucketOf(histogram, value)].fetch_add(1, kRelaxed);
  cells.sum.fetch_add(value, kRelaxed);
}

void Metrics::AddRun(std::string_view device, std::string_view kernel, int64_t rows, int64_t ops,
                     int64_t compute_ns) {
  if (!enabled_) return;
  Shard& shard = MyShard();
  const auto is_it = [&](const KernelKey& key) {
    return key.kernel == kernel && key.device == device;
  };
  size_t at = shard.last_kernel.load(kRelaxed);
  if (at >= kernels_.size() || !is_it(kernels_[at])) {
    const auto row = std::find_if(kernels_.begin(), kernels_.end(), is_it);
    if (row == kernels_.end()) return;
    at = static_cast<size_t>(row - kernels_.begin());
    shard.last_kernel.store(at, kRelaxed);
  }
  auto& cells = shard.kernels[at];
  cells.runs.fetch_add(1, kRelaxed);
  cells.rows.fetch_add(rows, kRelaxed);
  cells.ops.fetch_add(ops, kRelaxed);
  cells.compute_ns.fetch_add(compute_ns, kRelaxed);
}

void Metrics::Reject(std::string_view reason) { CountReason(reason, &rejected_); }

void Metrics::CountFallback(std::string_view reason) { CountReason(reason, &fallbacks_); }

void Metrics::CountReason(std::string_view reason, ReasonCounts* counts) {
  const std::lock_guard lock(mutex_);
  auto row = counts->find(reason);
  if (row == counts->end()) {
    if (counts->size() >= kReasonsMax) reason = "OTHER";
    row = counts->try_emplace(std::string(reason), 0).first;
  }
  ++row->second;
}

std::vector<KernelReading> Metrics::ReadKernels() const {
  std::vector<KernelReading> readings;
  readings.reserve(kernels_.size());
  for (size_t i = 0; i < kernels_.size(); ++i) {
    KernelReading& r = readings.emplace_back();
    r.device = kernels_[i].device;
    r.kernel = kernels_[i].kernel;
    for (const auto& shard : shards_) {
      r.runs += shard->kernels[i].runs.load(kRelaxed);
      r.rows += shard->kernels[i].rows.load(kRelaxed);
      r.ops += shard->kernels[i].ops.load(kRelaxed);
      r.compute_ns += shard->kernels[i].compute_ns.load(kRelaxed);
    }
  }
  return readings;
}

void Metrics::Tick(int64_t now_ns) {
  Moment moment{now_ns, {}};
  for (const KernelReading& r : ReadKernels()) moment.totals.push_back({r.ops, r.compute_ns});
  const std::lock_guard lock(mutex_);
  moments_.push_back(std::move(moment));
  // The oldest kept is the youngest that is at least a whole window old.
  while (moments_.size() > 1 && moments_[1].time_ns <= now_ns - kWindowNs) moments_.pop_front();
}

MetricsReading Metrics::Read() const {
  MetricsReading reading;
  for (const auto& shard : shards_) {
    for (size_t i = 0; i < reading.counters.size(); ++i)
      reading.counters[i] += shard->counters[i].load(kRelaxed);
    for (size_t h = 0; h < reading.histograms.size(); ++h) {
      const auto& cells = shard->histograms[h];
      for (size_t b = 0; b < cells.counts.size(); ++b)
        reading.histograms[h].counts[b] += cells.counts[b].load(kRelaxed);
      reading.histograms[h].sum += cells.sum.load(kRelaxed);
    }
  }
  reading.kernels = ReadKernels();
  const std::lock_guard lock(mutex_);
  reading.rejected.insert(rejected_.begin(), rejected_.end());
  reading.fallbacks.insert(fallbacks_.begin(), fallbacks_.end());
  if (moments_.empty()) return reading;
  const std::vector<Totals>& then = moments_.front().totals;
  for (size_t i = 0; i < reading.kernels.size(); ++i) {
    const int64_t busy_ns = reading.kernels[i].compute_ns - then[i].compute_ns;
    const int64_t ops = reading.kernels[i].ops - then[i].ops;
    if (busy_ns > 0)
      reading.kernels[i].gops_10s = static_cast<double>(ops) / static_cast<double>(busy_ns);
  }
  return reading;
}

}  // namespace qmatmul
