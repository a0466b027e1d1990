#include "kernels/bench/device_time.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <sstream>

#include "kernels/bench/peer_cublaslt.h"
#include "kernels/bench/script_process.h"
#include "kernels/cuda/product_plan.h"
#include "kernels/cuda/runtime.h"

namespace qmatmul::bench {
namespace {

using cuda::DeviceOutput;
using cuda::Error;
using cuda::KernelLaunch;
using cuda::RowSource;
using cuda::RowState;
using cuda::Runtime;

constexpr int64_t kRotatedBytes = int64_t{256} << 20;
constexpr int kRounds = 15;
// Sums of a product that are looked at: so many of each of so many rows.
constexpr int kCheckedRows = 16, kCheckedColumns = 32;

void Demand(const Error& error) {
  if (error.ok()) return;
  std::fprintf(stderr, "kernels_bench: %s\n", error.message.c_str());
  std::exit(1);
}

// Device memory that starts with random bytes or with what it is given.
class OnDevice {
 public:
  OnDevice(Runtime* runtime, cuda::Stream stream, int64_t bytes) : runtime_(runtime) {
    Demand(runtime->Allocate(bytes, &data_));
    Demand(runtime->Clear(stream, data_, bytes));
  }
  ~OnDevice() { runtime_->Free(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  template <typename T>
  void Put(cuda::Stream stream, const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    Demand(runtime_->Upload(stream, data_, bytes, int64_t(values.size() * sizeof(T))));
    Demand(runtime_->Synchronize(stream));
  }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  Runtime* const runtime_;
  std::byte* data_ = nullptr;
};

std::vector<int8_t> RandomBytes(int64_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<int8_t> bytes(static_cast<size_t>(count));
  for (int8_t& b : bytes) b = static_cast<int8_t>(generator());
  return bytes;
}

// One shape: operands and weights on the device, ready for any kernel.
class Bench {
 public:
  Bench(Runtime* runtime, cuda::Stream stream, int64_t m, int64_t k, int64_t n)
      : runtime_(runtime),
        stream_(stream),
        m_(m),
        n_(n),
        k_pad_((k + 31) / 32 * 32),
        copies_((kRotatedBytes + n * k_pad_ - 1) / (n * k_pad_)),
        weights_(runtime, stream, copies_ * n * k_pad_),
        rows_(runtime, stream, m * k_pad_),
        sums_(runtime, stream, n * 4),
        scales_(runtime, stream, n * 4),
        sources_(runtime, stream, m * int64_t{sizeof(RowSource)}),
        states_(runtime, stream, m * int64_t{sizeof(RowState)}),
        output_(runtime, stream, int64_t{sizeof(DeviceOutput)}),
        outcome_(runtime, stream, int64_t{sizeof(cuda::DeviceOutcome)}),
        results_(runtime, stream, m * n * 4),
        partial_(runtime, stream, m * n * 4),
        tickets_(runtime, stream, (m * n / 4 + 1024) * 4),
        workspace_(runtime, stream, CublasLt::kWorkspaceBytes),
        weight_values_(RandomBytes(n * k_pad_, 5)),
        row_values_(RandomBytes(m * k_pad_, 6)) {
    for (int64_t c = 0; c < copies_; ++c) {
      Demand(runtime->Upload(stream, weights_.as<std::byte>() + c * n * k_pad_,
                             reinterpret_cast<const std::byte*>(weight_values_.data()),
                             n * k_pad_));
      Demand(runtime->Synchronize(stream));
    }
    rows_.Put(stream, row_values_);
    scales_.Put(stream, std::vector<float>(static_cast<size_t>(n), 0.01f));
    sources_.Put(stream, std::vector<RowSource>(static_cast<size_t>(m)));
    states_.Put(stream, std::vector<RowState>(static_cast<size_t>(m), RowState{0.01f, 0}));
  }

  const unsigned char* weight(int64_t copy) const {
    return weights_.as<unsigned char>() + copy % copies_ * n_ * k_pad_;
  }
  const unsigned char* rows() const { return rows_.as<unsigned char>(); }
  void* results() const { return results_.as<void>(); }
  void* workspace() const { return workspace_.as<void>(); }
  int64_t k_pad() const { return k_pad_; }

  // Nanoseconds of one of `run(copy)`, the best and the median of kRounds.
  std::pair<double, double> Time(const std::function<Error(int64_t copy)>& run) {
    std::vector<double> times;
    int64_t copy = 0;
    // So many that the host's delay before the first is small beside them.
    const int64_t each = std::max<int64_t>(copies_, m_ <= 64 ? 32 : 8);
    for (int round = 0; round <= kRounds; ++round) {
      double ns = 0;
      Demand(runtime_->Time(
          stream_,
          [&] {
            for (int64_t i = 0; i < each; ++i)
              if (Error e = run(copy++); !e.ok()) return e;
            return Error{};
          },
          &ns));
      if (round > 0) times.push_back(ns / double(each));  // the first one warms up
    }
    std::sort(times.begin(), times.end());
    return {times.front(), times[times.size() / 2]};
  }

  // Of the INT32 sums that the last run has left; the first and the last row and column are among those looked at.
  int64_t CountWrong() {
    std::mt19937 generator(7);
    const auto pick = [&generator](int i, int64_t count) {
      return i == 0 ? 0 : i == 1 ? count - 1 : int64_t(generator() % uint32_t(count));
    };
    std::vector<int32_t> sums(static_cast<size_t>(n_));
    int64_t wrong = 0;
    for (int i = 0; i < kCheckedRows; ++i) {
      const int64_t row = pick(i, m_);
      Demand(runtime_->Download(stream_, reinterpret_cast<std::byte*>(sums.data()),
                                results_.as<std::byte>() + row * n_ * 4, n_ * 4));
      Demand(runtime_->Synchronize(stream_));
      for (int j = 0; j < kCheckedColumns; ++j) {
        const int64_t column = pick(j, n_);
        const int8_t* const a = row_values_.data() + row * k_pad_;
        const int8_t* const w = weight_values_.data() + column * k_pad_;
        int32_t sum = 0;
        for (int64_t k = 0; k < k_pad_; ++k) sum += a[k] * w[k];
        wrong += sum != sums[static_cast<size_t>(column)];
      }
    }
    return wrong;
  }

  std::pair<double, double> TimeKernel(const cuda::CudaKernel& kernel, DataType output) {
    DeviceOutput description;
    description.data = results_.as<unsigned char>();
    description.outcome = outcome_.as<cuda::DeviceOutcome>();
    description.dtype = output;
    description.raw = output == DataType::kInt32;
    output_.Put(stream_, std::vector<DeviceOutput>{description});
    return Time([&](int64_t copy) { return Launch(kernel, copy); });
  }

 private:
  Error Launch(const cuda::CudaKernel& kernel, int64_t copy) {
    cuda::WgmmaArgs wgmma;
    cuda::ProductArgs& args = wgmma.product;
    args.weight = {weight(copy),    sums_.as<int32_t>(), scales_.as<float>(), nullptr,
                   k_pad_,          int32_t(n_),         int32_t(k_pad_),     1,
                   int32_t(k_pad_), int32_t(k_pad_)};
    args.operands = rows();
    args.operand_bytes = k_pad_;
    args.rows = sources_.as<RowSource>();
    args.states = states_.as<RowState>();
    args.outputs = output_.as<DeviceOutput>();
    args.row_count = int32_t(m_);
    const cuda::ProductPlan plan =
        cuda::PlanProduct(kernel, args.weight, k_pad_, m_, runtime_->info().multiprocessors);
    args.slices = plan.slices;
    args.partial = partial_.as<int32_t>();
    args.tickets = tickets_.as<uint32_t>();
    KernelLaunch launch = KernelLaunch::Of(plan.id, args);
    if (plan.id == cuda::KernelId::kWgmma8) {
      if (Error e = runtime_->DescribeRows(args.operands, m_, k_pad_, &wgmma.rows); !e.ok())
        return e;
      if (Error e = runtime_->DescribeRows(args.weight.data, n_, k_pad_, &wgmma.columns); !e.ok())
        return e;
      launch = KernelLaunch::Of(plan.id, wgmma);
    }
    launch.grid_x = plan.grid_x;
    launch.grid_y = plan.grid_y;
    launch.grid_z = plan.grid_z;
    return runtime_->Launch(stream_, launch);
  }

  Runtime* const runtime_;
  const cuda::Stream stream_;
  const int64_t m_, n_, k_pad_, copies_;
  OnDevice weights_, rows_, sums_, scales_, sources_, states_, output_, outcome_, results_,
      partial_, tickets_, workspace_;
  const std::vector<int8_t> weight_values_, row_values_;  // [n][k_pad], [m][k_pad]
};

// `wrong`: of the sums looked at; negative where none was.
void Print(const DeviceTimeSettings& settings, const std::array<int64_t, 3>& shape,
           const std::string& kernel, const std::string& output, std::pair<double, double> ns,
           int64_t wrong) {
  const auto [m, k, n] = shape;
  const double tops = 2e-3 * double(m) * double(k) * double(n) / ns.second;
  const double gbps = double(k) * double(n) / ns.second;
  const char* form =
      settings.json
          ? "{\"m\":%ld,\"k\":%ld,\"n\":%ld,\"kernel\":\"%s\",\"output\":\"%s\","
            "\"kernel_us\":%.2f,\"kernel_us_best\":%.2f,\"tops\":%.1f,\"weight_gbps\":%.0f%s}\n"
          : "%6ld %6ld %6ld  %-34s %-6s %9.2f us (best %.2f)  %8.1f TOPS  %6.0f GB/s of weight%s\n";
  const std::string sums = wrong < 0       ? ""
                           : settings.json ? ",\"wrong_sums\":" + std::to_string(wrong)
                                           : "  " + std::to_string(wrong) + " sums wrong";
  std::printf(form, m, k, n, kernel.c_str(), output.c_str(), ns.second * 1e-3, ns.first * 1e-3,
              tops, gbps, sums.c_str());
  std::fflush(stdout);
}

void PrintCopy(const DeviceTimeSettings& settings, Runtime* runtime, cuda::Stream stream) {
  const OnDevice from(runtime, stream, kRotatedBytes), to(runtime, stream, kRotatedBytes);
  std::vector<double> times;
  for (int i = 0; i < kRounds; ++i) {
    times.emplace_back();
    Demand(runtime->Time(
        stream,
        [&] {
          return runtime->CopyOnDevice(stream, to.as<std::byte>(), from.as<std::byte>(),
                                       kRotatedBytes);
        },
        &times.back()));
  }
  std::sort(times.begin(), times.end());
  std::printf(settings.json ? "{\"copy_gbps\":%.0f}\n"
                            : "# copy on the device: %.0f GB/s, read and written\n",
              2 * double(kRotatedBytes) / times[times.size() / 2]);
}

// torch._int_mm, in a process that has its own memory on the GPU; the other one waits meanwhile.
class TorchIntMm {
 public:
  explicit TorchIntMm(const std::string& python)
      : script_(python, QMATMUL_PEER_SCRIPTS "/torch_peer.py") {}

  // False when it cannot do this product, or is not there.
  bool Prepare(int64_t m, int64_t k, int64_t n) {
    if (!script_.Start()) return false;
    script_.Say("prepare " + std::to_string(m) + " " + std::to_string(k) + " " + std::to_string(n) +
                " " + std::to_string(kRotatedBytes));
    return script_.Line() == "ok";
  }
  // As Bench::Time.
  std::pair<double, double> Time() {
    script_.Say("time " + std::to_string(kRounds));
    std::pair<double, double> ns;
    std::istringstream(script_.Line()) >> ns.first >> ns.second;
    script_.Say("check");
    const std::string verdict = script_.Line();
    if (verdict != "ok") std::fprintf(stderr, "kernels_bench: torch: %s\n", verdict.c_str());
    return ns;
  }

 private:
  ScriptProcess script_;
};

// The number of our sums that were wrong.
int64_t MeasureShape(const DeviceTimeSettings& settings, const std::array<int64_t, 3>& shape,
                     Runtime* runtime, cuda::Stream stream, CublasLt* peer, TorchIntMm* torch) {
  const auto [m, k, n] = shape;
  Bench bench(runtime, stream, m, k, n);
  int64_t wrong = 0;
  for (const cuda::CudaKernel& kernel : cuda::CudaKernels()) {
    if (!kernel.fits(DataType::kInt8, Arithmetic::kW8A8)) continue;
    if (!settings.kernel.empty() && settings.kernel != kernel.name) continue;
    if (kernel.form == cuda::Form::kGemv && m > 16) continue;
    if (kernel.form == cuda::Form::kWgmma && !runtime->WhyNot(cuda::KernelId::kWgmma8).empty())
      continue;
    const std::string name(kernel.name);
    const auto int32_ns = bench.TimeKernel(kernel, DataType::kInt32);
    const int64_t of_these = bench.CountWrong();
    wrong += of_these;
    Print(settings, shape, name, "INT32", int32_ns, of_these);
    Print(settings, shape, name, "F16", bench.TimeKernel(kernel, DataType::kF16), -1);
  }
  // Its int8 wants multiples of four.
  if (peer != nullptr && peer->Prepare(m, n, bench.k_pad())) {
    const auto ns = bench.Time([&](int64_t copy) -> Error {
      if (peer->Enqueue(stream, bench.weight(copy), bench.rows(), bench.results(),
                        bench.workspace()))
        return {};
      return {cuda::ErrorKind::kLost, "cublasLtMatmul failed"};
    });
    Print(settings, shape, "cublaslt", "INT32", ns, bench.CountWrong());
  }
  if (torch->Prepare(m, bench.k_pad(), n))
    Print(settings, shape, "torch._int_mm", "INT32", torch->Time(), -1);
  return wrong;
}

}  // namespace

int PrintDeviceTimes(const DeviceTimeSettings& settings) {
  std::string why_none = "no GPU";
  const auto runtimes = cuda::OpenRuntimes(&why_none);
  if (runtimes.empty()) {
    std::fprintf(stderr, "kernels_bench: no CUDA device: %s\n", why_none.c_str());
    return 3;
  }
  Runtime* runtime = runtimes[0].get();
  cuda::Stream stream = nullptr;
  Demand(runtime->CreateStream(&stream));
  const auto peer = CublasLt::Open();
  std::printf(settings.json ? "{\"device\":\"%s\",\"cublaslt\":\"%s\"}\n" : "# %s, cuBLASLt: %s\n",
              runtime->info().description.c_str(), peer ? "yes" : "not installed");
  PrintCopy(settings, runtime, stream);
  auto shapes = settings.shapes;
  for (const auto& [k, n] : {std::pair(4096, 4096), {8192, 8192}, {8192, 28672}})
    for (const int64_t m : {1, 8, 16, 32, 64, 256, 1024, 4096})
      if (settings.shapes.empty()) shapes.push_back({m, k, n});
  TorchIntMm torch(settings.python);
  int64_t wrong = 0;
  for (const auto& shape : shapes)
    wrong += MeasureShape(settings, shape, runtime, stream, peer.get(), &torch);
  runtime->DestroyStream(stream);
  if (wrong > 0) std::fprintf(stderr, "kernels_bench: %ld sums were WRONG\n", wrong);
  return wrong == 0 ? 0 : 1;
}

}  // namespace qmatmul::bench
