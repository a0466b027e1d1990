#include "kernels/cuda/runtime_emulated.h"

#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace qmatmul::cuda {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kAlignment = 256;  // of cudaMalloc
constexpr int kRubbish = 0xCD;

// `bytes`, rounded up to the alignment, and then a page that faults.
std::byte* MapGuarded(int64_t bytes, int64_t* mapped) {
  const int64_t aligned = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const int64_t body = (aligned + kPage - 1) / kPage * kPage;
  *mapped = body + kPage;
  void* memory =
      mmap(nullptr, size_t(*mapped), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* first = static_cast<std::byte*>(memory);
  if (mprotect(first + body, size_t(kPage), PROT_NONE) != 0) std::abort();
  std::memset(first, kRubbish, size_t(body));
  return first + (body - aligned);
}

}  // namespace

struct EmulatedRuntime::Queue {
  Recording operations;
  Recording* recorded = nullptr;  // while a capture is going on
};

EmulatedRuntime::EmulatedRuntime(const EmulatedOptions& options)
    : options_(options), memory_bytes_(options.memory_bytes) {
  info_.id = "cuda:" + std::to_string(options.index);
  info_.description = "emulated device";
  info_.features = {"emulated"};
  info_.memory_bytes = options.memory_bytes;
  info_.multiprocessors = 4;
  info_.arena_piece_bytes = options.arena_piece_bytes;
}

EmulatedRuntime::~EmulatedRuntime() {
  // What is still there was leaked by its owner.
  if (allocated_bytes_ != 0 || streams_ != 0 || graphs_ != 0) std::abort();
}

Error EmulatedRuntime::Lost() const {
  if (!lost_) return {};
  return {ErrorKind::kLost, "emulated loss of the device"};
}

Error EmulatedRuntime::Allocate(int64_t bytes, std::byte** memory) {
  if (Error e = Lost(); !e.ok()) return e;
  int64_t mapped = 0;
  if (allocated_bytes_ + bytes > memory_bytes_)
    return {ErrorKind::kOutOfMemory, "emulated: out of memory"};
  *memory = MapGuarded(bytes, &mapped);
  if (*memory == nullptr) return {ErrorKind::kOutOfMemory, "emulated: mmap failed"};
  allocated_bytes_ += bytes;
  std::lock_guard lock(mutex_);
  sizes_[*memory] = bytes;
  return {};
}

void EmulatedRuntime::Free(std::byte* memory) {
  std::lock_guard lock(mutex_);
  const auto entry = sizes_.find(memory);
  if (entry == sizes_.end()) std::abort();
  const int64_t aligned = (entry->second + kAlignment - 1) / kAlignment * kAlignment;
  const int64_t body = (aligned + kPage - 1) / kPage * kPage;
  munmap(memory - (body - aligned), size_t(body + kPage));
  allocated_bytes_ -= entry->second;
  sizes_.erase(entry);
}

Error EmulatedRuntime::AllocatePinned(int64_t bytes, std::byte** memory) {
  if (Error e = Lost(); !e.ok()) return e;
  *memory = static_cast<std::byte*>(
      std::aligned_alloc(size_t(kPage), size_t((bytes + kPage - 1) / kPage * kPage)));
  if (*memory == nullptr) return {ErrorKind::kOutOfMemory, "emulated: no pinned memory"};
  return {};
}

void EmulatedRuntime::FreePinned(std::byte* memory) { std::free(memory); }

Error EmulatedRuntime::CreateStream(Stream* stream) {
  if (Error e = Lost(); !e.ok()) return e;
  *stream = new Queue;
  ++streams_;
  return {};
}

void EmulatedRuntime::DestroyStream(Stream stream) {
  delete static_cast<Queue*>(stream);
  --streams_;
}

Error EmulatedRuntime::Enqueue(Stream stream, std::function<void()> operation) {
  if (Error e = Lost(); !e.ok()) return e;
  auto* queue = static_cast<Queue*>(stream);
  (queue->recorded != nullptr ? *queue->recorded : queue->operations)
      .push_back(std::move(operation));
  return {};
}

