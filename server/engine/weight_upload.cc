#include "server/engine/weight_upload.h"

#include <openssl/evp.h>

#include <algorithm>
#include <new>

#include "server/engine/weight_store.h"

namespace qmatmul {
namespace {

std::string Hex(std::span<const unsigned char> bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(bytes.size() * 2);
  for (const unsigned char b : bytes) {
    hex += kDigits[b >> 4];
    hex += kDigits[b & 15];
  }
  return hex;
}

// What a packed copy will hold, about: the exact figure is known when it is there.
int64_t EstimatedBytes(const WeightSpec& spec) {
  return spec.data_bytes() + spec.n * static_cast<int64_t>(sizeof(int32_t)) + spec.scale_bytes() +
         spec.bias_bytes();
}

Status MemoryShort(const WeightSpec& spec, std::string_view device, int64_t bytes, int64_t left,
                   int64_t limit) {
  return Status{Code::kResourceExhausted, "WEIGHT_MEMORY",
                "a weight of k = " + std::to_string(spec.k) + ", n = " + std::to_string(spec.n) +
                    " needs " + std::to_string(bytes) + " bytes, and " + std::to_string(left) +
                    " are left of the " + std::to_string(limit) + " that weights may use on " +
                    std::string(device) +
                    "; delete weights, or raise weight_bytes_max or device_weight_bytes_max"}
      .With("value", std::to_string(bytes))
      .With("limit", std::to_string(limit));
}

// Another device may do what this one cannot; what is wrong with the upload itself is wrong on all.
bool IsPassedOver(const Status& status) {
  return status.code == Code::kResourceExhausted || status.code == Code::kUnimplemented ||
         status.reason == "DEVICE_LOST";
}

}  // namespace

// SHA-256 while streaming.
struct WeightUpload::Hash {
  Hash() : context(EVP_MD_CTX_new()) {
    if (context == nullptr || EVP_DigestInit_ex(context, EVP_sha256(), nullptr) != 1)
      throw std::bad_alloc();
  }
  ~Hash() { EVP_MD_CTX_free(context); }
  Hash(const Hash&) = delete;
  Hash& operator=(const Hash&) = delete;

  void Add(std::span<const std::byte> bytes) {
    EVP_DigestUpdate(context, bytes.data(), bytes.size());
  }
  std::string Finish() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_DigestFinal_ex(context, digest, &size);
    return Hex({digest, size});
  }

  EVP_MD_CTX* context;
};

WeightUpload::WeightUpload(WeightStore& store, Registration registration,
                           std::shared_ptr<const WeightContent> known)
    : store_(store),
      registration_(std::move(registration)),
      known_(std::move(known)),
      hash_(std::make_unique<Hash>()),
      refusals_(store.devices_.size()) {
  const std::string line = IdentityLine(registration_.spec);
  hash_->Add(std::as_bytes(std::span(line)));
}

WeightUpload::~WeightUpload() {
  for (Packing& packing : packings_) {
    packing.packer.reset();
    store_.ledger_->Unreserve(packing.device, packing.reserved_bytes);
  }
}

Status WeightUpload::StartOn(size_t device) {
  const WeightSpec& spec = registration_.spec;
  Device& target = *store_.devices_[device];
  const int64_t bytes = EstimatedBytes(spec);
  if (!store_.ledger_->Reserve(device, bytes))
    return MemoryShort(spec, target.info().id, bytes, store_.ledger_->left(device),
                       store_.limit_bytes(device));
  Packing& packing = packings_.emplace_back();
  packing.device = device;
  packing.reserved_bytes = bytes;
  Fault fault = target.StartPack(spec, &packing.packer);
  if (fault.ok()) return {};
  store_.ledger_->Unreserve(device, bytes);
  packings_.pop_back();
  return FaultOn(device, fault, "spec");
}

Status WeightUpload::FaultOn(size_t device, const Fault& fault, const char* field) const {
  Status status = FromFault(fault, field);
  if (status.code != Code::kResourceExhausted) return status;
  return std::move(status)
      .With("value", std::to_string(EstimatedBytes(registration_.spec)))
      .With("limit", std::to_string(store_.limit_bytes(device)));
}

Status WeightUpload::Start() {
  for (size_t device = 0; device < store_.devices_.size(); ++device) {
    Status status = StartOn(device);
    if (!status.ok() && !IsPassedOver(status)) return status;
    refusals_[device] = std::move(status);
  }
  return packings_.empty() ? NoDeviceLeft() : Status{};
}

Status WeightUpload::NoDeviceLeft() const {
  // Room can be made: that is the better thing to know than a type or a loss.
  const auto short_of_memory =
      std::find_if(refusals_.begin(), refusals_.end(),
                   [](const Status& status) { return status.code == Code::kResourceExhausted; });
  const Status& first = short_of_memory != refusals_.end() ? *short_of_memory : refusals_.back();
  Status status = first;
  for (const Status& other : refusals_)
    if (!other.ok() && &other != &first) status.message += "; " + other.message;
  return status;
}

void WeightUpload::PassOver(size_t i, Status why) {
  refusals_[packings_[i].device] = std::move(why);
  Abandon(i);
}

void WeightUpload::Abandon(size_t i) {
  packings_[i].packer.reset();
  store_.ledger_->Unreserve(packings_[i].device, packings_[i].reserved_bytes);
  packings_.erase(packings_.begin() + static_cast<std::ptrdiff_t>(i));
}

