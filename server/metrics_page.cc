#include "server/metrics_page.h"

#include <prometheus/metric_family.h>

#include <limits>

namespace qmatmul {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

using Labels = std::vector<ClientMetric::Label>;

struct CounterRow {
  Counter counter;
  const char* name;
  const char* help;
};
constexpr CounterRow kCounters[] = {
    {Counter::kRows, "qmatmul_rows_total", "Rows of activations multiplied."},
    {Counter::kOutputOverflows, "qmatmul_output_overflow_total",
     "Results that were clamped, wrapped or rounded to infinity."},
    {Counter::kCopiedBytes, "qmatmul_copied_bytes_total",
     "Payload bytes copied beyond the one gather that packing activations is."},
    {Counter::kExpired, "qmatmul_expired_total",
     "Requests not answered since their deadline passed or could not be kept, or they were "
     "cancelled; what had not been computed was not."},
    {Counter::kInlineRuns, "qmatmul_inline_total", "Requests computed on the RPC thread."},
};

struct HistogramRow {
  Histogram histogram;
  const char* name;
  const char* help;
  double unit;  // of one recorded step
};
constexpr double kSecond = 1e-9;
constexpr HistogramRow kHistograms[] = {
    {Histogram::kRequestNs, "qmatmul_request_seconds", "From the admitted request to its answer.",
     kSecond},
    {Histogram::kQueueNs, "qmatmul_queue_seconds",
     "From admission to the start of the computation.", kSecond},
    {Histogram::kComputeNs, "qmatmul_compute_seconds",
     "Packing the activations, product and epilogue of one run.", kSecond},
    {Histogram::kOutputNs, "qmatmul_output_seconds",
     "From the result to the answer handed to the transport.", kSecond},
    {Histogram::kPackNs, "qmatmul_pack_seconds", "Packing one registered weight.", kSecond},
    {Histogram::kBatchRows, "qmatmul_batch_rows", "Rows that ran together.", 1},
};

ClientMetric CounterSample(double value, Labels labels = {}) {
  ClientMetric sample;
  sample.label = std::move(labels);
  sample.counter.value = value;
  return sample;
}

ClientMetric GaugeSample(double value, Labels labels = {}) {
  ClientMetric sample;
  sample.label = std::move(labels);
  sample.gauge.value = value;
  return sample;
}

MetricFamily& AddFamily(std::vector<MetricFamily>* page, const char* name, const char* help,
                        MetricType type) {
  page->push_back({name, help, type, {}});
  return page->back();
}

void AddGauge(std::vector<MetricFamily>* page, const char* name, const char* help, double value) {
  AddFamily(page, name, help, MetricType::Gauge).metric.push_back(GaugeSample(value));
}

void AddHistogram(std::vector<MetricFamily>* page, const HistogramRow& row,
                  const HistogramReading& reading) {
  ClientMetric sample;
  const auto bounds = BucketBounds(row.histogram);
  uint64_t cumulative = 0;
  for (size_t i = 0; i < reading.counts.size(); ++i) {
    cumulative += static_cast<uint64_t>(reading.counts[i]);
    const double bound = i < bounds.size() ? static_cast<double>(bounds[i]) * row.unit
                                           : std::numeric_limits<double>::infinity();
    sample.histogram.bucket.push_back({cumulative, bound});
  }
  sample.histogram.sample_count = cumulative;
  sample.histogram.sample_sum = static_cast<double>(reading.sum) * row.unit;
  AddFamily(page, row.name, row.help, MetricType::Histogram).metric.push_back(std::move(sample));
}

// Kernels that never ran have no samples: a zero would promise that they can.
void AddKernels(std::vector<MetricFamily>* page, const std::vector<KernelReading>& kernels) {
  MetricFamily ops{"qmatmul_ops_total", "Operations, 2 M K N, by kernel.", MetricType::Counter, {}};
  MetricFamily runs{"qmatmul_runs_total", "Runs of a kernel.", MetricType::Counter, {}};
  MetricFamily busy{
      "qmatmul_kernel_seconds_total", "Time spent in a kernel's runs.", MetricType::Counter, {}};
  MetricFamily gops{"qmatmul_gops",
                    "10^9 operations a second of compute time, over the last 10 s.",
                    MetricType::Gauge,
                    {}};
  for (const KernelReading& k : kernels) {
    if (k.runs == 0) continue;
    const Labels labels{{"device", k.device}, {"kernel", k.kernel}};
    ops.metric.push_back(CounterSample(static_cast<double>(k.ops), labels));
    runs.metric.push_back(CounterSample(static_cast<double>(k.runs), labels));
    busy.metric.push_back(CounterSample(static_cast<double>(k.compute_ns) * kSecond, labels));
    gops.metric.push_back(GaugeSample(k.gops_10s, labels));
  }
  for (MetricFamily* family : {&ops, &runs, &busy, &gops}) page->push_back(std::move(*family));
}

void AddDevices(std::vector<MetricFamily>* page, const Engine& engine) {
  MetricFamily bytes{
      "qmatmul_weight_bytes", "Device memory held by packed weights.", MetricType::Gauge, {}};
  MetricFamily limit{
      "qmatmul_weight_bytes_max", "Device memory that weights may hold.", MetricType::Gauge, {}};
  MetricFamily queued{
      "qmatmul_queued_requests", "Requests waiting for a device.", MetricType::Gauge, {}};
  for (size_t d = 0; d < engine.devices().size(); ++d) {
    const Labels labels{{"device", engine.devices()[d]->info().id}};
    bytes.metric.push_back(GaugeSample(static_cast<double>(engine.weights().bytes(d)), labels));
    limit.metric.push_back(
        GaugeSample(static_cast<double>(engine.weights().limit_bytes(d)), labels));
    queued.metric.push_back(GaugeSample(static_cast<double>(engine.queued(d)), labels));
  }
  MetricFamily quarantined{
      "qmatmul_quarantined", "Kernels put aside, by device.", MetricType::Gauge, {}};
  for (const Device* device : engine.devices())
    quarantined.metric.push_back(GaugeSample(static_cast<double>(device->Quarantined().size()),
                                             {{"device", device->info().id}}));
  for (MetricFamily* family : {&bytes, &limit, &queued, &quarantined})
    page->push_back(std::move(*family));
}

}  // namespace

