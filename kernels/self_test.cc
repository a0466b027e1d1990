#include "kernels/self_test.h"

#include <cstring>
#include <random>
#include <vector>

#include "kernels/reference.h"

namespace qmatmul {
namespace {

// Ragged against every tile: K is no multiple of 4, N none of 16.
constexpr int64_t kGroupK = 39;
constexpr int64_t kColumns = 35;

// A weight whose first column is all at the type's low end.
std::vector<uint8_t> MakeData(const WeightSpec& spec, std::mt19937* generator) {
  std::vector<uint8_t> data(size_t(spec.data_bytes()));
  for (uint8_t& byte : data) byte = static_cast<uint8_t>((*generator)());
  if (spec.dtype == DataType::kInt2)
    for (uint8_t& byte : data) byte &= static_cast<uint8_t>(~(byte & byte >> 1 & 0x55));
  const auto line_bytes = size_t(spec.line_bytes());
  const int used = static_cast<int>(spec.n * BitsOf(spec.dtype) % 8);
  for (size_t line = 0; line < size_t(spec.lines()); ++line) {
    if (spec.dtype == DataType::kInt8) data[line * line_bytes] = 0x80;
    if (used != 0) data[(line + 1) * line_bytes - 1] &= static_cast<uint8_t>((1 << used) - 1);
  }
  return data;
}

}  // namespace

Fault ProveKernel(Device* device, const KernelInfo& kernel, int64_t rows) {
  std::mt19937 generator(static_cast<uint32_t>(rows));
  const int64_t groups = kernel.weight == DataType::kInt4 ? 2 : 1;
  const bool is_float = kernel.arithmetic == Arithmetic::kW8A32;
  WeightView weight;
  weight.spec = {kernel.weight,
                 Layout::kKN,
                 groups * kGroupK,
                 kColumns,
                 groups > 1 ? kGroupK : 0,
                 DataType::kF32,
                 groups * kColumns,
                 0};
  const std::vector<uint8_t> data = MakeData(weight.spec, &generator);
  std::vector<float> scales(size_t(weight.spec.scale_count));
  for (float& s : scales) s = float(generator() % 1000 + 1) * 0x1p-12f;
  weight.data = data.data();
  weight.scales = scales.data();

  const int64_t k = weight.spec.k;
  std::vector<float> floats(size_t(rows * k));
  std::vector<int8_t> bytes(size_t(rows * k), -128);  // the first row is all at the low end
  for (size_t i = 0; i < floats.size(); ++i) {
    floats[i] = float(int32_t(generator())) * 0x1p-20f;
    // The first row of several is denormal, sums and all: a kernel that flushes must show it.
    if (rows > 1 && i < size_t(k)) floats[i] *= 0x1p-127f;
    if (i >= size_t(k)) bytes[i] = static_cast<int8_t>(generator());
  }
  const void* source = is_float ? static_cast<const void*>(floats.data()) : bytes.data();
  const ByteSpan span{static_cast<const std::byte*>(source), bytes.size() * (is_float ? 4 : 1)};
  const ActivationView view{is_float ? DataType::kF32 : DataType::kInt8,
                            rows,
                            k,
                            {&span, 1},
                            Quantization::kNone,
                            {},
                            {}};

  SegmentOutput output;
  output.epilogue.dtype = is_float || groups > 1 ? DataType::kF32 : DataType::kInt32;
  std::vector<std::byte> got(size_t(rows * kColumns * 4)), wanted(got.size());
  output.view = {got.data(), kColumns * 4};
  RowSegment segment;
  segment.activations = &view;
  segment.rows = rows;
  segment.outputs = {&output, 1};
  std::shared_ptr<const PackedWeight> packed;
  if (Fault f = device->Pack(weight, &packed); !f.ok()) return f;
  const WorkStep step{{&packed, 1}, kernel.arithmetic, {}};
  RunReport report;
  if (Fault f = device->Run({{&segment, 1}, {&step, 1}, kernel.name, 1}, &report); !f.ok())
    return f;
  ReferenceWeight plain;
  ReferenceDetails details;
  if (Fault f = DecodeWeight(weight, &plain); !f.ok()) return f;
  const OutputView wanted_view{wanted.data(), kColumns * 4};
  if (Fault f =
          ReferenceMatMul(plain, view, kernel.arithmetic, output.epilogue, wanted_view, &details);
      !f.ok())
    return f;
  if (got == wanted) return {};
  size_t at = 0;
  while (got[at] == wanted[at]) ++at;
  return {FaultKind::kInternal, std::string(kSelfTestFailed),
          "self-test of " + std::to_string(rows) +
              " rows differs from the reference first at row " +
              std::to_string(at / 4 / size_t(kColumns)) + ", column " +
              std::to_string(at / 4 % size_t(kColumns))};
}

}  // namespace qmatmul
