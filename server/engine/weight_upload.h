// One weight on its way in: hashed and packed as its bytes arrive, then bound to its name.
//
// Thread-safety: used by one thread at a time. Ownership: made by WeightStore::StartUpload, dropped
// by its caller at any time, which frees everything; the store outlives it.
//
// Invariants
//   1. At most 4 MiB are held beyond the packed copies, each of which has its room reserved.
//   2. An upload that fails leaves names, contents and ledger as they were.
//   3. A device that has no room, cannot hold the type or is lost is passed over: the upload fails for that
//   only when no device is left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "server/engine/device_packing.h"
#include "server/engine/status.h"
#include "server/engine/weight.h"

namespace qmatmul {

class WeightStore;

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

  Status Start();
  // The upload goes on without this packing.
  void PassOver(size_t i, Status why);
  // What the client is told when no device is left.
  Status NoDeviceLeft() const;
  Status FinishPacking(std::string digest, std::shared_ptr<const WeightContent>* content);
  // The content that the bytes or, without any, the expected digest stand for.
  Status Resolve(std::shared_ptr<const WeightContent>* content, bool* already_registered);

  WeightStore& store_;
  const Registration registration_;
  std::shared_ptr<const WeightContent> known_;  // content of expected_digest, when it is here
  std::unique_ptr<Hash> hash_;
  std::vector<std::unique_ptr<DevicePacking>> packings_;
  std::vector<Status> refusals_;  // by device index; why it was passed over
  int64_t received_bytes_ = 0;
  int64_t pack_ns_ = 0;
};

}  // namespace qmatmul
