// The registered weights: names bound to content, content held in packed form on each device.
//
// Why two types: a Weight is a name's binding, a WeightContent is what it is bound to. Two names
// may be bound to the same content, which is then packed and held once.
//
// Thread-safety: all methods of WeightStore may be called from any thread; a WeightUpload is used
// by one thread at a time. Ownership: Find hands out shared handles; deleting or replacing a name
// never frees memory under a request, the last holder does. The store outlives its uploads.
//
// Invariants
//   1. A name is bound to exactly one content at any time; it moves from one to the next
//   atomically.
//   2. Content is named by the SHA-256 of its identity (docs/numerics.md §1), looked at while it
//   arrives.
//   3. The ledger holds, to the byte, what the packed copies alive hold, whoever holds them.
//   4. An upload that fails leaves names, contents and ledger as they were.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"
#include "server/engine/clock.h"
#include "server/engine/metrics.h"
#include "server/engine/status.h"

namespace qmatmul {

// Bytes of weights in the memory of each device, and how many there may be.
class MemoryLedger {
 public:
  MemoryLedger(size_t devices, int64_t limit_bytes)
      : limit_(limit_bytes), used_(devices), reserved_(devices) {}

  // Sets room aside for a copy being packed; false when it would not fit.
  bool Reserve(size_t device, int64_t bytes);
  void Unreserve(size_t device, int64_t bytes);
  // The copy is there: what was set aside becomes what it really holds. False when that does not
  // fit, and then the reservation stands.
  bool Commit(size_t device, int64_t reserved, int64_t bytes);
  void Free(size_t device, int64_t bytes);

  int64_t limit() const { return limit_; }
  int64_t used(size_t device) const;

 private:
  const int64_t limit_;
  mutable std::mutex mutex_;
  std::vector<int64_t> used_;
  std::vector<int64_t> reserved_;
};

// One packed content. Immutable; its destructor gives its bytes back.
class WeightContent {
 public:
  WeightContent(WeightSpec spec, std::string digest, int64_t generation,
                std::shared_ptr<MemoryLedger> ledger,
                std::vector<std::shared_ptr<const PackedWeight>> copies);
  ~WeightContent();
  WeightContent(const WeightContent&) = delete;
  WeightContent& operator=(const WeightContent&) = delete;

  const WeightSpec spec;
  const std::string digest;  // 64 lower-case hex characters
  const int64_t generation;  // grows with every content packed by this store
  // By device index; null where the device holds no copy.
  const std::vector<std::shared_ptr<const PackedWeight>>& copies() const { return copies_; }
  int64_t bytes() const;

 private:
  std::vector<std::shared_ptr<const PackedWeight>> copies_;
  std::shared_ptr<MemoryLedger> ledger_;
};

// One name and what it was bound to when it was looked up.
struct Weight {
  std::string id;  // without "weights/"
  std::shared_ptr<const WeightContent> content;
  int64_t create_time_ns = 0;  // Unix time of the binding
};
using WeightPtr = std::shared_ptr<const Weight>;

// How an upload wants its name bound.
struct Registration {
  std::string id;
  WeightSpec spec;              // has passed CheckSpec
  std::string expected_digest;  // may be empty
  bool replace = false;
  std::string replace_digest;  // may be empty
};

struct RegisterResult {
  WeightPtr weight;
  bool already_registered = false;  // the content was known
};

class WeightUpload;

class WeightStore {
 public:
  // Devices, clock and metrics outlive the store. A weight is packed for every device that can hold
  // it.
  WeightStore(std::span<Device* const> devices, int64_t device_bytes_max, const Clock& clock,
              Metrics& metrics);

  // Null when the name is not bound.
  WeightPtr Find(std::string_view id) const;
  // Up to `limit` weights with id > after, ordered by id.
  std::vector<WeightPtr> List(std::string_view after, size_t limit) const;
  // Faults at once what can be seen from the spec: WEIGHT_EXISTS when the digest is known to
  // differ.
  Status StartUpload(Registration registration, std::unique_ptr<WeightUpload>* upload);
  // freed_bytes: what the last holder will free; 0 when another name has the same content.
  Status Delete(std::string_view id, int64_t* freed_bytes);

  int64_t size() const;
  int64_t bytes(size_t device) const { return ledger_->used(device); }
  int64_t limit_bytes() const { return ledger_->limit(); }

 private:
  friend class WeightUpload;
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
  int64_t NextGeneration() { return generation_.fetch_add(1, std::memory_order_relaxed) + 1; }

  const std::vector<Device*> devices_;
  const Clock& clock_;
  Metrics& metrics_;
  const std::shared_ptr<MemoryLedger> ledger_;
  std::atomic<int64_t> generation_{0};
  mutable std::shared_mutex mutex_;  // guards what follows
  std::map<std::string, WeightPtr, std::less<>> by_id_;
  std::map<std::string, Bound, std::less<>> by_digest_;
};

// One weight on its way in: hashed and packed as its bytes arrive, at most 4 MiB beyond the packed
// copy. Dropping it before Finish frees everything.
class WeightUpload {
 public:
  WeightUpload(WeightStore& store, Registration registration,
               std::shared_ptr<const WeightContent> known);
  ~WeightUpload();
  WeightUpload(const WeightUpload&) = delete;
  WeightUpload& operator=(const WeightUpload&) = delete;

  // The next bytes of data, scales, bias; cut anywhere. After an error the upload is only good for
  // dropping.
  Status Append(std::span<const std::byte> bytes);
  // No more bytes will come: binds the name, or says why not.
  Status Finish(RegisterResult* result);

 private:
  struct Hash;
  struct Packing {
    size_t device = 0;
    std::unique_ptr<Packer> packer;
    int64_t reserved_bytes = 0;
  };

  Status Start();
  Status StartOn(size_t device);
  Status FinishPacking(std::string digest, std::shared_ptr<const WeightContent>* content);
  // The content that the bytes or, without any, the expected digest stand for.
  Status Resolve(std::shared_ptr<const WeightContent>* content, bool* already_registered);

  WeightStore& store_;
  const Registration registration_;
  std::shared_ptr<const WeightContent> known_;  // content of expected_digest, when it is here
  std::unique_ptr<Hash> hash_;
  std::vector<Packing> packings_;
  int64_t received_bytes_ = 0;
  int64_t pack_ns_ = 0;
};

}  // namespace qmatmul
