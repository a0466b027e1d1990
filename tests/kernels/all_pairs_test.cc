// T4: any two kernels of one weight type and arithmetic, of whatever device, give the same bytes, compared
// with each other and not through the reference: a mistake that kernel and reference shared would still have
// to be made by every instruction set alike.
//
// The same file is built once more against the library whose missing instruction sets are emulated, and
// once more with Vulkan devices beside the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/devices.h"
#include "tests/support/device_call.h"
#include "tests/support/test_devices.h"
#include "tests/support/test_tensors.h"

namespace qmatmul {
namespace {

using test::DeviceCall;
using test::Fill;
using test::FloatRows;
using test::Random;
using test::TestActivations;
using test::TestWeight;

// Emulated and sanitized instructions are slow: smaller shapes for the ones, fewer for the others.
#if defined(QMATMUL_TESTS_QUICK)
constexpr int kShapes = 24;
#else
constexpr int kShapes = 200;
#endif
#if defined(QMATMUL_TESTS_QUICK) || defined(QMATMUL_TESTS_EMULATED) || defined(QMATMUL_TESTS_VULKAN)
constexpr int64_t kShapeRowsMax = 20, kShapeInnerMax = 90, kShapeColumnsMax = 70;
#else
constexpr int64_t kShapeRowsMax = 70, kShapeInnerMax = 300, kShapeColumnsMax = 130;
#endif

constexpr DataType kFloatTypes[] = {DataType::kF32, DataType::kF16, DataType::kBF16};
constexpr DataType kOutputTypes[] = {DataType::kInt32, DataType::kInt16, DataType::kInt8,
                                     DataType::kF32,   DataType::kF16,   DataType::kBF16};

struct Kind {
  DataType weight;
  Arithmetic arithmetic;
};

std::string NameOfKind(const Kind& kind) {
  return std::string(NameOf(kind.weight)) + "_" + std::string(NameOf(kind.arithmetic));
}
void PrintTo(const Kind& kind, std::ostream* out) { *out << NameOfKind(kind); }

// Opened once: three members, so that columns are split unevenly.
const std::vector<std::unique_ptr<Device>>& Devices() {
  static const auto devices = test::OpenTestDevices({.threads = 3});
  return devices;
}

struct Contender {
  Device* device;
  std::string kernel;
};

class AllPairs : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    for (const auto& device : Devices())
      for (const KernelInfo& kernel : device->Kernels())
        if (kernel.supported && kernel.weight == GetParam().weight &&
            kernel.arithmetic == GetParam().arithmetic)
          kernels_.push_back({device.get(), kernel.name});
    if (kernels_.size() < 2) GTEST_SKIP() << "this machine has one kernel of this kind alone";
  }

  bool weight_only() const { return GetParam().arithmetic == Arithmetic::kW8A32; }

  TestWeight Weight(int64_t k, int64_t n, Fill fill) {
    const Layout layout = random_.Chance(50) ? Layout::kKN : Layout::kNK;
    const int64_t groups = random_.Between(1, 4);
    WeightSpec spec =
        test::MakeSpec(GetParam().weight, layout, k, n, k % groups == 0 ? k / groups : k);
    if (spec.dtype == DataType::kInt4) {
      spec.scale_dtype = random_.Pick<DataType>(kFloatTypes);
    } else {
      const std::array<int64_t, 3> counts = {0, 1, n};
      spec = test::WithScales(spec, random_.Pick<DataType>(kFloatTypes),
                              random_.Pick<int64_t>(counts));
    }
    if (random_.Chance(50)) spec = test::WithBias(spec);
    return MakeWeight(spec, fill, &random_);
  }

  TestActivations Activations(int64_t rows, int64_t k, Fill fill) {
    const DataType float_type = random_.Pick<DataType>(kFloatTypes);
    if (weight_only())
      return FloatActivations(float_type, rows, k, FloatRows::kOrdinary, Quantization::kNone,
                              &random_);
    if (random_.Chance(30))
      return FloatActivations(float_type, rows, k, FloatRows::kCorners, Quantization::kDynamic,
                              &random_);
    const bool is_unsigned = random_.Chance(30) && k <= kInnerMaxWide;
    TestActivations a = IntegerActivations(is_unsigned ? DataType::kUint8 : DataType::kInt8, rows,
                                           k, fill, &random_);
    if (k > kInnerMaxWide || random_.Chance(50)) return a;
    a.zero_points.resize(random_.Chance(50) ? static_cast<size_t>(rows) : 1);
    for (int32_t& z : a.zero_points)
      z = static_cast<int32_t>(random_.Between(0, 255)) - (is_unsigned ? 0 : 128);
    return a;
  }

