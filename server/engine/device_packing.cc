#include "server/engine/device_packing.h"

#include <string>
#include <string_view>
#include <utility>

namespace qmatmul {
namespace {

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

// The copy as it is held from now on: its memory goes first, so that the ledger never says less than there is.
std::shared_ptr<const PackedWeight> Held(std::shared_ptr<const PackedWeight> copy, size_t device,
                                         std::shared_ptr<MemoryLedger> ledger) {
  const PackedWeight* const packed = copy.get();
  return {packed, [copy = std::move(copy), device,
                   ledger = std::move(ledger)](const PackedWeight* gone) mutable {
            const int64_t bytes = gone->bytes();
            copy.reset();
            ledger->Free(device, bytes);
          }};
}

}  // namespace

bool IsLoss(const Status& status) { return status.reason == "DEVICE_LOST"; }

bool IsPassedOver(const Status& status) {
  return status.code == Code::kResourceExhausted || status.code == Code::kUnimplemented ||
         IsLoss(status);
}

Status DevicePacking::Start(size_t index, Device& device, std::shared_ptr<MemoryLedger> ledger,
                            const WeightSpec& spec, std::unique_ptr<DevicePacking>* packing) {
  const int64_t bytes = EstimatedBytes(spec);
  if (!ledger->Reserve(index, bytes))
    return MemoryShort(spec, device.info().id, bytes, ledger->left(index), ledger->limit(index));
  std::unique_ptr<DevicePacking> started(new DevicePacking(index, std::move(ledger), spec));
  started->reserved_bytes_ = bytes;
  if (const Fault fault = device.StartPack(spec, &started->packer_); !fault.ok())
    return started->FromFaultOf(fault, "spec");
  *packing = std::move(started);
  return {};
}

DevicePacking::~DevicePacking() {
  packer_.reset();
  ledger_->Unreserve(index_, reserved_bytes_);
}

Status DevicePacking::FromFaultOf(const Fault& fault, const char* field) const {
  Status status = FromFault(fault, field);
  if (status.code != Code::kResourceExhausted) return status;
  return std::move(status)
      .With("value", std::to_string(EstimatedBytes(spec_)))
      .With("limit", std::to_string(ledger_->limit(index_)));
}

Status DevicePacking::Append(std::span<const std::byte> bytes) {
  const Fault fault = packer_->Append(bytes);
  return fault.ok() ? Status{} : FromFaultOf(fault, "chunk");
}

Status DevicePacking::Finish(std::shared_ptr<const PackedWeight>* copy) {
  std::shared_ptr<const PackedWeight> packed;
  if (const Fault fault = packer_->Finish(&packed); !fault.ok()) return FromFaultOf(fault, "chunk");
  if (!ledger_->Commit(index_, reserved_bytes_, packed->bytes()))
    return MemoryShort(spec_, packed->device(), packed->bytes(),
                       ledger_->left(index_) + reserved_bytes_, ledger_->limit(index_));
  reserved_bytes_ = 0;
  *copy = Held(std::move(packed), index_, ledger_);
  return {};
}

}  // namespace qmatmul
