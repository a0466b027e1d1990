#include "server/engine/executor.h"

#include <absl/container/inlined_vector.h>
#include <pthread.h>

#include <algorithm>

namespace qmatmul {
namespace {

int64_t OpsOf(int64_t rows, const Weight& weight) {
  return 2 * rows * weight.content->spec.k * weight.content->spec.n;
}

// Most requests have so few weights; for those nothing is allocated here.
constexpr size_t kFewWeights = 4;

using WeightList = absl::InlinedVector<const Weight*, kFewWeights>;

// The request's weights in the order in which the device names its kernels: side by side, or the
// steps of a chain.
WeightList WeightsOf(const Request& request) {
  WeightList weights;
  for (const WeightPtr& weight : request.weights) weights.push_back(weight.get());
  for (const ChainLink& link : request.then) weights.push_back(link.weight.get());
  return weights;
}

// The device that computes for one that was lost, or whose memory is short.
constexpr size_t kFallbackIndex = 0;

bool HoldsAll(size_t device, const Request& request) {
  const WeightList weights = WeightsOf(request);
  return std::all_of(weights.begin(), weights.end(),
                     [&](const Weight* weight) { return weight->content->IsOn(device); });
}

// What was seen of each piece's outputs so far: an attempt that fails may have added to it.
std::vector<Outcome> OutcomesOf(std::span<const BatchPiece> pieces) {
  std::vector<Outcome> outcomes;
  for (const BatchPiece& piece : pieces)
    for (const SegmentOutput& output : piece.request->outputs) outcomes.push_back(output.outcome);
  return outcomes;
}

void RestoreOutcomes(const std::vector<Outcome>& before, std::span<const BatchPiece> pieces) {
  auto from = before.begin();
  for (const BatchPiece& piece : pieces)
    for (SegmentOutput& output : piece.request->outputs) output.outcome = *from++;
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

Executor::Executor(size_t device_index, Device& device, Device* fallback, Metrics& metrics,
                   const Clock& clock, const BatcherLimits& limits, Batcher::Predictor predictor)
    : device_index_(device_index),
      device_(device),
      fallback_(fallback),
      metrics_(metrics),
      clock_(clock),
      batcher_(limits, clock, std::move(predictor)),
      compute_thread_([this] { ComputeLoop(); }),
      answer_thread_([this] { AnswerLoop(); }) {
  const std::string& id = device.info().id;
  pthread_setname_np(compute_thread_.native_handle(), ("q-" + id).substr(0, 15).c_str());
  pthread_setname_np(answer_thread_.native_handle(), ("a-" + id).substr(0, 15).c_str());
}

Executor::~Executor() { Stop(); }

void Executor::Stop() {
  batcher_.Stop();
  if (compute_thread_.joinable()) compute_thread_.join();
  if (answer_thread_.joinable()) answer_thread_.join();
}

void Executor::ComputeLoop() {
  Batch batch;
  std::vector<Request*> finished;
  while (batcher_.Take(&batch, &finished)) {
    for (Request* request : finished) Expire(*request);
    if (!batch.pieces.empty()) {
      Run(batch.pieces, /*threads_max=*/0,
          [&finished](Request* request) { finished.push_back(request); });
      batcher_.Done();
    }
    Answer(&finished);
  }
  {
    const std::lock_guard lock(mutex_);
    computing_ended_ = true;
  }
  wake_.notify_one();
}

void Executor::Answer(std::vector<Request*>* finished) {
  if (finished->empty()) return;
  if (batcher_.queued() == 0) {
    for (Request* request : *finished) Complete(request);
  } else {
    const std::lock_guard lock(mutex_);
    answers_.insert(answers_.end(), finished->begin(), finished->end());
    wake_.notify_one();
  }
  finished->clear();
}

void Executor::AnswerLoop() {
  std::vector<Request*> answers;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return computing_ended_ || !answers_.empty(); });
      if (answers_.empty()) return;
      answers.swap(answers_);
    }
    for (Request* request : answers) Complete(request);
    answers.clear();
  }
}

void Executor::Complete(Request* request) {
  // An answer that nobody waits for any more is not worth the transport's time.
  if (request->status.ok() && IsDead(*request)) Expire(*request);
  request->Complete();
}

bool Executor::IsDead(const Request& request) const {
  if (request.cancelled.load(std::memory_order_relaxed)) return true;
  return request.deadline_ns != kNoDeadline && clock_.NowNs() > request.deadline_ns;
}

// A request that failed in an earlier piece keeps its reason.
void Executor::Expire(Request& request) const {
  if (!request.status.ok()) return;
  metrics_.Add(Counter::kExpired);
  request.status = request.cancelled.load(std::memory_order_relaxed)
                       ? Status{Code::kCancelled, "CANCELLED", "the client cancelled the call"}
                       : Status{Code::kDeadlineExceeded, "DEADLINE",
                                "the deadline passed before the answer was there"};
}

void Executor::RunNow(Request* request) {
  request->rows_left = request->activations.rows;
  if (IsDead(*request)) return Complete(request);
  const BatchPiece whole{request, 0, request->activations.rows};
  Run({&whole, 1}, /*threads_max=*/1, [this](Request* finished) { Complete(finished); });
}

