// AMX: one TDPBSSD multiplies a tile of 16 rows x 64 values of K by a tile of 16 columns x 64 values
// and adds to 16 x 16 int32 sums, never saturating. Activations stay signed: no + 128 to take off.
//
// Register tile, 32 rows x 32 columns (two panels), 16 lines of each panel a step:
//
//                            tmm6 = 16 lines of panel 0   tmm7 = of panel 1
//   tmm4 = rows  0-15 (A)    tmm0                         tmm1
//   tmm5 = rows 16-31 (A)    tmm2                         tmm3
//
// Sixteen consecutive n16k4 lines are a B tile as they stand. INT4 and INT2 lines are decoded to a
// staged tile, still offset and so unsigned: TDPBSUD. The lines that a ragged K leaves go through
// the stage too, filled up with zero lines, so that one palette serves every step; a palette
// depends on the number of rows alone.
//
// No one-row form and no W8A32: whoever has AMX has AVX512-VNNI, whose kernels do those better.
//
// The intrinsics come from the compiler, or, in the emulated test, from arrays in a header;
// QMATMUL_EMULATED then leaves the target pragma out. GCC 12 does not tell its optimiser what memory
// they read: Fence() does.
#ifdef QMATMUL_EMULATED
#include "tests/support/amx_stand_in.h"
#else
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/micro_kernels.h"

#ifndef QMATMUL_EMULATED
#pragma GCC push_options
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8")
#define QMATMUL_F16C
#define QMATMUL_AVX512
#endif

