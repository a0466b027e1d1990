// The registered weights: names bound to content, content held in packed form on each device.
//
// Thread-safety: all methods may be called from any thread. Ownership: Find hands out shared
// handles; the store outlives its uploads.
//
// Invariants
//   1. A name is bound to exactly one content at any time; it moves from one to the next
//   atomically.
//   2. Content is named by the SHA-256 of its identity (docs/numerics.md §1), looked at while it
//   arrives.
//   3. The ledger holds, to the byte, what the packed copies alive hold, whoever holds them.
//   4. A copy that a device lost is packed there again from another device's, when the device is back.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/device.h"
#include "server/engine/clock.h"
#include "server/engine/memory_ledger.h"
#include "server/engine/metrics.h"
#include "server/engine/status.h"
#include "server/engine/weight.h"
#include "server/engine/weight_upload.h"

namespace qmatmul {

class WeightStore {
 public:
  // Devices, clock and metrics outlive the store. A weight is packed for every device that can hold it
  // and has room for it within `bytes_max`, one limit for each device.
  WeightStore(std::span<Device* const> devices, std::vector<int64_t> bytes_max, const Clock& clock,
              Metrics& metrics);

  // Null when the name is not bound. Takes no lock while nothing is bound or unbound.
  WeightPtr Find(std::string_view id) const;
  // Up to `limit` weights with id > after, ordered by id.
  std::vector<WeightPtr> List(std::string_view after, size_t limit) const;
  // Faults at once what can be seen from the spec: WEIGHT_EXISTS when the digest is known to
  // differ.
  Status StartUpload(Registration registration, std::unique_ptr<WeightUpload>* upload);
  // freed_bytes: what the last holder will free; 0 when another name has the same content.
  Status Delete(std::string_view id, int64_t* freed_bytes);

  // A device has been opened anew: lets go of the copies that it lost. They are missed there.
  void DropLost(size_t device);
  // Packs one weight anew, from another device's copy, for a device that misses it: `what` names both. False
  // when no device that works misses any. One without room for it, or that cannot take it, misses it no
  // longer; `status` says why. To be called by one thread at a time.
  bool RestoreNext(std::string* what, Status* status);

  int64_t size() const;
  int64_t bytes(size_t device) const { return ledger_->used(device); }
  int64_t limit_bytes(size_t device) const { return ledger_->limit(device); }

 private:
  friend class WeightUpload;
  // What Find looks into without a lock: each thread keeps the last one it saw. It must not keep
  // weights alive, or a deleted one would be freed when some idle thread next looks something up.
  struct IdHash {
    using is_transparent = void;
    size_t operator()(std::string_view id) const { return std::hash<std::string_view>{}(id); }
  };
  using Index =
      std::unordered_map<std::string, std::weak_ptr<const Weight>, IdHash, std::equal_to<>>;
  struct Snapshot {
    uint64_t version = 0;
    std::shared_ptr<const Index> index;
  };
  struct Bound {
    std::shared_ptr<const WeightContent> content;
    int64_t names = 0;
  };

  std::shared_ptr<const WeightContent> FindContent(const std::string& digest) const;
  // Whether `registration` may bind its name to `digest`. Needs mutex_.
  Status MayBind(const Registration& registration, std::string_view digest) const;
  Status Bind(const Registration& registration, std::shared_ptr<const WeightContent> content,
              WeightPtr* weight);
  void Unbind(const WeightContent& content);  // needs mutex_
  // Names bound to `old` are from now on bound to `content`, which is the same with other copies; unless `old`
  // is bound to no name any more.
  void Replace(const std::shared_ptr<const WeightContent>& old,
               std::shared_ptr<const WeightContent> content);
  // The first of those that a device misses, or null. Only that one is held: what is deleted meanwhile is
  // freed at once.
  std::shared_ptr<const WeightContent> FirstMissed(size_t device, bool with_lost_copy) const;
  Status PackFrom(const WeightContent& content, size_t target,
                  std::shared_ptr<const PackedWeight>* copy);
  WeightPtr FindLocked(std::string_view id) const;
  Snapshot TakeSnapshot() const;
  void Changed();  // needs mutex_
  int64_t NextGeneration() { return generation_.fetch_add(1, std::memory_order_relaxed) + 1; }

  const std::vector<Device*> devices_;
  const Clock& clock_;
  Metrics& metrics_;
  const std::shared_ptr<MemoryLedger> ledger_;
  std::atomic<int64_t> generation_{0};
  std::atomic<uint64_t> version_{0};  // of by_id_; differs from every other store's
  mutable std::shared_mutex mutex_;   // guards what follows
  mutable Snapshot snapshot_;
  std::map<std::string, WeightPtr, std::less<>> by_id_;
  std::map<std::string, Bound, std::less<>> by_digest_;
};

}  // namespace qmatmul
