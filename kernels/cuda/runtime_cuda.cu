// The CUDA runtime as a Runtime: one object for each GPU that the driver shows.
#include <cudaTypedefs.h>
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
    hopper_ = properties.major == 9 && properties.minor == 0;
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
    // By the driver's own entry, so that the program links, and starts, without it.
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", reinterpret_cast<void**>(&encode_), 12000,
                                         cudaEnableDefault, &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
      encode_ = nullptr;
    (void)cudaGetLastError();
    std::string& wgmma = why_not_[size_t(KernelId::kWgmma8)];
    if (!hopper_) wgmma = "wgmma needs an sm_90a GPU";
    else if (encode_ == nullptr) wgmma = "the driver has no cuTensorMapEncodeTiled";
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
  Error CopyOnDevice(Stream stream, std::byte* to, const std::byte* from,
                     int64_t bytes) override {
    if (Error e = Use(); !e.ok()) return e;
    return ErrorOf(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                                   Of(stream)));
  }
  Error Time(Stream stream, const std::function<Error()>& enqueue, double* ns) override {
    if (Error e = Use(); !e.ok()) return e;
    cudaEvent_t begin = nullptr, end = nullptr;
    float ms = 0;
    cudaError_t status = cudaEventCreate(&begin);
    if (status == cudaSuccess) status = cudaEventCreate(&end);
    if (status == cudaSuccess) status = cudaEventRecord(begin, Of(stream));
    if (status == cudaSuccess)
      if (Error e = enqueue(); !e.ok()) return e;
    if (status == cudaSuccess) status = cudaEventRecord(end, Of(stream));
    if (status == cudaSuccess) status = cudaEventSynchronize(end);
    if (status == cudaSuccess) status = cudaEventElapsedTime(&ms, begin, end);
    *ns = double(ms) * 1e6;
    for (cudaEvent_t event : {begin, end})
      if (event != nullptr) (void)cudaEventDestroy(event);
    return ErrorOf(status);
  }
  Error Launch(Stream stream, const KernelLaunch& launch) override {
    if (Error e = Use(); !e.ok()) return e;
    const KernelShape shape = ShapeOf(launch.id);
    void* args[] = {const_cast<std::byte*>(launch.args.data())};
    const dim3 grid(unsigned(launch.grid_x), unsigned(launch.grid_y), unsigned(launch.grid_z));
    return ErrorOf(cudaLaunchKernel(EntryOf(launch.id), grid, dim3(unsigned(shape.threads)), args,
                                    size_t(shape.shared_bytes), Of(stream)));
  }
  Error DescribeRows(const unsigned char* data, int64_t rows, int64_t row_bytes,
                     TensorMap* map) override {
    static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
    // The encoder wants a current context, which a thread has from its first call of the runtime on.
    if (Error e = Use(); !e.ok()) return e;
    const cuuint64_t sizes[] = {cuuint64_t(row_bytes), cuuint64_t(rows)};
    const cuuint64_t strides[] = {cuuint64_t(row_bytes)};
    const cuuint32_t box[] = {128, 128}, steps[] = {1, 1};
    const CUresult result =
        encode_(reinterpret_cast<CUtensorMap*>(map), CU_TENSOR_MAP_DATA_TYPE_UINT8, 2,
                const_cast<unsigned char*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) return {};
    return {ErrorKind::kLost, "cuTensorMapEncodeTiled: error " + std::to_string(int(result))};
  }
  Error Capture(Stream stream, const std::function<Error()>& enqueue, Graph* graph) override {
    *graph = nullptr;
    if (Error e = Use(); !e.ok()) return e;
    // Other threads go on allocating meanwhile.
    if (cudaStreamBeginCapture(Of(stream), cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
      const Error enqueued = enqueue();
      cudaGraph_t recorded = nullptr;
      cudaGraphExec_t made = nullptr;
      const cudaError_t ended = cudaStreamEndCapture(Of(stream), &recorded);
      if (enqueued.ok() && ended == cudaSuccess && cudaGraphInstantiate(&made, recorded, 0) == cudaSuccess)
        *graph = made;
      if (recorded != nullptr) (void)cudaGraphDestroy(recorded);
    }
    (void)cudaGetLastError();  // one by one then, and what is wrong with that is said there
    return {};
  }
  Error Replay(Stream stream, Graph graph) override {
    if (Error e = Use(); !e.ok()) return e;
    return ErrorOf(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), Of(stream)));
  }
  void DestroyGraph(Graph graph) override {
    if (Use().ok()) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
  }
  Error Reset() override {
    // A lost device may refuse to be made current, and to say which is, and is current all the same. Never
    // another's context.
    if (Error e = Use(); !e.ok()) (void)cudaGetLastError();
    int current = device_;
    const bool is_told = cudaGetDevice(&current) == cudaSuccess;
    (void)cudaGetLastError();
    if (is_told && current != device_) return {ErrorKind::kLost, "the driver does not let " + info_.id + " be reset"};
    // What it returns may be the loss itself; whether the device is back, its next use says.
    (void)cudaDeviceReset();
    (void)cudaGetLastError();
    if (Error e = Prepare(); !e.ok()) return e;
    std::byte* memory = nullptr;
    if (Error e = Allocate(256, &memory); !e.ok()) return e;
    const Error error = ErrorOf(cudaMemset(memory, 0, 256));
    Free(memory);
    return error.ok() ? ErrorOf(cudaDeviceSynchronize()) : error;
  }
  Error Synchronize(Stream stream) override {
    if (Error e = Use(); !e.ok()) return e;
    return ErrorOf(cudaStreamSynchronize(Of(stream)));
  }

 private:
  // The current device is a property of the calling thread.
  Error Use() const { return ErrorOf(cudaSetDevice(device_)); }

  const int device_;
  bool hopper_ = false;
  PFN_cuTensorMapEncodeTiled_v12000 encode_ = nullptr;
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
  *why_none = "the driver shows no GPU";
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    if (const cudaError_t error = cudaGetDeviceProperties(&properties, device); error != cudaSuccess) {
      *why_none = cudaGetErrorString(error);
      (void)cudaGetLastError();
      continue;
    }
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
