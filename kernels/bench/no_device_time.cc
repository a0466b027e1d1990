// Stands in where the CUDA device is not built.
#include <cstdio>

#include "kernels/bench/device_time.h"

namespace qmatmul::bench {

int PrintDeviceTimes(const DeviceTimeSettings&) {
  std::fprintf(stderr, "kernels_bench: this build has no CUDA device (-DQMATMUL_CUDA=ON)\n");
  return 3;
}

}  // namespace qmatmul::bench