  // Every output type that numerics §3 allows here, with a rule and an activation drawn for each.
  std::vector<Epilogue> Epilogues(const WeightSpec& spec) {
    std::vector<Epilogue> all;
    for (const DataType dtype : kOutputTypes) {
      Epilogue e;
      e.dtype = dtype;
      e.overflow = random_.Chance(50) ? Overflow::kSaturate : Overflow::kWrap;
      const bool raw_ok = !spec.group_wise() && !weight_only();
      const bool narrow = dtype == DataType::kInt8 || dtype == DataType::kInt16;
      e.scaled = narrow && (!raw_ok || random_.Chance(50));
      if (e.raw() && !raw_ok) continue;
      if (e.scaled) {
        e.scale = 40.0f * std::fabs(test::OrdinaryScale(&random_));
        e.zero_point = static_cast<int32_t>(random_.Between(-128, 127));
      }
      e.skip_bias = e.raw() || random_.Chance(30);
      if (!e.raw() && random_.Chance(40)) e.activation = Activation::kRelu;
      all.push_back(e);
    }
    return all;
  }

  // One product with every kernel; all must agree with the first, and so with each other.
  void Compare(const TestWeight& weight, const TestActivations& activations) {
    SCOPED_TRACE("M=" + std::to_string(activations.rows) + " K=" + std::to_string(weight.spec.k) +
                 " N=" + std::to_string(weight.spec.n));
    std::map<const Device*, std::shared_ptr<const PackedWeight>> packed;
    for (const auto& device : Devices()) {
      packed[device.get()] = PackOn(device.get(), weight);
      ASSERT_NE(packed[device.get()], nullptr);
    }
    for (const Epilogue& epilogue : Epilogues(weight.spec)) {
      DeviceCall first;
      for (const auto& [device, kernel] : kernels_) {
        DeviceCall call = CallDevice(device, packed[device], activations, epilogue, kernel,
                                     GetParam().arithmetic);
        ASSERT_TRUE(call.fault.ok()) << kernel << ": " << call.fault.message;
        ASSERT_EQ(call.report.kernel, kernel);
        EXPECT_TRUE(call.intact) << kernel;
        if (kernel == kernels_[0].kernel) {
          first = std::move(call);
          continue;
        }
        ASSERT_TRUE(call.bytes == first.bytes)
            << kernel << " and " << kernels_[0].kernel << " differ in " << NameOf(epilogue.dtype);
        EXPECT_EQ(call.outcome.overflow_count, first.outcome.overflow_count) << kernel;
        EXPECT_EQ(call.outcome.first_overflow_row, first.outcome.first_overflow_row) << kernel;
        EXPECT_EQ(call.outcome.first_overflow_column, first.outcome.first_overflow_column)
            << kernel;
        ++compared_;
      }
    }
  }

  std::vector<Contender> kernels_;
  Random random_{404};
  int64_t compared_ = 0;
};

TEST_P(AllPairs, RandomShapes) {
  for (int i = 0; i < kShapes; ++i) {
    const int64_t m = random_.Between(1, random_.Chance(30) ? 3 : kShapeRowsMax);
    const int64_t k = random_.Between(1, kShapeInnerMax);
    const int64_t n = random_.Between(1, kShapeColumnsMax);
    const Fill fill = random_.Chance(20) ? Fill::kAlternating : Fill::kRandom;
    Compare(Weight(k, n, fill), Activations(m, k, fill));
    if (HasFatalFailure()) return;
  }
  EXPECT_GE(compared_, 3 * kShapes);
}

// -128 * -128 in every place, and whatever else saturates pairs of products.
TEST_P(AllPairs, Extremes) {
  for (const Fill weight_fill :
       {Fill::kLowest, Fill::kHighest, Fill::kMinusHighest, Fill::kAlternating})
    for (const Fill fill : {Fill::kLowest, Fill::kHighest, Fill::kAlternating})
      for (const int64_t rows : {1, 7, 33}) {
        Compare(Weight(259, 35, weight_fill), Activations(rows, 259, fill));
        if (HasFatalFailure()) return;
      }
}

// Each strip of rows adds up more than one block of K, and they are not equally long.
TEST_P(AllPairs, SeveralBlocksOfK) {
  Compare(Weight(2111, 40, Fill::kRandom), Activations(37, 2111, Fill::kRandom));
}

TEST_P(AllPairs, LongestK) {
  for (const Fill fill : {Fill::kLowest, Fill::kRandom}) {
    Compare(Weight(kInnerMax, 3, fill), Activations(2, kInnerMax, fill));
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, AllPairs,
                         testing::Values(Kind{DataType::kInt8, Arithmetic::kW8A8},
                                         Kind{DataType::kInt4, Arithmetic::kW8A8},
                                         Kind{DataType::kInt2, Arithmetic::kW8A8},
                                         Kind{DataType::kInt8, Arithmetic::kW8A32},
                                         Kind{DataType::kInt4, Arithmetic::kW8A32},
                                         Kind{DataType::kInt2, Arithmetic::kW8A32}),
                         [](const testing::TestParamInfo<Kind>& kind) {
                           return NameOfKind(kind.param);
                         });

}  // namespace
}  // namespace qmatmul
