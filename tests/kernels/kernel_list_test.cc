// What every device says of its kernels: which are disabled, kept, put aside, and why a forced one is refused.
#include "kernels/kernel_list.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace qmatmul {
namespace {

constexpr char kTile[] = "dev.fast.s8s8s32.8x16x4", kRow[] = "dev.fast.s8s8s32.1x64x4",
               kSlow[] = "dev.slow.s8s8s32.4x16x4", kPlain[] = "dev.plain.s8s8s32.2x16x4",
               kOther[] = "dev.plain.f32s8f32.2x16x4";

constexpr size_t kTileIndex = 0, kRowIndex = 1, kSlowIndex = 2, kPlainIndex = 3, kOtherIndex = 4;

// Four of one kind, best first, and one of another.
std::vector<KernelInfo> Infos() {
  std::vector<KernelInfo> infos;
  for (const char* name : {kTile, kRow, kSlow, kPlain})
    infos.push_back({name, true, false, "", "n16.s8", DataType::kInt8, Arithmetic::kW8A8});
  infos.push_back({kOther, true, false, "", "n16.s8", DataType::kInt8, Arithmetic::kW8A32});
  return infos;
}

std::vector<std::string> UsableOf(const KernelList& list) {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : list.kernels())
    if (kernel.usable()) names.push_back(kernel.name);
  return names;
}

TEST(KernelList, NamesAndPrefixesOfTheList) {
  const struct {
    const char* list;
    const char* name;
    bool listed;
  } rows[] = {
      {"", kTile, false},
      {",, ,", kTile, false},
      {"dev.fast", kTile, true},
      {"dev", kTile, true},
      {"dev.fas", kTile, false},  // a prefix ends before a dot
      {"dev.fast.", kTile, false},
      {kTile, kTile, true},
      {kTile, kRow, false},
      {"dev.fast.s8s8s32.8x16x4.more", kTile, false},
      {"fast", kTile, false},  // a prefix, not a part
      {" dev.slow , dev.fast ", kTile, true},
      {"dev. fast", kTile, false},
      {"nonsense,dev.fast", kTile, true},
      {"dev.fast,nonsense", kTile, true},
      {",dev.fast,", kTile, true},
  };
  for (const auto& row : rows)
    EXPECT_EQ(IsListed(row.list, row.name), row.listed) << "'" << row.list << "' and " << row.name;
}

TEST(KernelList, DisabledKernelsSayWhatDisabledThem) {
  const KernelList list(Infos(), "dev.fast", {1, 16});
  EXPECT_EQ(UsableOf(list), (std::vector<std::string>{kSlow, kPlain, kOther}));
  for (const KernelInfo& kernel : list.kernels()) {
    EXPECT_TRUE(kernel.supported);
    EXPECT_EQ(kernel.disabled, kernel.name == kTile || kernel.name == kRow) << kernel.name;
    EXPECT_EQ(kernel.reason,
              kernel.disabled ? "disabled by configuration (QMATMUL_DISABLE_KERNELS)" : "");
  }
}

TEST(KernelList, WhatTheMachineLacksIsTheFirstReason) {
  std::vector<KernelInfo> infos = Infos();
  infos[kTileIndex].supported = false;
  infos[kTileIndex].reason = "this machine lacks it";
  const KernelList list(infos, "dev.fast", {1, 16});
  const KernelInfo& tile = list.kernels()[kTileIndex];
  EXPECT_TRUE(tile.disabled && !tile.supported);
  EXPECT_EQ(tile.reason, "this machine lacks it");
}

// Everything disabled: of each kind the last that is supported stays.
TEST(KernelList, OneOfEachKindIsKeptThoughDisabled) {
  std::vector<KernelInfo> infos = Infos();
  EXPECT_EQ(UsableOf({infos, "dev", {1, 16}}), (std::vector<std::string>{kPlain, kOther}));
  infos[kPlainIndex].supported = false;
  infos[kPlainIndex].reason = "lacks";
  const KernelList list(infos, "dev", {1, 16});
  EXPECT_EQ(UsableOf(list), (std::vector<std::string>{kSlow, kOther}));
  EXPECT_EQ(list.kernels()[kSlowIndex].reason,
            "kept although disabled: no other kernel of its kind is left");
  EXPECT_EQ(list.kernels()[kPlainIndex].reason, "lacks");
  for (KernelInfo& info : infos) info.supported = false;
  EXPECT_TRUE(UsableOf({infos, "dev", {1, 16}}).empty()) << "none is supported";
}

