// Packing through the Device door: any cut of the upload gives the same weight, Unpack gives the
// plain rows back, and what is not a good upload is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <tuple>

#include "kernels/devices.h"
#include "kernels/reference.h"
#include "tests/support/test_devices.h"
#include "tests/support/test_tensors.h"

namespace qmatmul {
namespace {

using test::Fill;
using test::Random;
using test::TestWeight;

// Built once for each kind of device.
#ifndef QMATMUL_TEST_DEVICE_KIND
#define QMATMUL_TEST_DEVICE_KIND "cpu"
#endif

Device* TheDevice() {
  static const auto devices =
      test::OpenTestDevices({.threads = 1, .team_spin_us_max = 0, .disabled_kernels = ""});
  const auto wanted = [](const auto& d) { return d->info().kind == QMATMUL_TEST_DEVICE_KIND; };
  return std::find_if(devices.begin(), devices.end(), wanted)->get();
}

// Appends `bytes` in pieces of the given sizes, again and again.
Fault PackInPieces(const WeightSpec& spec, const std::vector<std::byte>& bytes,
                   const std::vector<size_t>& sizes, std::shared_ptr<const PackedWeight>* packed) {
  std::unique_ptr<Packer> packer;
  if (Fault fault = TheDevice()->StartPack(spec, &packer); !fault.ok()) return fault;
  size_t position = 0;
  for (size_t i = 0; position < bytes.size(); i++) {
    const size_t size = std::min(sizes[i % sizes.size()], bytes.size() - position);
    if (Fault fault = packer->Append({bytes.data() + position, size}); !fault.ok()) return fault;
    position += size;
  }
  return packer->Finish(packed);
}

std::vector<int8_t> Unpacked(const PackedWeight& weight, int64_t k_begin, int64_t k_end) {
  std::vector<int8_t> values(static_cast<size_t>((k_end - k_begin) * weight.spec().n));
  const Fault fault = TheDevice()->Unpack(weight, k_begin, k_end, values);
  EXPECT_TRUE(fault.ok()) << fault.message;
  return values;
}

void ExpectHolds(const PackedWeight& packed, const ReferenceWeight& plain) {
  EXPECT_EQ(packed.spec(), plain.spec);
  EXPECT_EQ(Unpacked(packed, 0, plain.spec.k), plain.values);
  const auto n = static_cast<size_t>(plain.spec.n);
  const int64_t middle = plain.spec.k / 2;
  const std::vector<int8_t> rows = Unpacked(packed, middle, middle + 1);
  EXPECT_TRUE(std::equal(rows.begin(), rows.end(), plain.values.begin() + middle * plain.spec.n));
  std::vector<int32_t> sums(n, 0);
  for (size_t i = 0; i < plain.values.size(); i++) sums[i % n] += plain.values[i];
  EXPECT_EQ(std::vector<int32_t>(packed.column_sums().begin(), packed.column_sums().end()), sums);
  // Of a Vulkan device what it holds itself: scales and bias stay with the host.
  const bool is_vulkan = std::string_view(QMATMUL_TEST_DEVICE_KIND) == "vulkan";
  EXPECT_GE(packed.bytes(), is_vulkan ? plain.spec.data_bytes() : plain.spec.upload_bytes())
      << "what is held is counted";
}

TEST(Pack, AnyCutGivesThePlainWeightBack) {
  Random random(9);
  const int64_t shapes[][2] = {{1, 1}, {4, 16}, {5, 17}, {37, 3}, {64, 64}, {131, 35}, {12, 129}};
  for (DataType dtype : {DataType::kInt8, DataType::kInt4, DataType::kInt2}) {
    for (Layout layout : {Layout::kKN, Layout::kNK}) {
      for (auto [k, n] : shapes) {
        SCOPED_TRACE(std::string(NameOf(dtype)) + " " + std::string(NameOf(layout)) + " " +
                     std::to_string(k) + "x" + std::to_string(n));
        WeightSpec spec = test::MakeSpec(dtype, layout, k, n, k % 4 == 0 ? k / 4 : k);
        if (dtype != DataType::kInt4) spec = test::WithScales(spec, DataType::kF16, n);
        const TestWeight weight = MakeWeight(test::WithBias(spec), Fill::kRandom, &random);
        ReferenceWeight plain;
        ASSERT_TRUE(DecodeWeight(weight.view(), &plain).ok());
        for (const std::vector<size_t>& sizes :
             {std::vector<size_t>{size_t{1} << 20}, {1}, {3, 1, 7}, {61, 2, 640}, {0, 17}}) {
          std::shared_ptr<const PackedWeight> packed;
          const Fault fault = PackInPieces(weight.spec, weight.upload(), sizes, &packed);
          ASSERT_TRUE(fault.ok()) << fault.reason << ": " << fault.message;
          ExpectHolds(*packed, plain);
        }
      }
    }
  }
}

// What a weight was packed from can be read back to pack it elsewhere, from anywhere on.
TEST(Pack, TheUploadIsReadBack) {
  Random random(12);
  for (const DataType dtype : {DataType::kInt8, DataType::kInt4, DataType::kInt2})
    for (const Layout layout : {Layout::kKN, Layout::kNK})
      for (const DataType scales :
           {DataType::kUnspecified, DataType::kF32, DataType::kF16, DataType::kBF16})
        for (const auto& [k, n] :
             {std::pair<int64_t, int64_t>{1, 1}, {36, 17}, {37, 35}, {8, 129}}) {
          WeightSpec spec = test::MakeSpec(dtype, layout, k, n, k % 4 == 0 ? k / 4 : k);
          if (scales != DataType::kUnspecified) {
            const int64_t count = dtype == DataType::kInt4 ? spec.groups() * n : k % 2 == 0 ? n : 1;
            spec = test::WithBias(test::WithScales(spec, scales, count));
          } else if (dtype == DataType::kInt4) {
            continue;  // has scales always
          }
          SCOPED_TRACE(IdentityLine(spec));
          const TestWeight weight = MakeWeight(spec, Fill::kRandom, &random);
          const std::vector<std::byte> upload = weight.upload();
          std::shared_ptr<const PackedWeight> packed;
          const Fault packing = PackInPieces(spec, upload, {size_t{1} << 20}, &packed);
          ASSERT_TRUE(packing.ok()) << packing.message;
          for (const size_t piece : {upload.size(), size_t{1}, size_t{61}}) {
            std::vector<std::byte> read(upload.size());
            for (size_t at = 0; at < read.size(); at += piece) {
              const size_t count = std::min(piece, read.size() - at);
              const Fault fault =
                  TheDevice()->ReadUpload(*packed, int64_t(at), {read.data() + at, count});
              if (TheDevice()->info().kind != "cpu") {
                EXPECT_EQ(fault.kind, FaultKind::kUnimplemented);
                return;
              }
              ASSERT_TRUE(fault.ok()) << fault.message;
            }
            EXPECT_EQ(read, upload);
          }
        }
}

TEST(Pack, RowsWiderThanTheStagingBuffer) {
  Random random(10);
  for (const auto& [dtype, layout, k, n] : {std::tuple(DataType::kInt8, Layout::kKN, 5, 1'500'001),
                                            {DataType::kInt8, Layout::kNK, 131'071, 41},
                                            {DataType::kInt4, Layout::kKN, 5, 1'500'001},
                                            {DataType::kInt2, Layout::kKN, 5, 2'500'003}}) {
    const TestWeight weight =
        MakeWeight(test::MakeSpec(dtype, layout, k, n), Fill::kRandom, &random);
    ReferenceWeight plain;
    ASSERT_TRUE(DecodeWeight(weight.view(), &plain).ok());
    std::shared_ptr<const PackedWeight> packed;
    ASSERT_TRUE(PackInPieces(weight.spec, weight.upload(), {999'983}, &packed).ok());
    ExpectHolds(*packed, plain);
  }
}

struct BadUpload {
  const char* name;
  const char* reason;
  void (*spoil)(TestWeight*);
};

void SetScale(TestWeight* w, float value) { std::memcpy(w->scales.data() + 4, &value, 4); }

TEST(Pack, BadUploadsAreRefused) {
  const BadUpload rows[] = {
      {"Good", "", [](TestWeight*) {}},
      {"OneByteShort", "UPLOAD_SHORT", [](TestWeight* w) { w->data.pop_back(); }},
      {"OneByteLong", "UPLOAD_LONG", [](TestWeight* w) { w->data.push_back(std::byte{0}); }},
      {"Empty", "UPLOAD_SHORT",
       [](TestWeight* w) { w->data.clear(), w->scales.clear(), w->bias.clear(); }},
      {"ScaleNaN", "SCALE_RANGE",
       [](TestWeight* w) { SetScale(w, std::numeric_limits<float>::quiet_NaN()); }},
      {"ScaleInf", "SCALE_RANGE",
       [](TestWeight* w) { SetScale(w, -std::numeric_limits<float>::infinity()); }},
      {"ScaleTooSmall", "SCALE_RANGE", [](TestWeight* w) { SetScale(w, 0x1p-48f); }},
      {"ScaleTooLarge", "SCALE_RANGE", [](TestWeight* w) { SetScale(w, 0x1.000002p47f); }},
      {"ScaleMinusZero", "", [](TestWeight* w) { SetScale(w, -0.0f); }},
      {"BiasInf", "BIAS_RANGE",
       [](TestWeight* w) { w->bias[4] = std::numeric_limits<float>::infinity(); }},
      {"BiasTooLarge", "BIAS_RANGE", [](TestWeight* w) { w->bias[0] = -0x1.000002p120f; }},
      {"BiasAtLimit", "", [](TestWeight* w) { w->bias[0] = -0x1p120f; }},
  };
  Random random(11);
  const WeightSpec spec = test::WithBias(
      test::WithScales(test::MakeSpec(DataType::kInt8, Layout::kKN, 9, 5), DataType::kF32, 5));
  for (const BadUpload& row : rows) {
    for (size_t piece : {size_t{1} << 20, size_t{7}}) {
      TestWeight weight = MakeWeight(spec, Fill::kRandom, &random);
      row.spoil(&weight);
      // The byte too few or too many is the last one, after valid scales and bias.
      std::vector<std::byte> upload = MakeWeight(spec, Fill::kRandom, &random).upload();
      if (weight.upload().size() == upload.size()) upload = weight.upload();
      else upload.resize(weight.upload().size());
      std::shared_ptr<const PackedWeight> packed;
      const Fault fault = PackInPieces(spec, upload, {piece}, &packed);
      EXPECT_EQ(fault.reason, row.reason) << row.name << ": " << fault.message;
      EXPECT_EQ(fault.ok(), packed != nullptr) << row.name;
      if (!fault.ok()) { EXPECT_EQ(fault.kind, FaultKind::kInvalidArgument) << row.name; }
    }
  }
}

TEST(Pack, BadCodesAndPaddingAreRefusedWhereverTheyStand) {
  Random random(12);
  for (Layout layout : {Layout::kKN, Layout::kNK}) {
    for (DataType dtype : {DataType::kInt4, DataType::kInt2}) {
      const TestWeight good =
          MakeWeight(test::MakeSpec(dtype, layout, 21, 21), Fill::kRandom, &random);
      for (int64_t line : {0, 10, 20}) {
        TestWeight bad = good;
        bad.data[static_cast<size_t>((line + 1) * bad.spec.line_bytes() - 1)] |= std::byte{0x80};
        for (size_t piece : {size_t{1} << 20, size_t{1}}) {
          std::shared_ptr<const PackedWeight> packed;
          EXPECT_EQ(PackInPieces(bad.spec, bad.upload(), {piece}, &packed).reason, "PADDING_BITS")
              << line;
        }
        if (dtype != DataType::kInt2) continue;
        bad = good;
        bad.data[static_cast<size_t>(line * bad.spec.line_bytes() + 2)] |= std::byte{0x0C};
        std::shared_ptr<const PackedWeight> packed;
        EXPECT_EQ(PackInPieces(bad.spec, bad.upload(), {5}, &packed).reason, "INT2_CODE") << line;
      }
    }
  }
}

// A weight that some other device packed.
class ForeignWeight final : public PackedWeight {
 public:
  explicit ForeignWeight(const WeightSpec& spec) : PackedWeight(spec, "n64k16.s8", "elsewhere") {}
  std::span<const int32_t> column_sums() const override { return {}; }
};

TEST(Pack, ForeignLayoutsAreRefusedNotComputed) {
  const std::shared_ptr<const PackedWeight> foreign =
      std::make_shared<ForeignWeight>(test::MakeSpec(DataType::kInt8, Layout::kKN, 8, 8));
  std::vector<int8_t> values(64);
  Fault fault = TheDevice()->Unpack(*foreign, 0, 8, values);
  EXPECT_EQ(fault.reason, "LAYOUT_MISMATCH");
  EXPECT_EQ(fault.kind, FaultKind::kInternal);
  const WorkStep step{{&foreign, 1}, Arithmetic::kW8A8, {}};
  RunReport report;
  fault = TheDevice()->Run({{}, {&step, 1}, {}, 1}, &report);
  EXPECT_EQ(fault.reason, "LAYOUT_MISMATCH");
  EXPECT_EQ(fault.kind, FaultKind::kInternal);
}

}  // namespace
}  // namespace qmatmul
