// Rows put side by side into a strip: every operand, step and height, at the very end of the memory that they may
// touch.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <set>
#include <tuple>
#include <vector>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/micro_kernels.h"
#include "tests/support/guarded_buffer.h"
#include "tests/support/random.h"

namespace qmatmul::cpu {
namespace {

using test::GuardedBuffer;

// What a strip holds of one value.
double Wanted(Operand operand, const SourceRow& row, int64_t i) {
  if (operand == Operand::kF32) return static_cast<const float*>(row.values)[i];
  const int value = row.is_unsigned ? static_cast<const uint8_t*>(row.values)[i]
                                    : static_cast<const int8_t*>(row.values)[i];
  return value + BiasOf(operand, row.is_unsigned);
}

double Found(Operand operand, const std::byte* strip, int64_t index) {
  switch (operand) {
    case Operand::kF32: return reinterpret_cast<const float*>(strip)[index];
    case Operand::kS16: return reinterpret_cast<const int16_t*>(strip)[index];
    case Operand::kU8: return reinterpret_cast<const uint8_t*>(strip)[index];
    case Operand::kS8: return reinterpret_cast<const int8_t*>(strip)[index];
  }
  return 0;
}

void Check(const MicroKernel& kernel, int rows, int64_t k, test::Random* random) {
  const int64_t value_bytes = kernel.operand == Operand::kF32 ? 4 : 1;
  std::vector<std::unique_ptr<GuardedBuffer>> memory;
  std::vector<SourceRow> source;
  for (int r = 0; r < rows; ++r) {
    memory.push_back(std::make_unique<GuardedBuffer>(static_cast<size_t>(k * value_bytes)));
    for (int64_t i = 0; i < k; ++i) {
      const int64_t value = random->Between(-128, 127);
      const auto number = static_cast<float>(value);
      const auto byte = static_cast<int8_t>(value);
      if (value_bytes == 4) std::memcpy(memory.back()->data() + 4 * i, &number, 4);
      else std::memcpy(memory.back()->data() + i, &byte, 1);
    }
    source.push_back({memory.back()->data(), value_bytes == 1 && random->Chance(50)});
  }
  const int64_t steps = (k + kernel.kr - 1) / kernel.kr;
  const GuardedBuffer strip(
      static_cast<size_t>(steps * rows * kernel.kr * ElementBytes(kernel.operand)));
  kernel.ops->interleave(kernel.operand, kernel.kr, source.data(), rows, k, strip.data());
  ASSERT_TRUE(strip.IntactBefore());
  for (int r = 0; r < rows; ++r)
    for (int64_t i = 0; i < steps * kernel.kr; ++i) {
      const double wanted = i < k ? Wanted(kernel.operand, source[static_cast<size_t>(r)], i) : 0;
      const int64_t index = (i / kernel.kr * rows + r) * kernel.kr + i % kernel.kr;
      ASSERT_EQ(Found(kernel.operand, strip.data(), index), wanted)
          << kernel.name << ", row " << r << " of " << rows << ", value " << i << " of " << k;
    }
}

TEST(Interleave, PutsEveryRowInItsPlaceAndNothingBeyond) {
  test::Random random(41);
  const CpuFeatures features = DetectCpuFeatures();
  std::set<std::tuple<const RowOps*, Operand, int>>
      seen;  // kernels of one instruction set share it
  for (const MicroKernel* kernel : MicroKernels()) {
    if (!kernel->supported(features)) continue;
    const bool is_new = seen.emplace(kernel->ops, kernel->operand, kernel->kr).second;
    for (int rows = 1; rows <= (is_new ? kStripRowsMax : kernel->mr); ++rows)
      for (const int64_t k : {1, 3, 4, 5, 15, 16, 17, 31, 64, 65, 127, 200})
        Check(*kernel, rows, k, &random);
  }
}

}  // namespace
}  // namespace qmatmul::cpu