TEST(KernelList, ARefusedKernelGivesItsPlaceToADisabledOne) {
  KernelList list(Infos(), "dev.slow,dev.plain", {1, 16});
  list.Refuse(kTileIndex, "wrong sums");
  EXPECT_EQ(UsableOf(list), (std::vector<std::string>{kRow, kOther})) << "one is left";
  EXPECT_FALSE(list.kernels()[kTileIndex].supported);
  EXPECT_EQ(list.kernels()[kTileIndex].reason, "wrong sums");
  list.Refuse(kRowIndex, "wrong sums");
  EXPECT_EQ(UsableOf(list), (std::vector<std::string>{kPlain, kOther}));
}

TEST(KernelList, RowClassesBeginWhereTheLastOneEnds) {
  const struct {
    RowClasses classes;
    int64_t rows;
    const char* name;
  } rows[] = {
      {{1, 16}, 0, "m1"},     {{1, 16}, 1, "m1"},    {{1, 16}, 2, "m2-16"},
      {{1, 16}, 16, "m2-16"}, {{1, 16}, 17, "m17+"}, {{1, 16}, 100'000, "m17+"},
      {{8, 64}, 1, "m1-8"},   {{8, 64}, 8, "m1-8"},  {{8, 64}, 9, "m9-64"},
      {{8, 64}, 64, "m9-64"}, {{8, 64}, 65, "m65+"}, {{3, 4}, 4, "m4"},
  };
  for (const auto& row : rows) {
    KernelList list(Infos(), "", row.classes);
    list.Quarantine(kRow, row.rows, "x");
    ASSERT_EQ(list.Quarantined().size(), 1u);
    EXPECT_EQ(list.Quarantined()[0].key, std::string(kRow) + "/" + row.name) << row.rows;
    EXPECT_TRUE(list.IsQuarantined(kRowIndex, row.rows));
  }
}

TEST(KernelList, QuarantineIsForOneKernelAndRowClass) {
  KernelList list(Infos(), "", {1, 16});
  list.Quarantine(kTile, 8, "wrong sum");
  list.Quarantine(kTile, 16, "again");  // the first reason stays
  list.Quarantine("dev.none", 8, "x");
  ASSERT_EQ(list.Quarantined().size(), 1u);
  const QuarantineInfo entry = list.Quarantined()[0];
  EXPECT_EQ(entry.key, std::string(kTile) + "/m2-16");
  EXPECT_EQ(entry.kernel, kTile);
  EXPECT_EQ(entry.reason, "wrong sum");
  EXPECT_GT(entry.unix_time_ns, int64_t{1'600'000'000} * 1'000'000'000);
  for (const int64_t rows : {1, 2, 16, 17}) {
    EXPECT_EQ(list.IsQuarantined(kTileIndex, rows), rows == 2 || rows == 16) << rows;
    EXPECT_FALSE(list.IsQuarantined(kRowIndex, rows)) << rows;
  }
  EXPECT_FALSE(list.Rearm(std::string(kTile) + "/m1"));
  EXPECT_FALSE(list.Rearm(kTile)) << "the key, not the kernel";
  EXPECT_FALSE(list.Rearm("")) << "no key is no key";
  EXPECT_TRUE(list.Rearm(entry.key));
  EXPECT_FALSE(list.Rearm(entry.key)) << "once";
  EXPECT_FALSE(list.IsQuarantined(kTileIndex, 8));
  EXPECT_TRUE(list.Quarantined().empty());
}

TEST(KernelList, EachRowClassIsRearmedAlone) {
  KernelList list(Infos(), "", {1, 16});
  for (const int64_t rows : {1, 8, 40}) list.Quarantine(kTile, rows, "x");
  list.Quarantine(kRow, 40, "x");
  ASSERT_EQ(list.Quarantined().size(), 4u);
  EXPECT_TRUE(list.Rearm(std::string(kTile) + "/m17+"));
  EXPECT_FALSE(list.IsQuarantined(kTileIndex, 20));
  EXPECT_TRUE(list.IsQuarantined(kTileIndex, 1) && list.IsQuarantined(kTileIndex, 2));
  EXPECT_TRUE(list.IsQuarantined(kRowIndex, 20));
  EXPECT_TRUE(list.Rearm(std::string(kTile) + "/m1"));
  EXPECT_FALSE(list.IsQuarantined(kTileIndex, 1));
  EXPECT_TRUE(list.IsQuarantined(kTileIndex, 2));
  EXPECT_TRUE(list.Rearm(std::string(kRow) + "/m17+"));
  EXPECT_FALSE(list.IsQuarantined(kRowIndex, 20));
  EXPECT_EQ(list.Quarantined().size(), 1u);
}

TEST(KernelList, FindSaysWhyNot) {
  std::vector<KernelInfo> infos = Infos();
  infos[kSlowIndex].supported = false;
  infos[kSlowIndex].reason = "this machine lacks it";
  KernelList list(infos, kRow, {1, 16});
  list.Quarantine(kTile, 1, "x");
  size_t found = 99;
  EXPECT_TRUE(list.Find(kTile, 2, &found).ok());
  EXPECT_EQ(found, kTileIndex);
  EXPECT_TRUE(list.Find(kPlain, 1, &found).ok());
  EXPECT_EQ(found, kPlainIndex);
  const std::string cannot = " cannot run here: ", way_out = "; ListKernels shows those that can";
  const struct {
    const char* name;
    FaultKind kind;
    const char* reason;
    std::string message;
  } rows[] = {
      {"dev.none", FaultKind::kInvalidArgument, "KERNEL_UNKNOWN",
       "kernel 'dev.none' is not built in; ListKernels shows the names"},
      {"dev.fast", FaultKind::kInvalidArgument, "KERNEL_UNKNOWN",
       "kernel 'dev.fast' is not built in; ListKernels shows the names"},
      {kSlow, FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED",
       std::string("kernel ") + kSlow + cannot + "this machine lacks it" + way_out},
      {kRow, FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED",
       std::string("kernel ") + kRow + cannot +
           "disabled by configuration (QMATMUL_DISABLE_KERNELS)" + way_out},
      {kTile, FaultKind::kFailedPrecondition, "KERNEL_UNSUPPORTED",
       std::string("kernel ") + kTile + cannot + "quarantined for m1 rows" + way_out},
  };
  for (const auto& row : rows) {
    const Fault fault = list.Find(row.name, 1, &found);
    EXPECT_EQ(fault.kind, row.kind) << row.name;
    EXPECT_EQ(fault.reason, row.reason) << row.name;
    EXPECT_EQ(fault.message, row.message);
  }
}

TEST(KernelList, AKernelMultipliesByItsOwnWeightsOnly) {
  const KernelList list(Infos(), "", {1, 16});
  const Arithmetic w8a8 = Arithmetic::kW8A8;
  EXPECT_TRUE(list.CheckFits(kTileIndex, DataType::kInt8, "n16.s8", w8a8).ok());
  const Fault type = list.CheckFits(kTileIndex, DataType::kInt4, "n16.s4.g32", w8a8);
  EXPECT_EQ(type.kind, FaultKind::kInternal);
  EXPECT_EQ(type.reason, "LAYOUT_MISMATCH");
  EXPECT_EQ(type.message, std::string("kernel ") + kTile +
                              " reads n16.s8 weights for W8A8, not n16.s4.g32 for W8A8");
  EXPECT_EQ(list.CheckFits(kOtherIndex, DataType::kInt8, "n16.s8", w8a8).reason, "LAYOUT_MISMATCH");
}

TEST(KernelList, ExplainSaysWhatKeepsAKernelFromServing) {
  KernelList list(Infos(), "dev.slow", {1, 16});
  list.Quarantine(kTile, 40, "x");
  const KernelChoice row = list.Explain(kRowIndex, 40, true, "the least time");
  EXPECT_EQ(row.name, kRow);
  EXPECT_TRUE(row.eligible && row.chosen);
  EXPECT_EQ(row.reason, "the least time");
  EXPECT_FALSE(row.predicted_ns.has_value());
  const KernelChoice tile = list.Explain(kTileIndex, 40, false, "behind");
  EXPECT_FALSE(tile.eligible || tile.chosen);
  EXPECT_EQ(tile.reason, "quarantined for m17+ rows");
  EXPECT_EQ(list.Explain(kTileIndex, 16, false, "behind").reason, "behind");
  const KernelChoice slow = list.Explain(kSlowIndex, 40, false, "behind");
  EXPECT_FALSE(slow.eligible);
  EXPECT_EQ(slow.reason, "disabled by configuration (QMATMUL_DISABLE_KERNELS)");
}

// A weight of a type, and nothing else.
class TypedWeight final : public PackedWeight {
 public:
  explicit TypedWeight(DataType type)
      : PackedWeight({type, Layout::kKN, 4, 4, 0, DataType::kUnspecified, 0, 0}, "", "") {}
  std::span<const int32_t> column_sums() const override { return {}; }
};

TEST(KernelList, EachTypeIsExplainedOnceAndTheChosenComeFirst) {
  std::vector<std::shared_ptr<const PackedWeight>> weights;
  for (const DataType type : {DataType::kInt4, DataType::kInt8, DataType::kInt4})
    weights.push_back(std::make_shared<TypedWeight>(type));
  const auto choices = ExplainEachType(weights, [](DataType type, std::vector<KernelChoice>* all) {
    const std::string name(NameOf(type));
    all->push_back({name + " behind", true, false, {}, ""});
    all->push_back({name + " chosen", true, true, {}, ""});
  });
  std::vector<std::string> names;
  for (const KernelChoice& choice : choices) names.push_back(choice.name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"INT4 chosen", "INT8 chosen", "INT4 behind", "INT8 behind"}));
}

}  // namespace
}  // namespace qmatmul
