#include "kernels/bench/call_cost.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/bench/contest.h"
#include "kernels/bench/roof.h"
#include "kernels/cpu/activation_packer.h"
#include "kernels/cpu/micro_kernels.h"
#include "kernels/devices.h"

namespace qmatmul::bench {
namespace {

// The least of several samples, ns a call: what it takes when nobody disturbs.
double LeastNs(int count, const std::function<void(int count)>& run) {
  double least = 1e18;
  for (int sample = 0; sample < 31; ++sample) {
    const int64_t start = BenchClockNs(1);
    run(count);
    least = std::min(least, double(BenchClockNs(1) - start) / count);
  }
  return least;
}

// The micro-kernel alone over a weight of k x n: all its tiles, in the order they lie in memory.
double TilesNs(const std::string& name, int64_t k, int64_t n, int count) {
  for (const cpu::MicroKernel* kernel : cpu::MicroKernels()) {
    if (name != kernel->name) continue;
    const int64_t lines = (k + cpu::kLineK - 1) / cpu::kLineK;
    const int64_t panels = (n + cpu::kPanelColumns - 1) / cpu::kPanelColumns;
    const int64_t panel_bytes = lines * cpu::kLineValues;
    std::vector<uint8_t> weight(size_t(panels * panel_bytes), 1);
    cpu::Arena strip, sums;
    cpu::TileArgs t{};
    t.strip = strip.Reserve(size_t(k + 64) * 4);
    std::fill_n(static_cast<std::byte*>(strip.Reserve(1)), size_t(k + 64) * 4, std::byte{0});
    t.panel_stride = panel_bytes;
    t.lines = lines;
    t.ldc = panels * cpu::kPanelColumns;
    t.rows = 1;
    auto* c = static_cast<int32_t*>(sums.Reserve(size_t(t.ldc) * 4));
    const int64_t unit = kernel->nr / cpu::kPanelColumns;
    return LeastNs(count, [&](int repeats) {
      for (int i = 0; i < repeats; ++i) {
        for (int64_t p = 0; p < panels; p += unit) {
          t.panel = t.prefetch = weight.data() + p * panel_bytes;
          t.c = c + p * cpu::kPanelColumns;
          t.panels = static_cast<int>(std::min(unit, panels - p));
          kernel->run(t);
        }
      }
    });
  }
  return 0;
}

void Print(bool json, const char* what, int64_t k, int64_t n, double ns) {
  std::printf(json ? "{\"what\":\"%s\",\"m\":1,\"k\":%ld,\"n\":%ld,\"ns\":%.0f}\n"
                   : "%-42s 1 x %5ld x %5ld %12.0f ns\n",
              what, k, n, ns);
  std::fflush(stdout);
}

}  // namespace

void PrintCallCosts(bool json) {
  DeviceOptions options;
  options.threads = 2;
  const auto devices = OpenDevices(options);
  Device* device = devices[0].get();
  for (const int64_t size : {64, 384, 4096}) {
    const int count = size > 1000 ? 20 : 2000;
    const std::vector<int8_t> weight = MakeWeight("uniform", size, size);
    const std::vector<int8_t> activations(size_t(size), 1);
    const Problem problem{1, size, size, size > 1000 ? 1 : 2, activations, weight};
    OwnProduct own(device, problem, DataType::kInt8, 0, DataType::kInt8, {}, "");
    const double run = LeastNs(count, [&](int repeats) { own.Run(repeats); });
    Print(json, "Run (small ones with a team of 2 at hand)", size, size, run);
    if (size < 1000) {  // where the weight stays in L2, so that both find it in the same place
      const double tiles = TilesNs(std::string(own.kernel()), size, size, count);
      Print(json, "of it the micro-kernel's tiles", size, size, tiles);
      Print(json, "of it the call", size, size, run - tiles);
    }
    int64_t sum = 0;
    Print(json, "PredictNs", size, size, LeastNs(2000, [&](int repeats) {
            for (int i = 0; i < repeats; ++i)
              sum += device->PredictNs(1 + (i & 3), own.weight(), Arithmetic::kW8A8, 0);
          }));
    asm volatile("" ::"r"(sum));
  }
}

}  // namespace qmatmul::bench
