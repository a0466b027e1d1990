#include "server/engine/engine.h"

#include <algorithm>
#include <cassert>

namespace qmatmul {
namespace {

// What a refused client is told to wait: for room among the requests in flight, and for a successor.
constexpr int64_t kRoomRetryNs = 1'000'000;
constexpr int64_t kDrainRetryNs = 1'000'000'000;
// Of a device for which the options name no limit.
constexpr int64_t kWeightBytesMax = int64_t{1} << 40;

std::vector<Metrics::KernelKey> KernelKeys(const std::vector<Device*>& devices) {
  std::vector<Metrics::KernelKey> keys;
  for (const Device* device : devices)
    for (const KernelInfo& kernel : device->Kernels())
      keys.push_back({device->info().id, kernel.name});
  return keys;
}

std::string RuleText(const RouteQuery& query, const Route& route,
                     const std::string& kernel_reason) {
  std::string rule = "rows = " + std::to_string(query.rows) + ": ";
  rule += query.device.empty() ? "device by least predicted time" : "device forced by the request";
  rule += query.kernel.empty() ? "; kernel by rows" : "; kernel forced by the request";
  if (!kernel_reason.empty()) rule += " (" + kernel_reason + ")";
  rule += route.runs_inline ? "; inline, shorter than a hand-off" : "; queued";
  return rule;
}

}  // namespace

Engine::Engine(std::vector<std::unique_ptr<Device>> devices, const EngineOptions& options,
               const Clock& clock)
    : options_(options), clock_(clock), devices_(std::move(devices)) {
  assert(!devices_.empty());
  for (const auto& device : devices_) device_list_.push_back(device.get());
  metrics_ = std::make_unique<Metrics>(KernelKeys(device_list_), options.metrics);
  std::vector<int64_t> weight_bytes_max = options.weight_bytes_max;
  weight_bytes_max.resize(device_list_.size(), kWeightBytesMax);
  weights_ =
      std::make_unique<WeightStore>(device_list_, std::move(weight_bytes_max), clock_, *metrics_);
  router_ =
      std::make_unique<Router>(device_list_, options.known_device_kinds, options.inline_ns_max);
  for (size_t d = 0; d < device_list_.size(); ++d) {
    const auto predict = [this, d](const Request& request, int64_t rows) {
      return router_->PredictNs(d, QueryOf(request), rows, 0);
    };
    Device* const fallback = d == 0 ? nullptr : device_list_.front();
    executors_.push_back(std::make_unique<Executor>(d, *device_list_[d], fallback, *metrics_,
                                                    clock_, options.batcher, predict));
  }
}

Engine::~Engine() { Stop(); }

void Engine::Hold(bool held) {
  held_.store(held, std::memory_order_relaxed);
  for (const auto& executor : executors_) executor->Hold(held);
}

void Engine::Stop() {
  stopped_.store(true, std::memory_order_relaxed);
  for (const auto& executor : executors_) executor->Stop();
}

Status Engine::Admit(Request* request) {
  if (stopped_.load(std::memory_order_relaxed)) {
    Status status{Code::kUnavailable, "DRAINING", "the server is shutting down; try another"};
    status.retry_after_ns = kDrainRetryNs;
    return status;
  }
  gauge_.requests.fetch_add(1, std::memory_order_relaxed);
  const int64_t others = gauge_.bytes.fetch_add(request->bytes, std::memory_order_relaxed);
  request->admission = Admission(&gauge_, request->bytes);
  request->admitted_ns = clock_.NowNs();
  if (others + request->bytes <= options_.in_flight_bytes_max) return {};
  request->admission = Admission();
  Status status = Status{Code::kUnavailable, "IN_FLIGHT_BYTES",
                         "requests in flight hold " + std::to_string(others) +
                             " bytes, this one needs " + std::to_string(request->bytes) + " of " +
                             std::to_string(options_.in_flight_bytes_max)}
                      .With("value", std::to_string(request->bytes))
                      .With("limit", std::to_string(options_.in_flight_bytes_max));
  status.retry_after_ns = kRoomRetryNs;
  return status;
}

bool Engine::Rearm(std::string_view key) {
  for (size_t d = 0; d < device_list_.size(); ++d)
    if (RearmOn(d, key)) return true;
  return false;
}

bool Engine::RearmOn(size_t device, std::string_view key) {
  if (!device_list_[device]->Rearm(key)) return false;
  weights_->DropLost(device);
  return true;
}

std::vector<std::string> Engine::ReviveDevices() {
  std::vector<std::string> back;
  for (size_t d = 0; d < device_list_.size(); ++d) {
    const std::string& id = device_list_[d]->info().id;
    if (IsLost(*device_list_[d]) && RearmOn(d, id)) back.push_back(id);
  }
  return back;
}

absl::InlinedVector<int64_t, 8> Engine::Backlogs() const {
  absl::InlinedVector<int64_t, 8> backlog_ns;
  for (const auto& executor : executors_) backlog_ns.push_back(executor->backlog_ns());
  return backlog_ns;
}

void Engine::Refuse(Request* request, Status status) {
  request->status = std::move(status);
  request->Complete();
}

void Engine::Submit(Request* request) {
  const RouteQuery query = QueryOf(*request);
  Route route;
  if (Status status = router_->Choose(query, Backlogs(), &route); !status.ok())
    return Refuse(request, std::move(status));
  Executor& executor = *executors_[route.device];
  if (query.rows == 0) {
    request->execution.device = device_list_[route.device]->info().id;
    request->Complete();
    return;
  }
  if (route.runs_inline && !held_.load(std::memory_order_relaxed)) {
    metrics_->Add(Counter::kInlineRuns);
    executor.RunNow(request);
    return;
  }
  if (Status status = executor.Submit(request); !status.ok()) {
    if (status.code == Code::kDeadlineExceeded) metrics_->Add(Counter::kExpired);
    Refuse(request, std::move(status));
  }
}

Status Engine::Explain(const RouteQuery& query, Plan* plan) const {
  Route route;
  if (Status status = router_->Choose(query, Backlogs(), &route); !status.ok()) return status;
  std::vector<size_t> order{route.device};
  for (size_t d = 0; d < device_list_.size(); ++d)
    if (d != route.device) order.push_back(d);
  std::string reason;
  for (const size_t d : order) {
    const std::string& id = device_list_[d]->info().id;
    if (std::string absence = WhyNotHeld(query, d); !absence.empty()) {
      plan->candidates.push_back({id, {"", false, false, std::nullopt, std::move(absence)}});
      continue;
    }
    std::vector<std::shared_ptr<const PackedWeight>> packed;
    for (const WeightPtr& weight : query.weights) packed.push_back(weight->content->copies()[d]);
    for (KernelChoice& choice :
         device_list_[d]->Explain(query.rows, packed, query.arithmetic, query.kernel)) {
      choice.chosen = choice.chosen && d == route.device;
      if (choice.chosen) {
        plan->kernel = choice.name;
        reason = choice.reason;
      }
      plan->candidates.push_back({id, std::move(choice)});
    }
  }
  plan->device = device_list_[route.device]->info().id;
  plan->runs_inline = route.runs_inline;
  plan->rule = RuleText(query, route, reason);
  return {};
}

}  // namespace qmatmul
