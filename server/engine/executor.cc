#include "server/engine/executor.h"

#include <pthread.h>

#include <algorithm>

namespace qmatmul {
namespace {

int64_t OpsOf(int64_t rows, const Weight& weight) {
  return 2 * rows * weight.content->spec.k * weight.content->spec.n;
}

// The first output of the request that had to fit and did not.
Status OverflowStatus(const Request& request) {
  for (size_t i = 0; i < request.outputs.size(); ++i) {
    const SegmentOutput& output = request.outputs[i];
    if (output.epilogue.overflow != Overflow::kError || output.outcome.overflow_count == 0)
      continue;
    const std::string row = std::to_string(output.outcome.first_overflow_row);
    const std::string column = std::to_string(output.outcome.first_overflow_column);
    const std::string count = std::to_string(output.outcome.overflow_count);
    return Status{Code::kOutOfRange, "OVERFLOW",
                  count + " results of output " + std::to_string(i) + " do not fit " +
                      std::string(NameOf(output.epilogue.dtype)) + ", the first at row " + row +
                      ", column " + column +
                      "; use OVERFLOW_SATURATE, OVERFLOW_WRAP or a wider type",
                  "outputs[" + std::to_string(i) + "].overflow"}
        .With("row", row)
        .With("column", column)
        .With("count", count);
  }
  return {};
}

}  // namespace

Executor::Executor(size_t device_index, Device& device, Metrics& metrics, const Clock& clock,
                   int64_t queue_max)
    : device_index_(device_index),
      device_(device),
      metrics_(metrics),
      clock_(clock),
      queue_max_(static_cast<size_t>(queue_max)),
      thread_([this] { Loop(); }) {
  pthread_setname_np(thread_.native_handle(), ("q-" + device.info().id).substr(0, 15).c_str());
}

Executor::~Executor() { Stop(); }

bool Executor::Submit(Batch& batch) {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_ || queue_.size() >= queue_max_) return false;
    backlog_ns_.fetch_add(batch.predicted_ns, std::memory_order_relaxed);
    queue_.push_back(std::move(batch));
  }
  wake_.notify_one();
  return true;
}

void Executor::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

int64_t Executor::queued() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(queue_.size());
}

void Executor::Loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopped_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Batch batch = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    Run(batch, /*threads_max=*/0);
    backlog_ns_.fetch_sub(batch.predicted_ns, std::memory_order_relaxed);
    lock.lock();
  }
}

void Executor::DropExpired(Batch& batch, int64_t now_ns) {
  std::erase_if(batch.requests, [&](Request* request) {
    const bool cancelled = request->cancelled.load(std::memory_order_relaxed);
    if (!cancelled && now_ns <= request->deadline_ns) return false;
    request->status =
        cancelled ? Status{Code::kCancelled, "CANCELLED",
                           "the client cancelled before the computation began"}
                  : Status{Code::kDeadlineExceeded, "DEADLINE", "the deadline passed in the queue"};
    metrics_.Add(Counter::kExpired);
    request->Complete();
    return true;
  });
}

void Executor::Run(Batch& batch, int threads_max) {
  const int64_t start_ns = clock_.NowNs();
  DropExpired(batch, start_ns);
  if (batch.requests.empty()) return;

  const Request& first = *batch.requests.front();
  std::vector<std::shared_ptr<const PackedWeight>> weights;
  weights.reserve(first.weights.size());
  for (const WeightPtr& weight : first.weights)
    weights.push_back(weight->content->copies()[device_index_]);
  std::vector<RowSegment> segments;
  segments.reserve(batch.requests.size());
  for (Request* request : batch.requests) {
    RowSegment& segment = segments.emplace_back();
    segment.activations = &request->activations;
    segment.rows = request->activations.rows;
    segment.outputs = request->outputs;
    segment.scales_used = request->scales_used;
  }
  WorkStep step;
  step.weights = weights;
  step.arithmetic = first.arithmetic;
  Work work;
  work.segments = segments;
  work.steps = {&step, 1};
  work.kernel = first.kernel;
  work.threads_max = threads_max;

  RunReport report;
  const Fault fault = device_.Run(work, &report);
  Deliver(batch, segments, fault, report, start_ns);
}

void Executor::CountRun(const Batch& batch, const std::vector<RowSegment>& segments,
                        const RunReport& report) {
  int64_t rows = 0;
  for (const RowSegment& segment : segments) rows += segment.fault.ok() ? segment.rows : 0;
  const std::vector<WeightPtr>& weights = batch.requests.front()->weights;
  int64_t all_ops = 0;
  for (const WeightPtr& weight : weights) all_ops += OpsOf(rows, *weight);
  // Weights of several types take several kernels; each is charged its share of the time by its work.
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto end = report.kernels.begin() + static_cast<std::ptrdiff_t>(i);
    if (std::find(report.kernels.begin(), end, report.kernels[i]) != end) continue;
    int64_t ops = 0;
    for (size_t j = i; j < weights.size(); ++j)
      if (report.kernels[j] == report.kernels[i]) ops += OpsOf(rows, *weights[j]);
    const double share =
        all_ops > 0 ? static_cast<double>(ops) / static_cast<double>(all_ops) : 1.0;
    metrics_.AddRun(device_.info().id, report.kernels[i], rows, ops,
                    static_cast<int64_t>(share * static_cast<double>(report.compute_ns)));
  }
  metrics_.Observe(Histogram::kComputeNs, report.compute_ns);
  metrics_.Observe(Histogram::kBatchRows, report.rows);
  metrics_.Add(Counter::kRows, report.rows);
  if (!report.fallback.empty()) metrics_.CountFallback(report.fallback);
}

void Executor::Deliver(Batch& batch, std::vector<RowSegment>& segments, const Fault& fault,
                       const RunReport& report, int64_t start_ns) {
  if (fault.ok()) CountRun(batch, segments, report);
  for (size_t i = 0; i < batch.requests.size(); ++i) {
    Request& request = *batch.requests[i];
    request.execution = {device_.info().id,
                         report.kernels,
                         report.rows,
                         report.padded_rows,
                         start_ns - request.admitted_ns,
                         report.compute_ns};
    metrics_.Observe(Histogram::kQueueNs, request.execution.queue_ns);
    int64_t overflows = 0;
    for (const SegmentOutput& output : request.outputs) overflows += output.outcome.overflow_count;
    if (overflows > 0) metrics_.Add(Counter::kOutputOverflows, overflows);
    if (!fault.ok()) {
      request.status = FromFault(fault);
    } else if (!segments[i].fault.ok()) {
      request.status = FromFault(segments[i].fault, "activations.data");
    } else {
      request.status = OverflowStatus(request);
    }
    request.Complete();
  }
}

}  // namespace qmatmul
