#include "server/engine/router.h"

#include <algorithm>
#include <limits>
#include <optional>

namespace qmatmul {
namespace {

constexpr size_t kNoDevice = std::numeric_limits<size_t>::max();

bool HoldsAll(size_t device, const RouteQuery& query) {
  const auto holds = [&](const WeightPtr& w) { return w->content->IsOn(device); };
  return std::all_of(query.weights.begin(), query.weights.end(), holds) &&
         std::all_of(query.then.begin(), query.then.end(),
                     [&](const ChainLink& link) { return holds(link.weight); });
}

}  // namespace

RouteQuery QueryOf(const Request& request) {
  return {request.activations.rows, request.weights, request.arithmetic,
          request.device,           request.kernel,  request.then};
}

std::string WhyNotHeld(const RouteQuery& query, size_t device) {
  std::string why;
  const auto look_at = [&](const Weight& weight) {
    if (weight.content->IsOn(device)) return;
    why += (why.empty() ? "weights/" : "; weights/") + weight.id +
           " is not here: " + weight.content->AbsenceOn(device).reason;
  };
  for (const WeightPtr& weight : query.weights) look_at(*weight);
  for (const ChainLink& link : query.then) look_at(*link.weight);
  return why;
}

Router::Router(std::span<Device* const> devices, std::vector<std::string> known_kinds,
               int64_t inline_ns_max)
    : devices_(devices.begin(), devices.end()),
      known_kinds_(std::move(known_kinds)),
      inline_ns_max_(inline_ns_max) {
  for (size_t d = 0; d < devices_.size(); ++d)
    for (KernelInfo& info : devices_[d]->Kernels()) kernels_.push_back({d, std::move(info)});
}

bool Router::Fits(size_t device, std::string_view forced) const {
  const DeviceInfo& info = devices_[device]->info();
  return forced.empty() || forced == info.id || forced == info.kind;
}

Status Router::CheckDevice(std::string_view forced) const {
  for (size_t d = 0; d < devices_.size(); ++d)
    if (Fits(d, forced)) return {};
  const std::string_view kind = forced.substr(0, forced.find(':'));
  const bool known =
      std::find(known_kinds_.begin(), known_kinds_.end(), kind) != known_kinds_.end();
  std::string present;
  for (const Device* device : devices_)
    present += (present.empty() ? "" : ", ") + device->info().id;
  const std::string name(forced);
  if (known)
    return Status{Code::kFailedPrecondition, "DEVICE_ABSENT",
                  "device " + name + " is not on this machine; present: " + present,
                  "options.device"}
        .With("value", name);
  return Status{Code::kInvalidArgument, "DEVICE_UNKNOWN",
                "device \"" + name + "\" is neither an id nor a kind; present: " + present,
                "options.device"}
      .With("value", name);
}

Status Router::CheckKernel(const RouteQuery& query, size_t* device) const {
  const std::string name(query.kernel);
  const auto row = std::find_if(kernels_.begin(), kernels_.end(),
                                [&](const Kernel& k) { return k.info.name == query.kernel; });
  if (row == kernels_.end())
    return Status{Code::kInvalidArgument, "KERNEL_UNKNOWN",
                  "kernel \"" + name + "\" is not built in; ListKernels names those that are",
                  "options.kernel"}
        .With("value", name);
  if (!row->info.supported || row->info.disabled)
    return Status{Code::kFailedPrecondition, "KERNEL_UNSUPPORTED",
                  "kernel " + name + " cannot run here: " + row->info.reason, "options.kernel"}
        .With("value", name);
  if (!Fits(row->device, query.device))
    return Status{Code::kFailedPrecondition, "KERNEL_UNSUPPORTED",
                  "kernel " + name + " is not one of device " + std::string(query.device),
                  "options.kernel"}
        .With("value", name);
  for (const WeightPtr& weight : query.weights)
    if (Status s = CheckKernelFits(row->info, *weight, query.arithmetic); !s.ok()) return s;
  for (const ChainLink& link : query.then)
    if (Status s = CheckKernelFits(row->info, *link.weight, link.arithmetic); !s.ok()) return s;
  *device = row->device;
  return {};
}

Status Router::CheckKernelFits(const KernelInfo& kernel, const Weight& weight,
                               Arithmetic arithmetic) const {
  const DataType dtype = weight.content->spec.dtype;
  if (kernel.weight == dtype && kernel.arithmetic == arithmetic) return {};
  return Status{Code::kFailedPrecondition, "KERNEL_UNSUPPORTED",
                "kernel " + kernel.name + " multiplies " + std::string(NameOf(kernel.weight)) +
                    " weights by " + std::string(NameOf(kernel.arithmetic)) + "; weights/" +
                    weight.id + " is " + std::string(NameOf(dtype)) + " and the request " +
                    std::string(NameOf(arithmetic)),
                "options.kernel"}
      .With("value", kernel.name);
}

int64_t Router::PredictNs(size_t device, const RouteQuery& query, int64_t rows, int threads) const {
  const auto predict = [&](const Weight& weight, Arithmetic arithmetic) {
    return devices_[device]->PredictNs(rows, *weight.content->copies()[device], arithmetic,
                                       threads);
  };
  int64_t ns = 0;
  for (const WeightPtr& weight : query.weights) ns += predict(*weight, query.arithmetic);
  for (const ChainLink& link : query.then) ns += predict(*link.weight, link.arithmetic);
  return ns;
}

Status Router::Choose(const RouteQuery& query, std::span<const int64_t> backlog_ns,
                      Route* route) const {
  size_t forced = kNoDevice;
  if (!query.device.empty()) {
    if (Status status = CheckDevice(query.device); !status.ok()) return status;
  }
  if (!query.kernel.empty()) {
    if (Status status = CheckKernel(query, &forced); !status.ok()) return status;
  }
  const auto done_ns = [&](size_t d) { return PredictNs(d, query, query.rows, 0) + backlog_ns[d]; };
  size_t best = kNoDevice;
  std::optional<int64_t> best_ns;  // predicted only where there is something to compare with
  for (size_t d = 0; d < devices_.size(); ++d) {
    if ((forced != kNoDevice && d != forced) || !Fits(d, query.device) || !HoldsAll(d, query))
      continue;
    if (best == kNoDevice) {
      best = d;
      continue;
    }
    if (!best_ns) best_ns = done_ns(best);
    const int64_t ns = done_ns(d);
    // Ties go to the first: the CPU, which needs no transfer.
    if (ns >= *best_ns) continue;
    best = d;
    best_ns = ns;
  }
  if (best == kNoDevice) {
    std::string message = "no device that fits holds all weights of this request";
    for (size_t d = 0; d < devices_.size(); ++d)
      if (Fits(d, query.device))
        message += "; " + devices_[d]->info().id + ": " + WhyNotHeld(query, d);
    return {Code::kFailedPrecondition, "DEVICE_ABSENT", std::move(message), "options.device"};
  }
  route->device = best;
  // A lane computes here and now only where a Run needs no hand-off of its own: on the CPU.
  route->runs_inline = devices_[best]->info().kind == "cpu" &&
                       PredictNs(best, query, query.rows, 1) <= inline_ns_max_;
  return {};
}

}  // namespace qmatmul
