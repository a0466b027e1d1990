#include "kernels/cuda/gpu.h"

#include <algorithm>
#include <chrono>

namespace qmatmul::cuda {
namespace {

int64_t UnixNs() {
  return std::chrono::system_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

}  // namespace

Error Buffer::Reserve(int64_t bytes) {
  if (bytes <= bytes_) return {};
  const int64_t size = std::max(bytes, std::min(bytes_ * 3 / 2, bytes + (int64_t{16} << 20)));
  Release();
  const auto allocate = [&](int64_t wanted) {
    return where_ == Where::kDevice ? arena_->Allocate(wanted, &data_)
                                    : runtime_->AllocatePinned(wanted, &data_);
  };
  bytes_ = size;
  Error error = allocate(size);
  if (error.kind == ErrorKind::kOutOfMemory && size > bytes) {
    bytes_ = bytes;
    error = allocate(bytes);
  }
  if (error.ok()) return {};
  data_ = nullptr;
  bytes_ = 0;
  return error;
}

void Buffer::Release() {
  if (data_ == nullptr) return;
  if (where_ == Where::kDevice) arena_->Free(data_);
  else runtime_->FreePinned(data_);
  data_ = nullptr;
  bytes_ = 0;
}

Lane::Lane(Runtime* r, Arena* arena)
    : runtime(r),
      host(r, arena, Buffer::Where::kPinned),
      device(r, arena, Buffer::Where::kDevice),
      work(r, arena, Buffer::Where::kDevice),
      partial(r, arena, Buffer::Where::kDevice),
      tickets(r, arena, Buffer::Where::kDevice),
      graphs(r) {}

Lane::~Lane() {
  if (stream != nullptr) runtime->DestroyStream(stream);
}

Error Lane::ReserveZeroed(Buffer* buffer, int64_t bytes) {
  if (bytes <= buffer->bytes()) return {};
  if (Error error = buffer->Reserve(bytes); !error.ok()) return error;
  return runtime->Clear(stream, buffer->data(), buffer->bytes());
}

Gpu::Gpu(std::shared_ptr<Runtime> runtime) : runtime_(std::move(runtime)), arena_(runtime_.get()) {}

Error Gpu::Open() {
  for (int i = 0; i < kLanes; ++i) {
    lanes_.push_back(std::make_unique<Lane>(runtime_.get(), &arena_));
    if (Error error = runtime_->CreateStream(&lanes_.back()->stream); !error.ok()) return error;
    free_.push_back(lanes_.back().get());
  }
  return {};
}

void Gpu::Close() {
  std::vector<std::unique_ptr<Lane>> lanes;
  {
    std::unique_lock lock(mutex_);
    freed_.wait(lock, [this] { return free_.size() == lanes_.size(); });
    closed_ = true;
    free_.clear();
    lanes.swap(lanes_);
  }
  freed_.notify_all();
  lanes.clear();
  arena_.Abandon();
}

Fault Gpu::FaultOf(const Error& error, const char* memory_reason, const std::string& what) {
  if (error.ok()) return {};
  if (error.kind == ErrorKind::kOutOfMemory)
    return {FaultKind::kResourceExhausted, memory_reason,
            "no memory on " + info().id + " for " + what + " (" + error.message + "); " +
                std::to_string(arena_.used_bytes()) + " of " + std::to_string(info().memory_bytes) +
                " bytes are in use; delete weights or send fewer rows at a time"};
  GiveUp(error.message);
  return CheckLost();
}

void Gpu::GiveUp(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (lost()) return;
  lost_message_ = why;
  lost_time_ns_ = UnixNs();
}

Fault Gpu::CheckLost() {
  if (!lost()) return {};
  std::lock_guard lock(mutex_);
  return {FaultKind::kDeviceLost, "DEVICE_LOST",
          "device " + info().id + " is lost: " + lost_message_ +
              "; it serves nothing until it is opened again"};
}

Gpu::Hold::Hold(Gpu* gpu) : gpu_(gpu) {
  std::unique_lock lock(gpu->mutex_);
  gpu->freed_.wait(lock, [gpu] { return gpu->closed_ || !gpu->free_.empty(); });
  lane_ = nullptr;
  if (gpu->closed_) return;
  lane_ = gpu->free_.back();
  gpu->free_.pop_back();
}

Gpu::Hold::~Hold() {
  if (lane_ == nullptr) return;
  {
    std::lock_guard lock(gpu_->mutex_);
    gpu_->free_.push_back(lane_);
  }
  gpu_->freed_.notify_all();  // one of those who wait may be Close, which needs them all
}

}  // namespace qmatmul::cuda
