// The kernel every machine can run: plain C++ for the baseline instruction set. It is the yardstick
// of the others and the last one standing when they are disabled.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/micro_kernels.h"

namespace qmatmul::cpu {
namespace {

#include "kernels/cpu/row_ops.inc"

void Run(const TileArgs& t) {
  const auto* strip = static_cast<const int16_t*>(t.strip);
  for (int row = 0; row < t.rows; ++row) {
    int32_t sums[16];
    int32_t* c = t.c + row * t.ldc;
    for (int j = 0; j < 16; ++j) sums[j] = t.accumulate ? c[j] : 0;
    const int16_t* a = strip + row * 4;
    const int8_t* b = t.panel;
    for (int64_t step = 0; step < t.k_steps; ++step, a += t.rows * 4, b += 64)
      for (int j = 0; j < 16; ++j)
        sums[j] +=
            a[0] * b[4 * j] + a[1] * b[4 * j + 1] + a[2] * b[4 * j + 2] + a[3] * b[4 * j + 3];
    std::copy_n(sums, 16, c);
  }
}

bool Supported(const CpuFeatures&) { return true; }

}  // namespace

const MicroKernel kScalar = {"cpu.scalar.s8s8s32.4x16x4",
                             Supported,
                             4,
                             16,
                             4,
                             0,
                             Operand::kS16,
                             kLayoutN16K4,
                             Run,
                             &kRowOps};

}  // namespace qmatmul::cpu
