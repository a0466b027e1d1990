// What the host tells a kernel: plain structs of device pointers and extents, the same on both sides.
//
// Weights lie as [n] rows of `row_bytes`; a row is K in units of 16 bytes:
//
//     INT8  byte b of a unit is k = b                       16 k
//     INT4  bits 4e … 4e+3 of byte b are k = 16e + b        32 k
//     INT2  bits 2e, 2e+1 of byte b are k = 16e + b         64 k
//
// in two's complement, so that padding is zero bytes, and shifting a field to the top of its byte gives the
// value times 1, 16 or 64: an operand of dp4a and mma without a subtraction; sums are shifted back. Lane t
// of a quad finds the k of its mma fragment in word t of a unit. Each scale group is padded by itself to
// group_pad, a multiple of 32 (of 64 for INT2): whole mma steps.
//
// Thread-safety: values. Ownership: pointers are borrowed from the lane or the weight until the stream is
// through with the launch.
#pragma once

#include <cstdint>

#include "kernels/matmul.h"

namespace qmatmul::cuda {

inline constexpr int kUnitBytes = 16;
inline constexpr int kStepK = 32;  // of one mma

struct WeightArgs {
  const unsigned char* data = nullptr;
  const int32_t* sums = nullptr;  // Σ_k of each group, [groups, n]
  const float* scales = nullptr;  // [groups, n]; 1 where the weight has none
  const float* bias = nullptr;    // [n] or null
  int64_t row_bytes = 0;
  int32_t n = 0, k = 0;
  int32_t groups = 1, group_k = 0, group_pad = 0;
};

// How a row's bytes become operands.
enum class RowKind : uint8_t { kInt8, kUint8, kDynamic, kStatic, kFloat };

// One row, as the host describes it.
struct RowSource {
  uint64_t offset = 0;   // of its first byte
  float scale = 1.0f;    // sa; 1 when there is none
  float inverse = 1.0f;  // 1 / sa, of static quantization
  int32_t zero_point = 0;
  uint32_t part = 0;
  DataType dtype = DataType::kInt8;
  RowKind kind = RowKind::kInt8;
};

// What the epilogue has to know of a row, found out on the device.
struct RowState {
  float scale;         // sa
  int32_t correction;  // sums are too large by this times the column's sum
};

// A value beyond numerics §0, the lowest column of its row; column -1: none.
struct RowRefusal {
  int32_t column;
  uint32_t bits;  // of the value, as fp32
};

// Rows to operands: q as int8, [rows, row_bytes] with groups padded, or floats [rows, k].
struct RowsArgs {
  const unsigned char* source = nullptr;
  const RowSource* rows = nullptr;
  unsigned char* operands = nullptr;
  RowState* states = nullptr;
  RowRefusal* refusals = nullptr;
  int64_t row_bytes = 0;
  int32_t k = 0, group_k = 0, group_pad = 0;
  // The result before: F32 [rows, k], dense, quantized dynamically or (floats) taken as it is.
  bool intermediate = false;
  bool floats = false;
};

struct DeviceOutcome {
  uint64_t overflow_count;
  uint64_t first;  // row of the tile * 2^32 + column; all ones: none
};

// Where the rows of one part go for one weight.
struct DeviceOutput {
  unsigned char* data = nullptr;  // of row `first_row`; rows are dense
  DeviceOutcome* outcome = nullptr;
  int32_t first_row = 0;  // of the tile
  float inverse_scale = 1.0f;
  int32_t zero_point = 0;
  DataType dtype = DataType::kInt32;
  Overflow overflow = Overflow::kSaturate;
  bool raw = true;
  bool relu = false;
  bool bias = false;
};

// How TMA finds its way in rows of bytes: made by the driver, opaque.
struct alignas(64) TensorMap {
  uint64_t words[16];
};

struct ProductArgs {
  WeightArgs weight;
  const unsigned char* operands = nullptr;  // of RowsArgs
  int64_t operand_bytes = 0;                // a row's
  const RowSource* rows = nullptr;
  const RowState* states = nullptr;
  const DeviceOutput* outputs = nullptr;  // of part p: outputs[p * outputs_stride]
  int32_t outputs_stride = 1;
  int32_t row_count = 0;
  const uint32_t* check_vector = nullptr;  // r[n], or null
  uint64_t* row_checks = nullptr;          // [row_count], zero before
  // K is cut among `slices` blocks. Integers are added up in `partial` [row_count, n], which is zero before
  // and after; floats lie there as [blocks of k, row_count, n]. The last block of a tile to come, by its
  // ticket, finishes it; tickets are zero before and after.
  int32_t slices = 1;
  int32_t* partial = nullptr;
  uint32_t* tickets = nullptr;
};

struct WgmmaArgs {
  ProductArgs product;
  TensorMap rows;     // operands, boxes of 128 bytes × 128 rows
  TensorMap columns;  // weight, likewise
};

// Bytes [first_byte, first_byte + bytes) of a plain weight's data to their places; the rest is zero before.
struct PackArgs {
  const unsigned char* raw = nullptr;
  int64_t first_byte = 0, bytes = 0;
  unsigned char* data = nullptr;
  int64_t row_bytes = 0, line_bytes = 0;
  int32_t n = 0, k = 0;
  int32_t group_k = 0, group_pad = 0;
  DataType dtype = DataType::kInt8;
  Layout layout = Layout::kKN;
};

struct SumsArgs {
  const unsigned char* data = nullptr;
  int32_t* sums = nullptr;    // [groups, n]
  int32_t* totals = nullptr;  // [n], zero before; null with one group
  int64_t row_bytes = 0;
  int32_t n = 0, groups = 1, group_pad = 0;
  DataType dtype = DataType::kInt8;
};

// Rows [k_begin, k_end) of the weight as int8, [k_end - k_begin, n].
struct UnpackArgs {
  const unsigned char* data = nullptr;
  int8_t* out = nullptr;
  int64_t row_bytes = 0;
  int32_t n = 0, k_begin = 0, k_end = 0;
  int32_t group_k = 0, group_pad = 0;
  DataType dtype = DataType::kInt8;
};

}  // namespace qmatmul::cuda
