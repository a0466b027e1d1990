#include "server/engine/weight_store.h"

#include <algorithm>
#include <cassert>

#include "server/engine/device_packing.h"

namespace qmatmul {
namespace {

// What is read of a packed weight at a time to pack it elsewhere.
constexpr int64_t kRestoreBytes = int64_t{1} << 20;

}  // namespace

WeightStore::WeightStore(std::span<Device* const> devices, std::vector<int64_t> bytes_max,
                         const Clock& clock, Metrics& metrics)
    : devices_(devices.begin(), devices.end()),
      clock_(clock),
      metrics_(metrics),
      ledger_(std::make_shared<MemoryLedger>(std::move(bytes_max))) {
  Changed();
}

void WeightStore::Changed() {
  static std::atomic<uint64_t> next{0};
  version_.store(next.fetch_add(1, std::memory_order_relaxed) + 1, std::memory_order_release);
}

WeightStore::Snapshot WeightStore::TakeSnapshot() const {
  const std::unique_lock lock(mutex_);
  const uint64_t version = version_.load(std::memory_order_relaxed);
  if (snapshot_.version != version) {
    auto index = std::make_shared<Index>();
    index->reserve(by_id_.size());
    for (const auto& [id, weight] : by_id_) index->emplace(id, weight);
    snapshot_ = {version, std::move(index)};
  }
  return snapshot_;
}

WeightPtr WeightStore::Find(std::string_view id) const {
  thread_local Snapshot seen;
  if (seen.version != version_.load(std::memory_order_acquire)) seen = TakeSnapshot();
  const auto row = seen.index->find(id);
  if (row == seen.index->end()) return nullptr;
  // Gone since the look at the version: what is bound to the name now, if anything?
  if (WeightPtr weight = row->second.lock()) return weight;
  return FindLocked(id);
}

WeightPtr WeightStore::FindLocked(std::string_view id) const {
  const std::shared_lock lock(mutex_);
  const auto row = by_id_.find(id);
  return row == by_id_.end() ? nullptr : row->second;
}

std::vector<WeightPtr> WeightStore::List(std::string_view after, size_t limit) const {
  std::vector<WeightPtr> page;
  const std::shared_lock lock(mutex_);
  for (auto row = by_id_.upper_bound(after); row != by_id_.end() && page.size() < limit; ++row)
    page.push_back(row->second);
  return page;
}

Status WeightStore::StartUpload(Registration registration, std::unique_ptr<WeightUpload>* upload) {
  std::shared_ptr<const WeightContent> known;
  if (!registration.expected_digest.empty()) {
    const std::shared_lock lock(mutex_);
    if (Status status = MayBind(registration, registration.expected_digest); !status.ok())
      return status;
    const auto row = by_digest_.find(registration.expected_digest);
    if (row != by_digest_.end()) known = row->second.content;
  }
  if (known != nullptr && !(known->spec == registration.spec)) {
    return {Code::kInvalidArgument, "DIGEST_MISMATCH",
            "expected_digest " + registration.expected_digest +
                " belongs to content with another spec (" + IdentityLine(known->spec) +
                "); send the spec that was hashed",
            "spec.expected_digest"};
  }
  *upload = std::make_unique<WeightUpload>(*this, std::move(registration), std::move(known));
  return {};
}

Status WeightStore::Delete(std::string_view id, int64_t* freed_bytes) {
  WeightPtr weight;  // dropped after the lock, since freeing a large weight takes its time
  const std::unique_lock lock(mutex_);
  const auto row = by_id_.find(id);
  if (row == by_id_.end())
    return Status{Code::kNotFound, "WEIGHT_UNKNOWN",
                  "no weight is named weights/" + std::string(id)}
        .With("value", "weights/" + std::string(id));
  weight = std::move(row->second);
  by_id_.erase(row);
  Changed();
  Unbind(*weight->content);
  *freed_bytes = by_digest_.contains(weight->content->digest) ? 0 : weight->content->bytes();
  return {};
}

std::shared_ptr<const WeightContent> WeightStore::FirstMissed(size_t device,
                                                              bool with_lost_copy) const {
  const std::shared_lock lock(mutex_);
  for (const auto& [digest, bound] : by_digest_)
    if (bound.content->IsMissedOn(device) &&
        (!with_lost_copy || bound.content->copies()[device] != nullptr))
      return bound.content;
  return nullptr;
}

void WeightStore::Replace(const std::shared_ptr<const WeightContent>& old,
                          std::shared_ptr<const WeightContent> content) {
  std::vector<WeightPtr> previous;  // dropped after the lock
  const std::unique_lock lock(mutex_);
  const auto row = by_digest_.find(old->digest);
  if (row == by_digest_.end() || row->second.content != old) return;
  row->second.content = std::move(content);
  for (auto& [id, weight] : by_id_) {
    if (weight->content != old) continue;
    previous.push_back(std::move(weight));
    weight =
        std::make_shared<Weight>(Weight{id, row->second.content, previous.back()->create_time_ns});
  }
  Changed();
}

void WeightStore::DropLost(size_t device) {
  while (const auto content = FirstMissed(device, /*with_lost_copy=*/true))
    Replace(content,
            content->With(device, nullptr, {devices_[device]->info().id, "", /*is_missed=*/true}));
}

bool WeightStore::RestoreNext(std::string* what, Status* status) {
  for (size_t device = 0; device < devices_.size(); ++device) {
    if (IsLost(*devices_[device])) continue;
    const auto content = FirstMissed(device, /*with_lost_copy=*/false);
    if (content == nullptr) continue;
    std::shared_ptr<const PackedWeight> copy;
    *status = PackFrom(*content, device, &copy);
    if (IsLoss(*status)) continue;  // once more; it is missed until it is there
    const std::string& id = devices_[device]->info().id;
    *what = "digest " + content->digest + " for " + id;
    Replace(content, content->With(device, std::move(copy), {id, status->message}));
    return true;
  }
  return false;
}

Status WeightStore::PackFrom(const WeightContent& content, size_t target,
                             std::shared_ptr<const PackedWeight>* copy) {
  size_t source = 0;
  while (source < devices_.size() && !content.IsOn(source)) ++source;
  if (source == devices_.size())
    return {Code::kUnavailable, "WEIGHT_LOST",
            "every device that held it was lost; to have it again, delete it and register it anew"};
  std::unique_ptr<DevicePacking> packing;
  if (Status status =
          DevicePacking::Start(target, *devices_[target], ledger_, content.spec, &packing);
      !status.ok())
    return status;
  const int64_t upload_bytes = content.spec.upload_bytes();
  std::vector<std::byte> bytes(static_cast<size_t>(std::min(upload_bytes, kRestoreBytes)));
  for (int64_t at = 0; at < upload_bytes; at += kRestoreBytes) {
    const std::span piece(bytes.data(),
                          static_cast<size_t>(std::min(kRestoreBytes, upload_bytes - at)));
    if (const Fault fault = devices_[source]->ReadUpload(*content.copies()[source], at, piece);
        !fault.ok())
      return FromFault(fault);
    if (Status status = packing->Append(piece); !status.ok()) return status;
  }
  return packing->Finish(copy);
}

int64_t WeightStore::size() const {
  const std::shared_lock lock(mutex_);
  return static_cast<int64_t>(by_id_.size());
}

std::shared_ptr<const WeightContent> WeightStore::FindContent(const std::string& digest) const {
  const std::shared_lock lock(mutex_);
  const auto row = by_digest_.find(digest);
  return row == by_digest_.end() ? nullptr : row->second.content;
}

Status WeightStore::MayBind(const Registration& r, std::string_view digest) const {
  const auto row = by_id_.find(r.id);
  if (row == by_id_.end()) {
    if (r.replace_digest.empty()) return {};
    return Status{Code::kNotFound, "WEIGHT_UNKNOWN",
                  "replace_digest is given but no weight is named weights/" + r.id +
                      "; leave it empty to create it"}
        .With("value", "weights/" + r.id);
  }
  const std::string& current = row->second->content->digest;
  if (current == digest) return {};  // binding the same again changes nothing
  const bool replaces = r.replace_digest.empty() ? r.replace : r.replace_digest == current;
  if (replaces) return {};
  return Status{Code::kAlreadyExists, "WEIGHT_EXISTS",
                "weights/" + r.id + " holds other content (digest " + current + "); " +
                    (r.replace_digest.empty() ? "set replace to move the name"
                                              : "replace_digest " + r.replace_digest + " is stale")}
      .With("current_digest", current);
}

Status WeightStore::Bind(const Registration& r, std::shared_ptr<const WeightContent> content,
                         WeightPtr* weight) {
  WeightPtr previous;  // dropped after the lock
  const std::unique_lock lock(mutex_);
  if (Status status = MayBind(r, content->digest); !status.ok()) return status;
  WeightPtr& slot = by_id_[r.id];
  if (slot != nullptr && slot->content->digest == content->digest) {
    *weight = slot;
    return {};
  }
  Bound& bound = by_digest_[content->digest];
  if (bound.content == nullptr) bound.content = std::move(content);
  ++bound.names;
  previous = std::move(slot);
  slot = std::make_shared<Weight>(Weight{r.id, bound.content, clock_.UnixNs()});
  Changed();
  *weight = slot;
  if (previous != nullptr) Unbind(*previous->content);
  return {};
}

void WeightStore::Unbind(const WeightContent& content) {
  const auto row = by_digest_.find(content.digest);
  assert(row != by_digest_.end());
  if (--row->second.names == 0) by_digest_.erase(row);
}

}  // namespace qmatmul
