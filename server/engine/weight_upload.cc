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

WeightUpload::~WeightUpload() = default;

Status WeightUpload::Start() {
  for (size_t device = 0; device < store_.devices_.size(); ++device) {
    std::unique_ptr<DevicePacking> packing;
    Status status = DevicePacking::Start(device, *store_.devices_[device], store_.ledger_,
                                         registration_.spec, &packing);
    if (!status.ok() && !IsPassedOver(status)) return status;
    if (status.ok()) packings_.push_back(std::move(packing));
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
  refusals_[packings_[i]->index()] = std::move(why);
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
    Status status = packings_[i]->Append(bytes);
    if (status.ok()) {
      ++i;
      continue;
    }
    if (!IsPassedOver(status)) return status;
    PassOver(i, std::move(status));
    if (packings_.empty()) return NoDeviceLeft();
  }
  pack_ns_ += store_.clock_.NowNs() - begin_ns;
  return {};
}

Status WeightUpload::FinishPacking(std::string digest,
                                   std::shared_ptr<const WeightContent>* content) {
  std::vector<std::shared_ptr<const PackedWeight>> copies(store_.devices_.size());
  bool has_copy = false;
  const int64_t begin_ns = store_.clock_.NowNs();
  Status status;
  while (!packings_.empty() && status.ok()) {
    const size_t device = packings_.back()->index();
    Status of_this = packings_.back()->Finish(&copies[device]);
    if (of_this.ok()) {
      has_copy = true;
      packings_.pop_back();
    } else if (IsPassedOver(of_this)) {
      PassOver(packings_.size() - 1, std::move(of_this));
    } else {
      status = std::move(of_this);
    }
  }
  if (status.ok() && !has_copy) status = NoDeviceLeft();
  std::vector<Absence> absences;
  for (size_t device = 0; device < refusals_.size(); ++device)
    absences.push_back(
        {store_.devices_[device]->info().id, refusals_[device].message, IsLoss(refusals_[device])});
  *content = std::make_shared<WeightContent>(registration_.spec, std::move(digest),
                                             store_.NextGeneration(), std::move(copies),
                                             std::move(absences));
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