Status WeightUpload::Append(std::span<const std::byte> bytes) {
  const int64_t size = static_cast<int64_t>(bytes.size());
  const int64_t expected = registration_.spec.upload_bytes();
  if (size > expected - received_bytes_) {
    return Status{Code::kInvalidArgument, "UPLOAD_LONG",
                  "the chunks hold at least " + std::to_string(received_bytes_ + size) +
                      " bytes, the spec says " + std::to_string(expected) + " (data, scales, bias)",
                  "chunk"}
        .With("value", std::to_string(received_bytes_ + size))
        .With("limit", std::to_string(expected));
  }
  if (received_bytes_ == 0 && size > 0 && known_ == nullptr) {
    if (Status status = Start(); !status.ok()) return status;
  }
  received_bytes_ += size;
  hash_->Add(bytes);
  const int64_t begin_ns = store_.clock_.NowNs();
  for (size_t i = 0; i < packings_.size();) {
    const Fault fault = packings_[i].packer->Append(bytes);
    if (fault.ok()) {
      ++i;
      continue;
    }
    Status status = FaultOn(packings_[i].device, fault, "chunk");
    if (!IsPassedOver(status)) return status;
    PassOver(i, std::move(status));
    if (packings_.empty()) return NoDeviceLeft();
  }
  pack_ns_ += store_.clock_.NowNs() - begin_ns;
  return {};
}

Status WeightUpload::FinishPacking(std::string digest,
                                   std::shared_ptr<const WeightContent>* content) {
  MemoryLedger& ledger = *store_.ledger_;
  std::vector<std::shared_ptr<const PackedWeight>> copies(store_.devices_.size());
  bool has_copy = false;
  const int64_t begin_ns = store_.clock_.NowNs();
  // Ownership moves copy by copy into `copies`; what is committed and then not wanted is given back
  // by the content's own destructor, so that there is one place that frees.
  Status status;
  while (!packings_.empty() && status.ok()) {
    Packing& packing = packings_.back();
    std::shared_ptr<const PackedWeight> copy;
    const Fault fault = packing.packer->Finish(&copy);
    Status of_this;
    if (!fault.ok()) {
      of_this = FaultOn(packing.device, fault, "chunk");
    } else if (!ledger.Commit(packing.device, packing.reserved_bytes, copy->bytes())) {
      of_this = MemoryShort(registration_.spec, copy->device(), copy->bytes(),
                            ledger.left(packing.device) + packing.reserved_bytes,
                            ledger.limit(packing.device));
    } else {
      has_copy = true;
      copies[packing.device] = std::move(copy);
      packings_.pop_back();
      continue;
    }
    copy.reset();  // before its room is another's
    if (IsPassedOver(of_this)) PassOver(packings_.size() - 1, std::move(of_this));
    else status = std::move(of_this);
  }
  if (status.ok() && !has_copy) status = NoDeviceLeft();
  std::vector<Absence> absences;
  for (size_t device = 0; device < refusals_.size(); ++device)
    absences.push_back({store_.devices_[device]->info().id, refusals_[device].message});
  *content = std::make_shared<WeightContent>(registration_.spec, std::move(digest),
                                             store_.NextGeneration(), store_.ledger_,
                                             std::move(copies), std::move(absences));
  store_.metrics_.Observe(Histogram::kPackNs, pack_ns_ + store_.clock_.NowNs() - begin_ns);
  return status;
}

Status WeightUpload::Resolve(std::shared_ptr<const WeightContent>* content,
                             bool* already_registered) {
  const std::string& expected = registration_.expected_digest;
  const int64_t upload_bytes = registration_.spec.upload_bytes();
  *already_registered = true;
  if (received_bytes_ == 0 && !expected.empty()) {
    *content = known_;
    if (known_ != nullptr) return {};
    return Status{Code::kNotFound, "UPLOAD_NEEDED",
                  "no content with digest " + expected + " is here; send its " +
                      std::to_string(upload_bytes) + " bytes"}
        .With("value", expected);
  }
  if (received_bytes_ < upload_bytes) {
    return Status{Code::kInvalidArgument, "UPLOAD_SHORT",
                  "the chunks hold " + std::to_string(received_bytes_) + " bytes, the spec says " +
                      std::to_string(upload_bytes) + " (data, scales, bias)",
                  "chunk"}
        .With("value", std::to_string(received_bytes_))
        .With("limit", std::to_string(upload_bytes));
  }
  std::string digest = hash_->Finish();
  if (!expected.empty() && digest != expected) {
    return Status{Code::kInvalidArgument, "DIGEST_MISMATCH",
                  "the upload hashes to " + digest + ", not to expected_digest " + expected,
                  "spec.expected_digest"}
        .With("value", digest)
        .With("limit", expected);
  }
  *content = known_ != nullptr ? known_ : store_.FindContent(digest);
  if (*content != nullptr) return {};
  *already_registered = false;
  return FinishPacking(std::move(digest), content);
}

Status WeightUpload::Finish(RegisterResult* result) {
  std::shared_ptr<const WeightContent> content;
  if (Status status = Resolve(&content, &result->already_registered); !status.ok()) return status;
  return store_.Bind(registration_, std::move(content), &result->weight);
}

}  // namespace qmatmul
