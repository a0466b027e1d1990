// T3: a kernel that would trap on this processor is no candidate. Run on an emulated processor
// without any extension, where a wrong choice ends with SIGILL.
#include <gtest/gtest.h>

#include <string>

#include "kernels/devices.h"
#include "tests/support/product_case.h"

namespace qmatmul {
namespace {

TEST(seeds, T3_BareProcessor) {
  const auto devices = OpenDevices({.threads = 1});
  Device* device = devices[0].get();
  test::Random random(3);
  int unsupported = 0;
  for (const KernelInfo& kernel : device->Kernels()) {
    const bool plain = kernel.name.starts_with("cpu.scalar.");
    EXPECT_EQ(kernel.supported, plain) << kernel.name << ": this processor has no extension";
    const bool is_float = kernel.arithmetic == Arithmetic::kW8A32;
    const test::TestWeight weight = MakeWeight(test::MakeSpec(kernel.weight, Layout::kNK, 20, 20),
                                               test::Fill::kRandom, &random);
    test::ProductCase product{.name = kernel.name, .weights = {weight}, .requests = {}};
    product.arithmetic = kernel.arithmetic;
    test::ProductRequest request;
    request.activations =
        is_float ? FloatActivations(DataType::kF32, 5, 20, test::FloatRows::kOrdinary,
                                    Quantization::kNone, &random)
                 : IntegerActivations(DataType::kInt8, 5, 20, test::Fill::kRandom, &random);
    request.epilogues = {Epilogue{.dtype = DataType::kF32}};
    product.requests.push_back(request);
    CheckProduct(device, kernel.supported ? kernel.name : "", product);
    if (kernel.supported) continue;
    unsupported++;
    std::shared_ptr<const PackedWeight> packed;
    ASSERT_TRUE(device->Pack(weight.view(), &packed).ok());
    const WorkStep step{{&packed, 1}, kernel.arithmetic, {}};
    RunReport report;
    const Fault fault = device->Run({{}, {&step, 1}, kernel.name, 1}, &report);
    EXPECT_EQ(fault.kind, FaultKind::kFailedPrecondition) << kernel.name;
  }
  EXPECT_GT(unsupported, 0);
}

}  // namespace
}  // namespace qmatmul
