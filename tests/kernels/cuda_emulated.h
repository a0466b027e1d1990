// What tests of the CUDA device on emulated GPUs share: an opened device with its runtime, and weights.
//
// Thread-safety: values.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/runtime_emulated.h"
#include "tests/support/test_tensors.h"

namespace qmatmul::cuda {

// An opened device, and the runtime that it owns.
struct Emulated {
  std::unique_ptr<CudaDevice> device;
  EmulatedRuntime* runtime = nullptr;
};

template <typename RuntimeType = EmulatedRuntime>
Emulated Open(const EmulatedOptions& options, const std::string& disabled = "") {
  auto runtime = std::make_unique<RuntimeType>(options);
  Emulated emulated;
  emulated.runtime = runtime.get();
  std::string why_not;
  emulated.device = CudaDevice::Open(std::move(runtime), {.disabled_kernels = disabled}, &why_not);
  EXPECT_NE(emulated.device, nullptr) << why_not;
  return emulated;
}

inline test::TestWeight AnyWeight(DataType dtype, int64_t k, int64_t n, int64_t groups,
                                  test::Random* random) {
  WeightSpec spec = test::MakeSpec(dtype, Layout::kNK, k, n, k / groups);
  if (dtype != DataType::kInt4) spec = test::WithScales(spec, DataType::kF32, n);
  return test::MakeWeight(test::WithBias(spec), test::Fill::kRandom, random);
}

}  // namespace qmatmul::cuda