Error EmulatedRuntime::Capture(Stream stream, const std::function<Error()>& enqueue, Graph* graph) {
  if (Error e = Lost(); !e.ok()) return e;
  *graph = nullptr;
  if (!captures_) return {};
  auto recording = std::make_unique<Recording>();
  auto* queue = static_cast<Queue*>(stream);
  queue->recorded = recording.get();
  const Error error = enqueue();
  queue->recorded = nullptr;
  if (!error.ok()) return {};
  *graph = recording.release();
  ++graphs_;
  return {};
}

Error EmulatedRuntime::Replay(Stream stream, Graph graph) {
  for (const auto& operation : *static_cast<const Recording*>(graph))
    if (Error e = Enqueue(stream, operation); !e.ok()) return e;
  ++replays_;
  return {};
}

void EmulatedRuntime::DestroyGraph(Graph graph) {
  delete static_cast<Recording*>(graph);
  --graphs_;
}

Error EmulatedRuntime::Upload(Stream stream, std::byte* device, const std::byte* host,
                              int64_t bytes) {
  return Enqueue(stream, [=] { std::memcpy(device, host, size_t(bytes)); });
}

Error EmulatedRuntime::Download(Stream stream, std::byte* host, const std::byte* device,
                                int64_t bytes) {
  return Enqueue(stream, [=] { std::memcpy(host, device, size_t(bytes)); });
}

Error EmulatedRuntime::Clear(Stream stream, std::byte* device, int64_t bytes) {
  return Enqueue(stream, [=] { std::memset(device, 0, size_t(bytes)); });
}

Error EmulatedRuntime::CopyOnDevice(Stream stream, std::byte* to, const std::byte* from,
                                    int64_t bytes) {
  return Enqueue(stream, [=] { std::memcpy(to, from, size_t(bytes)); });
}

Error EmulatedRuntime::Time(Stream stream, const std::function<Error()>& enqueue, double* ns) {
  if (Error e = Synchronize(stream); !e.ok()) return e;
  const auto start = std::chrono::steady_clock::now();
  if (Error e = enqueue(); !e.ok()) return e;
  Error error = Synchronize(stream);
  *ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
  return error;
}

Error EmulatedRuntime::Launch(Stream stream, const KernelLaunch& launch) {
  return Enqueue(stream, [this, launch] { Run(launch); });
}

Error EmulatedRuntime::DescribeRows(const unsigned char*, int64_t, int64_t, TensorMap*) {
  std::abort();  // WhyNot
}

Error EmulatedRuntime::Reset() {
  // What its owner still holds would be another's afterwards.
  if (allocated_bytes_ != 0 || streams_ != 0 || graphs_ != 0) std::abort();
  if (failing_resets_ > 0) {
    --failing_resets_;
    return {ErrorKind::kLost, "emulated: the device does not come back yet"};
  }
  ++resets_;
  lost_ = false;
  return {};
}

Error EmulatedRuntime::Synchronize(Stream stream) {
  auto& operations = static_cast<Queue*>(stream)->operations;
  for (const auto& operation : std::exchange(operations, {}))
    if (!lost_) operation();
  return Lost();
}

void (*EntryOf(KernelId id))(const void*);  // kernels_emulated.cc

void EmulatedRuntime::Run(const KernelLaunch& launch) {
  if (launches_left_ >= 0 && launches_left_-- == 0) {
    lost_ = true;
    return;
  }
  ++launches_of_[size_t(launch.id)];
  const KernelShape shape = ShapeOf(launch.id);
  simt::EmulatedLaunch emulated;
  emulated.grid = {launch.grid_x, launch.grid_y, launch.grid_z};
  emulated.threads = shape.threads;
  emulated.shared_bytes = shape.shared_bytes;
  emulated.order = options_.order;
  emulated.seed = options_.seed + uint64_t(launches_++);
  simt::Emulate(emulated, EntryOf(launch.id), launch.args.data());
}

}  // namespace qmatmul::cuda