namespace qmatmul::cpu {
namespace {

#include "kernels/cpu/row_ops.inc"

constexpr int kTileRows = 16;
constexpr int64_t kTileLines = 16;
constexpr int64_t kTileRowBytes = 64;

// What LDTILECFG reads.
struct Palette {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(Palette) == 64);

// Of each thread. LDTILECFG costs as much as a dozen products, so it runs only when the number of
// rows changes; Release() forgets it, since other code may use tiles between two works.
struct TileState {
  alignas(64) uint8_t stage[2][kTileLines * kTileRowBytes];
  int rows_configured;
};
thread_local TileState state;

inline void Fence() { asm volatile("" ::: "memory"); }

void Configure(int rows) {
  if (state.rows_configured == rows) return;
  Palette palette;
  const auto set = [&palette](int tile, int tile_rows) {
    palette.rows[tile] = uint8_t(tile_rows);
    palette.row_bytes[tile] = tile_rows > 0 ? kTileRowBytes : 0;
  };
  const int top = std::min(rows, kTileRows), bottom = rows - top;
  for (const int tile : {0, 1, 4}) set(tile, top);
  for (const int tile : {2, 3, 5}) set(tile, bottom);
  for (const int tile : {6, 7}) set(tile, int(kTileLines));
  Fence();
  _tile_loadconfig(&palette);
  state.rows_configured = rows;
}

void Release() {
  _tile_release();
  state.rows_configured = 0;
}

template <DataType kWeight>
constexpr int64_t LineBytes() {
  return kWeight == DataType::kInt8 ? 64 : kWeight == DataType::kInt4 ? 32 : 16;
}

// One line of INT4 or INT2 as 64 unsigned values.
template <DataType kWeight>
inline void DecodeLine(const uint8_t* line, uint8_t* values) {
  constexpr int bits = kWeight == DataType::kInt4 ? 4 : 2;
  constexpr int bytes = int(LineBytes<kWeight>());
  typedef uint8_t Bytes __attribute__((vector_size(bytes)));
  Bytes packed;
  std::memcpy(&packed, line, bytes);
  for (int part = 0; part < 8 / bits; ++part) {
    const Bytes part_values = packed >> (part * bits) & ((1 << bits) - 1);
    std::memcpy(values + part * bytes, &part_values, bytes);
  }
}

// Up to 16 lines, decoded and filled up with zeros. A function of its own, so that the loop that calls it keeps its
// registers.
template <DataType kWeight>
[[gnu::noinline]] const uint8_t* Staged(const uint8_t* lines, int64_t count, uint8_t* stage) {
  Fence();
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* line = lines + i * LineBytes<kWeight>();
    if constexpr (kWeight == DataType::kInt8) std::memcpy(stage + 64 * i, line, 64);
    else DecodeLine<kWeight>(line, stage + 64 * i);
  }
  if (count < kTileLines) std::memset(stage + 64 * count, 0, size_t(64 * (kTileLines - count)));
  Fence();
  return stage;
}

// Tile numbers are part of the instructions, so they stand here as literals.
template <DataType kWeight, bool kRight>
inline void AddTop() {
  if constexpr (kWeight == DataType::kInt8 && kRight) _tile_dpbssd(1, 4, 7);
  else if constexpr (kWeight == DataType::kInt8) _tile_dpbssd(0, 4, 6);
  else if constexpr (kRight) _tile_dpbsud(1, 4, 7);
  else _tile_dpbsud(0, 4, 6);
}
template <DataType kWeight, bool kRight>
inline void AddBottom() {
  if constexpr (kWeight == DataType::kInt8 && kRight) _tile_dpbssd(3, 5, 7);
  else if constexpr (kWeight == DataType::kInt8) _tile_dpbssd(2, 5, 6);
  else if constexpr (kRight) _tile_dpbsud(3, 5, 7);
  else _tile_dpbsud(2, 5, 6);
}

template <bool kBottom, bool kRight>
inline void StartSums(const int32_t* c, int64_t ldc, bool accumulate) {
  if (!accumulate) {
    _tile_zero(0);
    if constexpr (kRight) _tile_zero(1);
    if constexpr (kBottom) _tile_zero(2);
    if constexpr (kBottom && kRight) _tile_zero(3);
    return;
  }
  const int32_t* bottom = c + kTileRows * ldc;
  _tile_loadd(0, c, ldc * 4);
  if constexpr (kRight) _tile_loadd(1, c + 16, ldc * 4);
  if constexpr (kBottom) _tile_loadd(2, bottom, ldc * 4);
  if constexpr (kBottom && kRight) _tile_loadd(3, bottom + 16, ldc * 4);
}

template <bool kBottom, bool kRight>
inline void StoreSums(int32_t* c, int64_t ldc) {
  int32_t* bottom = c + kTileRows * ldc;
  _tile_stored(0, c, ldc * 4);
  if constexpr (kRight) _tile_stored(1, c + 16, ldc * 4);
  if constexpr (kBottom) _tile_stored(2, bottom, ldc * 4);
  if constexpr (kBottom && kRight) _tile_stored(3, bottom + 16, ldc * 4);
}

// Up to 16 lines of each panel. The top half needs its operands first.
template <DataType kWeight, bool kBottom, bool kRight>
inline void Step(const TileArgs& t, const int8_t* a, const uint8_t* b, int64_t lines) {
  const bool as_they_stand = kWeight == DataType::kInt8 && lines == kTileLines;
  const uint8_t* left = as_they_stand ? b : Staged<kWeight>(b, lines, state.stage[0]);
  _tile_loadd(6, left, kTileRowBytes);
  _tile_loadd(4, a, kTileRowBytes);
  AddTop<kWeight, false>();
  if constexpr (kRight) {
    b += t.panel_stride;
    const uint8_t* right = as_they_stand ? b : Staged<kWeight>(b, lines, state.stage[1]);
    _tile_loadd(7, right, kTileRowBytes);
    AddTop<kWeight, true>();
  }
  if constexpr (kBottom) {
    _tile_loadd(5, a + kTileRows * kTileRowBytes, kTileRowBytes);
    AddBottom<kWeight, false>();
    if constexpr (kRight) AddBottom<kWeight, true>();
  }
}

template <DataType kWeight, bool kBottom, bool kRight>
void Tiles(const TileArgs& t) {
  constexpr int64_t step_bytes = kTileLines * LineBytes<kWeight>();
  auto* c = static_cast<int32_t*>(t.c);
  const auto* a = static_cast<const int8_t*>(t.strip);
  const int64_t a_step = t.rows * kTileRowBytes;
  const uint8_t* b = t.panel;
  StartSums<kBottom, kRight>(c, t.ldc, t.accumulate);
  for (int64_t steps = t.lines / kTileLines; steps > 0; --steps) {
    Step<kWeight, kBottom, kRight>(t, a, b, kTileLines);
    a += a_step;
    b += step_bytes;
  }
  if (const int64_t rest = t.lines % kTileLines; rest > 0)
    Step<kWeight, kBottom, kRight>(t, a, b, rest);
  StoreSums<kBottom, kRight>(c, t.ldc);
}

template <DataType kWeight>
void Run(const TileArgs& t) {
  Configure(t.rows);
  if (t.rows > kTileRows)
    t.panels == 2 ? Tiles<kWeight, true, true>(t) : Tiles<kWeight, true, false>(t);
  else t.panels == 2 ? Tiles<kWeight, false, true>(t) : Tiles<kWeight, false, false>(t);
}

#ifdef QMATMUL_EMULATED
bool Supported(const CpuFeatures&) { return true; }
#else
bool Supported(const CpuFeatures& f) { return f.amx_int8; }
#endif

constexpr DataType k8 = DataType::kInt8, k4 = DataType::kInt4, k2 = DataType::kInt2;
constexpr Arithmetic kW8A8 = Arithmetic::kW8A8;
constexpr Operand kS8 = Operand::kS8;
// One row is AVX-512's.
constexpr int kRowsMin = 2;
// Sums of 32 x 32 are 4 KiB: short blocks cost much (kernels/README.md).
constexpr int kBlockK = 8192;

constexpr MicroKernel kKernels[] = {
    {"cpu.amx_int8.s8s8s32.32x32x64", Supported, k8, kW8A8, kS8, 32, 32, 64, 50, Run<k8>, &kRowOps,
     nullptr, nullptr, kRowsMin, Release, 1, kBlockK, 64},
    {"cpu.amx_int8.s8s4s32.32x32x64", Supported, k4, kW8A8, kS8, 32, 32, 64, 50, Run<k4>, &kRowOps,
     nullptr, nullptr, kRowsMin, Release, 1, kBlockK, 64},
    {"cpu.amx_int8.s8s2s32.32x32x64", Supported, k2, kW8A8, kS8, 32, 32, 64, 50, Run<k2>, &kRowOps,
     nullptr, nullptr, kRowsMin, Release, 1, kBlockK, 64},
};

}  // namespace

std::span<const MicroKernel> AmxInt8Kernels() { return kKernels; }

}  // namespace qmatmul::cpu

#ifndef QMATMUL_EMULATED
#pragma GCC pop_options
#endif