void Executor::Run(std::span<const BatchPiece> pieces, int threads_max,
                   absl::FunctionRef<void(Request*)> finish) {
  const int64_t start_ns = clock_.NowNs();
  Segments segments;
  RunReport report;
  const Device* device = &device_;
  const std::vector<Outcome> before =
      fallback_ != nullptr ? OutcomesOf(pieces) : std::vector<Outcome>();
  Fault fault = RunOn(device_index_, device_, pieces, threads_max, &segments, &report);
  const char* const why_redone = fault.kind == FaultKind::kDeviceLost          ? "device_lost"
                                 : fault.kind == FaultKind::kResourceExhausted ? "device_memory"
                                                                               : nullptr;
  if (why_redone != nullptr && fallback_ != nullptr &&
      HoldsAll(kFallbackIndex, *pieces.front().request)) {
    RestoreOutcomes(before, pieces);
    device = fallback_;
    fault = RunOn(kFallbackIndex, *fallback_, pieces, threads_max, &segments, &report);
    report.fallback = why_redone;
  }
  if (fault.ok()) CountRun(*device, *pieces.front().request, segments, report);
  for (size_t i = 0; i < pieces.size(); ++i)
    if (Settle(*device, pieces[i], segments[i], fault, report, start_ns)) finish(pieces[i].request);
}

Fault Executor::RunOn(size_t index, Device& device, std::span<const BatchPiece> pieces,
                      int threads_max, Segments* segments, RunReport* report) {
  const Request& first = *pieces.front().request;
  absl::InlinedVector<std::shared_ptr<const PackedWeight>, kFewWeights> weights;
  for (const Weight* weight : WeightsOf(first)) weights.push_back(weight->content->copies()[index]);
  absl::InlinedVector<WorkStep, 1> steps(1 + first.then.size());
  const std::span<const std::shared_ptr<const PackedWeight>> all(weights);
  steps[0].weights = all.first(first.weights.size());
  steps[0].arithmetic = first.arithmetic;
  for (size_t i = 0; i < first.then.size(); ++i) {
    steps[i + 1].weights = all.subspan(first.weights.size() + i, 1);
    steps[i + 1].arithmetic = first.then[i].arithmetic;
  }
  segments->clear();
  segments->reserve(pieces.size());
  for (const BatchPiece& piece : pieces) {
    RowSegment& segment = segments->emplace_back();
    segment.activations = &piece.request->activations;
    segment.row_begin = piece.row_begin;
    segment.rows = piece.rows;
    segment.outputs = piece.request->outputs;
    segment.intermediates = piece.request->intermediates;
    segment.scales_used = piece.request->scales_used;
  }
  Work work;
  work.segments = *segments;
  work.steps = steps;
  // A forced kernel is one of the device that the request was routed to.
  if (index == device_index_) work.kernel = first.kernel;
  work.threads_max = threads_max;
  return device.Run(work, report);
}

void Executor::CountRun(const Device& device, const Request& first,
                        std::span<const RowSegment> segments, const RunReport& report) {
  int64_t rows = 0;
  for (const RowSegment& segment : segments) rows += segment.fault.ok() ? segment.rows : 0;
  const WeightList weights = WeightsOf(first);
  int64_t all_ops = 0;
  for (const Weight* weight : weights) all_ops += OpsOf(rows, *weight);
  // Weights of several types take several kernels; each is charged its share of the time by its work.
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto end = report.kernels.begin() + static_cast<std::ptrdiff_t>(i);
    if (std::find(report.kernels.begin(), end, report.kernels[i]) != end) continue;
    int64_t ops = 0;
    for (size_t j = i; j < weights.size(); ++j)
      if (report.kernels[j] == report.kernels[i]) ops += OpsOf(rows, *weights[j]);
    const double share =
        all_ops > 0 ? static_cast<double>(ops) / static_cast<double>(all_ops) : 1.0;
    metrics_.AddRun(device.info().id, report.kernels[i], rows, ops,
                    static_cast<int64_t>(share * static_cast<double>(report.compute_ns)));
  }
  metrics_.Observe(Histogram::kComputeNs, report.compute_ns);
  metrics_.Observe(Histogram::kBatchRows, report.rows);
  metrics_.Add(Counter::kRows, report.rows);
  if (!report.fallback.empty()) metrics_.CountFallback(report.fallback);
}

bool Executor::Settle(const Device& device, const BatchPiece& piece, const RowSegment& segment,
                      const Fault& fault, const RunReport& report, int64_t start_ns) {
  Request& request = *piece.request;
  Execution& done = request.execution;
  if (piece.row_begin == 0) {
    done.device = device.info().id;
    done.kernels = report.kernels;
    done.queue_ns = start_ns - request.admitted_ns;
    metrics_.Observe(Histogram::kQueueNs, done.queue_ns);
  }
  done.batch_rows = std::max(done.batch_rows, report.rows);
  done.padded_rows = std::max(done.padded_rows, report.padded_rows);
  done.compute_ns += report.compute_ns;
  if (!fault.ok()) {
    request.status = FromFault(fault);
  } else if (!segment.fault.ok()) {
    request.status = FromFault(segment.fault, "activations.data");
  }
  request.rows_left -= piece.rows;
  // What of a failed request still waits comes back from the batcher as dropped.
  if (request.rows_left > 0) return false;
  int64_t overflows = 0;
  for (const SegmentOutput& output : request.outputs) overflows += output.outcome.overflow_count;
  if (overflows > 0) metrics_.Add(Counter::kOutputOverflows, overflows);
  if (request.status.ok()) request.status = OverflowStatus(request);
  return true;
}

}  // namespace qmatmul
