// The CUDA runtime as a Runtime: one object for each GPU that the driver shows.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cuda/runtime.h"

namespace qmatmul::cuda {

const void* EntryOf(KernelId id);  // kernels.cu

namespace {

// Weights are many and come one by one: pieces large enough that cudaMalloc is rare.
constexpr int64_t kPieceBytes = int64_t{64} << 20;
constexpr int kMajorMin = 8;  // mma.m16n8k32, cp.async, redux.sync

Error ErrorOf(cudaError_t error) {
  if (error == cudaSuccess) return {};
  const char* name = cudaGetErrorName(error);
  const std::string message = std::string(name) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // not sticky
    return {ErrorKind::kOutOfMemory, message};
  }
  return {ErrorKind::kLost, message};
}

cudaStream_t Of(Stream stream) { return static_cast<cudaStream_t>(stream); }

class CudaRuntime final : public Runtime {
 public:
  CudaRuntime(int device, const cudaDeviceProp& properties) : device_(device) {
    info_.id = "cuda:" + std::to_string(device);
    info_.description = properties.name;
    info_.features = {"sm_" + std::to_string(properties.major) + std::to_string(properties.minor)};
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess)
      info_.features.push_back("driver_" + std::to_string(driver / 1000) + "." +
                               std::to_string(driver % 1000 / 10));
    info_.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
    info_.multiprocessors = properties.multiProcessorCount;
    info_.arena_piece_bytes = kPieceBytes;
  }

  const RuntimeInfo& info() const override { return info_; }
  std::string WhyNot(KernelId id) const override { return why_not_[size_t(id)]; }

  // Asks for the shared memory that each program wants; one that cannot have it is not offered.
  Error Prepare() {
    if (Error e = Use(); !e.ok()) return e;
    for (size_t i = 0; i < kKernelCount; ++i) {
      const auto id = static_cast<KernelId>(i);
      const cudaError_t error =
          cudaFuncSetAttribute(EntryOf(id), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               ShapeOf(id).shared_bytes);
      if (error == cudaSuccess) continue;
      why_not_[i] = std::string("the GPU does not run it: ") + cudaGetErrorString(error);
      (void)cudaGetLastError();
    }
    return {};
  }

  Error Allocate(int64_t bytes, std::byte** memory) override {
    if (Error e = Use(); !e.ok()) return e;
    return ErrorOf(cudaMalloc(reinterpret_cast<void**>(memory), static_cast<size_t>(bytes)));
  }
  void Free(std::byte* memory) override {
    if (Use().ok()) (void)cudaFree(memory);
  }
  Error AllocatePinned(int64_t bytes, std::byte** memory) override {
    if (Error e = Use(); !e.ok()) return e;
    return ErrorOf(cudaMallocHost(reinterpret_cast<void**>(memory), static_cast<size_t>(bytes)));
  }
  void FreePinned(std::byte* memory) override {
    if (Use().ok()) (void)cudaFreeHost(memory);
  }

  Error CreateStream(Stream* stream) override {
    if (Error e = Use(); !e.ok()) return e;
    cudaStream_t created = nullptr;
    const Error error = ErrorOf(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking));
    *stream = created;
    return error;
  }
  void DestroyStream(Stream stream) override {
    if (Use().ok()) (void)cudaStreamDestroy(Of(stream));
  }
  Error Upload(Stream stream, std::byte* device, const std::byte* host, int64_t bytes) override {
    if (Error e = Use(); !e.ok()) return e;
    return ErrorOf(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                                   Of(stream)));
  }
  Error Download(Stream stream, std::byte* host, const std::byte* device, int64_t bytes) override {
    if (Error e = Use(); !e.ok()) return e;
    return ErrorOf(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                                   Of(stream)));
  }
  Error Clear(Stream stream, std::byte* device, int64_t bytes) override {
    if (Error e = Use(); !e.ok()) return e;
    return ErrorOf(cudaMemsetAsync(device, 0, static_cast<size_t>(bytes), Of(stream)));
  }
  Error Launch(Stream stream, const KernelLaunch& launch) override {
    if (Error e = Use(); !e.ok()) return e;
    const KernelShape shape = ShapeOf(launch.id);
    void* args[] = {const_cast<std::byte*>(launch.args.data())};
    const dim3 grid(unsigned(launch.grid_x), unsigned(launch.grid_y), unsigned(launch.grid_z));
    return ErrorOf(cudaLaunchKernel(EntryOf(launch.id), grid, dim3(unsigned(shape.threads)), args,
                                    size_t(shape.shared_bytes), Of(stream)));
  }
  Error Synchronize(Stream stream) override {
    if (Error e = Use(); !e.ok()) return e;
    return ErrorOf(cudaStreamSynchronize(Of(stream)));
  }

 private:
  // The current device is a property of the calling thread.
  Error Use() const { return ErrorOf(cudaSetDevice(device_)); }

  const int device_;
  RuntimeInfo info_;
  std::array<std::string, kKernelCount> why_not_;
};

}  // namespace

std::vector<std::unique_ptr<Runtime>> OpenRuntimes(std::string* why_none) {
  std::vector<std::unique_ptr<Runtime>> runtimes;
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    *why_none = cudaGetErrorString(error);
    (void)cudaGetLastError();
    return runtimes;
  }
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
    if (properties.major < kMajorMin) {
      *why_none = std::string(properties.name) + " is older than sm_80";
      continue;
    }
    auto runtime = std::make_unique<CudaRuntime>(device, properties);
    if (Error error = runtime->Prepare(); error.ok()) runtimes.push_back(std::move(runtime));
    else *why_none = error.message;
  }
  return runtimes;
}

}  // namespace qmatmul::cuda
