// top_k (numerics §6): the selection against the naive definition, and the same through the Device door.
#include "kernels/top_k.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/devices.h"
#include "kernels/half.h"
#include "kernels/reference.h"
#include "tests/support/device_call.h"
#include "tests/support/product_case.h"
#include "tests/support/test_devices.h"

namespace qmatmul {
namespace {

using test::Fill;
using test::FloatRows;
using test::GuardedBuffer;
using test::ProductCase;
using test::ProductRequest;
using test::Random;

constexpr DataType kTypes[] = {DataType::kInt8, DataType::kInt16, DataType::kInt32,
                               DataType::kF32,  DataType::kF16,   DataType::kBF16};

enum class Order : uint8_t {
  kRandom,
  kTies,
  kEqual,
  kRising,
  kBelowZero,
  kFalling,
  kZeros,
  kInfinities
};
constexpr Order kOrders[] = {Order::kRandom,    Order::kTies,    Order::kEqual, Order::kRising,
                             Order::kBelowZero, Order::kFalling, Order::kZeros, Order::kInfinities};

// Value `i` of n; floats in [-1, 1] or so, integers the same times their range.
float Draw(Order order, int64_t i, int64_t n, Random* random) {
  const float place = static_cast<float>(i) / static_cast<float>(n);
  switch (order) {
    case Order::kRandom: return random->Unit();
    case Order::kTies: return static_cast<float>(random->Between(-2, 2)) / 2;
    case Order::kEqual: return -0.25f;
    case Order::kRising: return place;
    case Order::kBelowZero: return place - 1;
    case Order::kFalling: return -place;
    case Order::kZeros: return random->Chance(50) ? 0.0f : -0.0f;
    case Order::kInfinities: break;
  }
  if (random->Chance(60)) return random->Unit();
  return random->Chance(50) ? INFINITY : -INFINITY;
}

void Put(DataType dtype, float value, std::byte* out) {
  const bool wide = dtype == DataType::kF32 || dtype == DataType::kInt32;
  uint32_t bits = 0;
  if (dtype == DataType::kF32) {
    std::memcpy(&bits, &value, 4);
  } else if (IsFloat(dtype)) {
    bits = dtype == DataType::kF16 ? FloatToF16(value) : FloatToBF16(value);
  } else {
    const float limit = dtype == DataType::kInt8    ? 127
                        : dtype == DataType::kInt16 ? 32767
                                                    : 0x1p30f;
    bits = static_cast<uint32_t>(static_cast<int32_t>(std::clamp(value, -1.0f, 1.0f) * limit));
  }
  std::memcpy(out, &bits, wide ? 4 : dtype == DataType::kInt8 ? 1 : 2);
}

// One selection in guarded memory, compared with the naive definition.
void CheckSelection(const GuardedBuffer& row, DataType dtype, int64_t n, int64_t k,
                    std::vector<uint64_t>* scratch) {
  const auto bytes = static_cast<size_t>(BitsOf(dtype) / 8), count = static_cast<size_t>(k);
  const GuardedBuffer values(count * bytes), columns(count * 4);
  SelectTopK(row.data(), dtype, n, k, values.data(), columns.data(), scratch);
  EXPECT_TRUE(values.IntactBefore() && columns.IntactBefore());
  const std::vector<int32_t> want = ReferenceTopK(row.data(), dtype, n, k);
  std::vector<int32_t> got(count);
  std::memcpy(got.data(), columns.data(), count * 4);
  ASSERT_EQ(got, want);
  for (size_t i = 0; i < count; i++)
    ASSERT_EQ(std::memcmp(values.data() + i * bytes,
                          row.data() + static_cast<size_t>(want[i]) * bytes, bytes),
              0)
        << "value " << i;
}

class TopKOfType : public testing::TestWithParam<DataType> {};

TEST_P(TopKOfType, IsTheNaiveDefinition) {
  const DataType dtype = GetParam();
  const auto bytes = static_cast<size_t>(BitsOf(dtype) / 8);
  Random random(41);
  std::vector<uint64_t> scratch;
  // Around the block of 64, and beyond the room for candidates (k + 64, 2k).
  for (int64_t n : {1, 2, 63, 64, 65, 127, 128, 1000, 1025, 5000, 20011}) {
    for (Order order : kOrders) {
      const GuardedBuffer row(static_cast<size_t>(n) * bytes);
      for (int64_t i = 0; i < n; i++)
        Put(dtype, Draw(order, i, n, &random), row.data() + static_cast<size_t>(i) * bytes);
      for (int64_t k : {int64_t{1}, int64_t{2}, int64_t{10}, n / 7, n / 2, n - 1, n}) {
        if (k < 1 || k > n) continue;
        SCOPED_TRACE("n " + std::to_string(n) + ", k " + std::to_string(k) + ", order " +
                     std::to_string(static_cast<int>(order)));
        CheckSelection(row, dtype, n, k, &scratch);
        if (HasFatalFailure()) return;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, TopKOfType, testing::ValuesIn(kTypes),
                         [](const auto& type) { return std::string(NameOf(type.param)); });

TEST(TopK, EndsOfTheIntegers) {
  const std::array<int32_t, 5> values = {INT32_MIN, 0, INT32_MAX, INT32_MIN, INT32_MAX};
  std::array<int32_t, 5> got{}, columns{};
  std::vector<uint64_t> scratch;
  SelectTopK(reinterpret_cast<const std::byte*>(values.data()), DataType::kInt32, 5, 5,
             reinterpret_cast<std::byte*>(got.data()), reinterpret_cast<std::byte*>(columns.data()),
             &scratch);
  EXPECT_EQ(columns, (std::array<int32_t, 5>{2, 4, 1, 0, 3}));
  EXPECT_EQ(got, (std::array<int32_t, 5>{INT32_MAX, INT32_MAX, 0, INT32_MIN, INT32_MIN}));
}

const std::vector<std::unique_ptr<Device>>& Devices() {
  static const auto devices =
      test::OpenTestDevices({.threads = 3, .team_spin_us_max = 0, .disabled_kernels = ""});
  return devices;
}

// An epilogue of the type that saturates now and then.
Epilogue Narrow(DataType dtype, Overflow overflow) {
  Epilogue e{.dtype = dtype, .overflow = overflow};
  e.scaled = dtype == DataType::kInt8;
  e.scale = 30.0f;
  e.skip_bias = e.raw();
  return e;
}

TEST(TopKOnDevices, SegmentsOfDifferentTypesInOneRun) {
  Random random(42);
  for (const auto& device : Devices()) {
    ProductCase product{.name = "mixed", .weights = {}, .requests = {}};
    for (int64_t n : {300, 77})
      product.weights.push_back(
          MakeWeight(test::WithBias(test::WithScales(
                         test::MakeSpec(DataType::kInt8, Layout::kKN, 48, n), DataType::kF32, n)),
                     Fill::kRandom, &random));
    product.row_checks = true;
    for (DataType dtype : kTypes) {
      for (Overflow overflow : {Overflow::kSaturate, Overflow::kWrap, Overflow::kError}) {
        ProductRequest request{
            .activations = IntegerActivations(DataType::kInt8, 9, 48, Fill::kRandom, &random),
            .epilogues = {Narrow(dtype, overflow), Narrow(dtype, overflow)}};
        request.activations.scales = {0.01f};
        // Of each kind: both outputs, one of them, none; k from 1 to N.
        const std::array<std::vector<int64_t>, 4> kinds = {{{5, 77}, {0, 1}, {300, 0}, {}}};
        request.top_k = kinds[product.requests.size() % kinds.size()];
        request.segments = {{3, 4}, {0, 2}};  // rows 2, 7 and 8 are nobody's
        request.row_gap_bytes = static_cast<int64_t>(product.requests.size()) % 5;
        product.requests.push_back(std::move(request));
      }
    }
    CheckProduct(device.get(), "", product);
  }
}

TEST(TopKOnDevices, DynamicRowsAndRefusedOnes) {
  Random random(43);
  for (const auto& device : Devices()) {
    ProductCase product{.name = "floats", .weights = {}, .requests = {}};
    product.weights = {MakeWeight(test::MakeSpec(DataType::kInt4, Layout::kNK, 64, 130, 32),
                                  Fill::kRandom, &random)};
    for (int i = 0; i < 3; i++) {
      product.requests.push_back(
          {.activations = FloatActivations(DataType::kF32, 4, 64, FloatRows::kCorners,
                                           Quantization::kDynamic, &random),
           .epilogues = {{.dtype = DataType::kF16}},
           .top_k = {3}});
      const float poison = INFINITY;
      if (i == 1)
        std::memcpy(product.requests[1].activations.memory[0]->data() + 4 * 70, &poison, 4);
    }
    CheckProduct(device.get(), "", product);
    product.arithmetic = Arithmetic::kW8A32;
    for (ProductRequest& request : product.requests)
      request.activations.quantization = Quantization::kNone;
    CheckProduct(device.get(), "", product);
  }
}

// More dense rows than the scratch holds at once: 40 · 70,000 · 4 bytes are more than 8 MiB.
TEST(TopKOnDevices, RowsInTiles) {
  Random random(44);
  const int64_t k = 6, n = 70'000;
  for (const auto& device : Devices()) {
    ProductCase product{.name = "tiles", .weights = {}, .requests = {}};
    product.weights = {
        MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, k, n), Fill::kSmall, &random)};
    for (int64_t rows : {17, 23}) {
      ProductRequest request{
          .activations = IntegerActivations(DataType::kInt8, rows, k, Fill::kSmall, &random),
          .epilogues = {{.dtype = DataType::kInt32}},
          .top_k = {rows}};
      if (rows == 17) request.epilogues[0].dtype = DataType::kInt8;
      request.segments = {{2, 3}, {5, rows - 5}};
      product.requests.push_back(std::move(request));
    }
    CheckProduct(device.get(), "", product);
  }
}

// What cannot be kept in scratch is still a row.
TEST(TopKOnDevices, OneRowWiderThanTheScratch) {
  Random random(45);
  const int64_t n = 2'200'000;
  for (const auto& device : Devices()) {
    ProductCase product{.name = "wide", .weights = {}, .requests = {}};
    product.weights = {
        MakeWeight(test::MakeSpec(DataType::kInt8, Layout::kKN, 2, n), Fill::kRandom, &random)};
    product.requests.push_back(
        {.activations = IntegerActivations(DataType::kInt8, 2, 2, Fill::kRandom, &random),
         .epilogues = {{.dtype = DataType::kF32}},
         .top_k = {10}});
    CheckProduct(device.get(), "", product);
  }
}

}  // namespace
}  // namespace qmatmul