std::vector<MetricFamily> MetricsPage::Collect() const {
  const MetricsReading reading = engine_.metrics().Read();
  std::vector<MetricFamily> page;
  MetricFamily& requests = AddFamily(&page, "qmatmul_requests_total",
                                     "MatMul requests answered, by outcome.", MetricType::Counter);
  requests.metric.push_back(
      CounterSample(static_cast<double>(reading.at(Counter::kRequestsOk)), {{"outcome", "ok"}}));
  requests.metric.push_back(CounterSample(static_cast<double>(reading.at(Counter::kRequestsFailed)),
                                          {{"outcome", "error"}}));
  MetricFamily& rejected =
      AddFamily(&page, "qmatmul_rejected_total", "Calls refused, of any method, by reason.",
                MetricType::Counter);
  for (const auto& [reason, count] : reading.rejected)
    rejected.metric.push_back(CounterSample(static_cast<double>(count), {{"reason", reason}}));
  MetricFamily& fallbacks =
      AddFamily(&page, "qmatmul_fallback_total",
                "Runs that took a slower way than the best, by reason.", MetricType::Counter);
  for (const auto& [reason, count] : reading.fallbacks)
    fallbacks.metric.push_back(CounterSample(static_cast<double>(count), {{"reason", reason}}));
  for (const CounterRow& row : kCounters)
    AddFamily(&page, row.name, row.help, MetricType::Counter)
        .metric.push_back(CounterSample(static_cast<double>(reading.at(row.counter))));
  for (const HistogramRow& row : kHistograms) AddHistogram(&page, row, reading.at(row.histogram));
  AddKernels(&page, reading.kernels);
  AddDevices(&page, engine_);
  AddGauge(&page, "qmatmul_weights", "Weight names bound.",
           static_cast<double>(engine_.weights().size()));
  AddGauge(&page, "qmatmul_in_flight_requests", "MatMul requests admitted and not yet done.",
           static_cast<double>(engine_.requests_in_flight()));
  AddGauge(&page, "qmatmul_in_flight_bytes", "Input and output bytes of those.",
           static_cast<double>(engine_.bytes_in_flight()));
  AddGauge(&page, "qmatmul_uptime_seconds", "Time since the server started.",
           static_cast<double>(engine_.clock().NowNs() - start_ns_) * kSecond);
  AddFamily(&page, "qmatmul_build_info", "1, labelled with the version.", MetricType::Gauge)
      .metric.push_back(GaugeSample(1, {{"version", QMATMUL_VERSION}}));
  return page;
}

}  // namespace qmatmul
