// AMX tile instructions as plain C++, under the names of the compiler's intrinsics, for machines
// without them. What the processor would answer with an exception stops the program: an unusable
// palette, a tile that is not configured, shapes that do not multiply.
//
// Thread-safety: each thread has its own tiles, as on the processor.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace qmatmul::test {

struct TileUnit {
  int rows[8] = {};
  int row_bytes[8] = {};
  uint8_t data[8][16][64] = {};
};
inline thread_local TileUnit tiles;

inline void TileDemand(bool held, const char* demand) {
  if (held) return;
  std::fprintf(stderr, "amx_stand_in: %s\n", demand);
  std::abort();
}

// sums[m][n] += Σ a[m][k] * b[k / 4][4 n + k % 4]
template <typename A, typename B>
void TileProduct(int sums, int a, int b) {
  TileUnit& t = tiles;
  TileDemand(t.rows[sums] > 0 && t.rows[a] > 0 && t.rows[b] > 0, "a tile is not configured");
  TileDemand(sums != a && sums != b && a != b, "a product's tiles must differ");
  TileDemand(t.rows[sums] == t.rows[a], "rows of sums and activations differ");
  TileDemand(t.row_bytes[sums] == t.row_bytes[b], "columns of sums and weights differ");
  TileDemand(t.row_bytes[a] == 4 * t.rows[b], "values of K of activations and weights differ");
  for (int m = 0; m < t.rows[sums]; ++m)
    for (int n = 0; n < t.row_bytes[sums] / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, &t.data[sums][m][4 * n], 4);
      for (int k = 0; k < t.row_bytes[a]; ++k)
        sum += int32_t(A(t.data[a][m][k])) * int32_t(B(t.data[b][k / 4][4 * n + k % 4]));
      std::memcpy(&t.data[sums][m][4 * n], &sum, 4);
    }
}

}  // namespace qmatmul::test

// NOLINTBEGIN(bugprone-reserved-identifier): the compiler's own names
inline void _tile_loadconfig(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  qmatmul::test::TileUnit unit;
  qmatmul::test::TileDemand(bytes[0] == 1 && bytes[1] == 0, "the palette is not 1 from row 0");
  for (int i = 0; i < 8; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, 2);
    unit.row_bytes[i] = row_bytes;
    unit.rows[i] = bytes[48 + i];
    qmatmul::test::TileDemand(unit.rows[i] <= 16 && row_bytes <= 64, "a tile is over 16 x 64");
    qmatmul::test::TileDemand((unit.rows[i] == 0) == (row_bytes == 0), "a tile is half empty");
  }
  qmatmul::test::tiles = unit;
}

inline void _tile_release() { qmatmul::test::tiles = {}; }

inline void _tile_zero(int tile) {
  qmatmul::test::TileDemand(qmatmul::test::tiles.rows[tile] > 0, "a tile is not configured");
  std::memset(qmatmul::test::tiles.data[tile], 0, sizeof qmatmul::test::tiles.data[tile]);
}

inline void _tile_loadd(int tile, const void* base, int64_t stride) {
  qmatmul::test::TileUnit& t = qmatmul::test::tiles;
  _tile_zero(tile);
  for (int r = 0; r < t.rows[tile]; ++r)
    std::memcpy(t.data[tile][r], static_cast<const char*>(base) + r * stride,
                size_t(t.row_bytes[tile]));
}

inline void _tile_stored(int tile, void* base, int64_t stride) {
  const qmatmul::test::TileUnit& t = qmatmul::test::tiles;
  qmatmul::test::TileDemand(t.rows[tile] > 0, "a tile is not configured");
  for (int r = 0; r < t.rows[tile]; ++r)
    std::memcpy(static_cast<char*>(base) + r * stride, t.data[tile][r], size_t(t.row_bytes[tile]));
}

inline void _tile_dpbssd(int sums, int a, int b) {
  qmatmul::test::TileProduct<int8_t, int8_t>(sums, a, b);
}

inline void _tile_dpbsud(int sums, int a, int b) {
  qmatmul::test::TileProduct<int8_t, uint8_t>(sums, a, b);
}
// NOLINTEND(bugprone-reserved-identifier)
