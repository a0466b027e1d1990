// The vocabulary of quantized matrix multiplication: data types, shapes, and views of weights,
// activations and outputs. Everything in kernels/ and server/engine/ speaks these words.
//
// Arithmetic: docs/numerics.md ("qmatmul-arith/1"). Notation: activations A[M,K], weight W[K,N],
// output C[M,N], all row-major in meaning; m, n, k index them.
//
// Views do not own. Whoever fills a view keeps what it points to alive until the call that takes it
// returns. All structs here are plain values; none is synchronised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace qmatmul {

enum class DataType : uint8_t {
  kUnspecified,
  kInt8,
  kUint8,
  kInt16,
  kInt32,
  kF32,
  kF16,
  kBF16,
  kInt4,
  kInt2
};

// How the bytes of a plain weight are ordered: K lines of N elements, or N lines of K elements.
enum class Layout : uint8_t { kUnspecified, kKN, kNK };

enum class Overflow : uint8_t { kSaturate, kWrap, kError };
enum class Activation : uint8_t { kNone, kRelu };
enum class Arithmetic : uint8_t { kW8A8, kW8A32 };

// The least K that could overflow an int32 sum, less one (numerics §1). The second holds when one
// operand may reach 255 in magnitude: UINT8 data, or a zero point other than 0.
inline constexpr int64_t kInnerMax = 131'071;
inline constexpr int64_t kInnerMaxWide = 65'793;
inline constexpr int64_t kColumnsMax = int64_t{1} << 24;
inline constexpr int kWeightsPerCallMax = 16;
inline constexpr int kChainStepsMax = 16;

// Bits an element takes in a plain tensor; 0 for kUnspecified.
int BitsOf(DataType dtype);
// "INT8", "F16", … as in the identity line and in messages.
std::string_view NameOf(DataType dtype);
std::string_view NameOf(Layout layout);
std::string_view NameOf(Overflow overflow);
std::string_view NameOf(Arithmetic arithmetic);
inline bool IsFloat(DataType d) {
  return d == DataType::kF32 || d == DataType::kF16 || d == DataType::kBF16;
}

// What went wrong at a door of kernels/. Ok when kind is kNone. `reason` is an UPPER_SNAKE word
// that clients may rely on; `message` names the offending value, the limit and the way out.
enum class FaultKind : uint8_t {
  kNone,
  kInvalidArgument,
  kFailedPrecondition,
  kResourceExhausted,
  kUnimplemented,
  kInternal,
  kDeviceLost
};
struct [[nodiscard]] Fault {
  FaultKind kind = FaultKind::kNone;
  std::string reason;
  std::string message;
  bool ok() const { return kind == FaultKind::kNone; }
};

// A weight as its owner describes it; the same fields as the upload's spec.
struct WeightSpec {
  DataType dtype = DataType::kUnspecified;  // kInt8, kInt4, kInt2
  Layout layout = Layout::kUnspecified;
  int64_t k = 0;
  int64_t n = 0;
  int64_t group_size = 0;                         // kInt4: divides k; otherwise 0
  DataType scale_dtype = DataType::kUnspecified;  // kF32, kF16, kBF16; kUnspecified without scales
  int64_t scale_count = 0;  // 0, 1 or n; kInt4: (k / group_size) * n, [k/g, n]
  int64_t bias_count = 0;   // 0 or n, fp32

  int64_t groups() const { return group_size > 0 ? k / group_size : 1; }
  bool group_wise() const { return groups() > 1; }
  // Bytes of one line of the plain tensor as sent; lines start on a byte.
  int64_t line_bytes() const;
  int64_t lines() const { return layout == Layout::kKN ? k : n; }
  int64_t data_bytes() const { return lines() * line_bytes(); }
  int64_t scale_bytes() const { return scale_count * BitsOf(scale_dtype) / 8; }
  int64_t bias_bytes() const { return bias_count * 4; }
  int64_t upload_bytes() const { return data_bytes() + scale_bytes() + bias_bytes(); }

  bool operator==(const WeightSpec&) const = default;
};

// Says what is wrong with a spec: types, limits, counts, products. Everything after it may multiply
// the spec's sizes without looking.
Fault CheckSpec(const WeightSpec& spec);

// "qmatmul.weight.v1;INT8;KN;384;384;0;F32;384;384\n": the first line of what a weight's digest
// hashes.
std::string IdentityLine(const WeightSpec& spec);

// A plain weight in memory, bytes as sent.
struct WeightView {
  WeightSpec spec;
  const void* data = nullptr;
  const void* scales = nullptr;  // spec.scale_count of spec.scale_dtype
  const float* bias = nullptr;
};

struct ByteSpan {
  const std::byte* data = nullptr;
  size_t bytes = 0;
};

enum class Quantization : uint8_t { kNone, kStatic, kDynamic };

// The activations of one request, [rows, k] row-major, possibly in pieces that split anywhere.
struct ActivationView {
  DataType dtype = DataType::kUnspecified;  // kInt8, kUint8, kF32, kF16, kBF16
  int64_t rows = 0;
  int64_t k = 0;
  std::span<const ByteSpan> bytes;
  Quantization quantization = Quantization::kNone;
  std::span<const float> scales;         // kStatic, or known scales of integers: 0, 1 or rows
  std::span<const int32_t> zero_points;  // 0, 1 or rows

  float scale(int64_t row) const {
    return scales.size() == 1 ? scales[0] : scales[static_cast<size_t>(row)];
  }
  int32_t zero_point(int64_t row) const {
    if (zero_points.empty()) return 0;
    return zero_points.size() == 1 ? zero_points[0] : zero_points[static_cast<size_t>(row)];
  }
};

// What to make of the int32 sums of one weight (numerics §2, §3).
struct Epilogue {
  DataType dtype = DataType::kInt32;  // kInt32, kInt16, kInt8, kF32, kF16, kBF16
  Overflow overflow = Overflow::kSaturate;
  bool scaled = false;     // kInt8, kInt16: convert by `scale`; without it they are the raw sums
  float scale = 1.0f;      // so
  int32_t zero_point = 0;  // zo
  Activation activation = Activation::kNone;
  bool skip_bias = false;

  // True when the int32 sums themselves are the answer (no float step).
  bool raw() const { return dtype == DataType::kInt32 || (!IsFloat(dtype) && !scaled); }
};

// Where the output of one request and weight goes, in memory the caller owns: [rows, n], dense, or
// [rows, top_k].
struct OutputView {
  std::byte* data = nullptr;
  int64_t row_bytes = 0;  // columns * element size, or more
};

// What the epilogue saw while it wrote one output.
struct Outcome {
  int64_t overflow_count = 0;       // results clamped, wrapped or rounded to ±inf
  int64_t first_overflow_row = -1;  // row of the request; with Overflow::kError the output is void
  int64_t first_overflow_column = -1;
};

}  // namespace qmatmul
