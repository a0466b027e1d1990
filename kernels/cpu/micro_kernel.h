// What an ISA's file gives to the kernel table: a tile product, and the row work around it.
//
// A micro-kernel multiplies a packed strip of activations by packed panels of a weight and leaves
// int32 sums. It knows its tile (mr x nr, kr values of k a step) and whether this CPU can run it.
// It does not know scales, zero points, ragged K or N (packing pads with zeros), threads or
// blocking.
//
// Operands
//   strip   [k_steps][rows][4] elements of `operand`; rows <= mr
//   panel   n16k4 (see pack.h): [k_steps][16][4] signed int8, one 64-byte line a step
//   tile    c[row * ldc + column], columns = 16 * panels
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/matmul.h"

namespace qmatmul::cpu {

struct TileArgs {
  const void* strip;
  const int8_t* panel;
  int64_t panel_stride;  // bytes from one panel to the next
  int64_t k_steps;       // lines to go through
  int32_t* c;
  int64_t ldc;
  int rows;                // 1 … mr
  int panels;              // 1 … nr / 16
  bool accumulate;         // add to c instead of setting it
  const int8_t* prefetch;  // lines that will be wanted next: one is touched a step
};

struct MicroKernel {
  const char* name;  // "cpu.avx2.s8s8s32.6x16x4"
  bool (*supported)(const CpuFeatures&);
  int mr;
  int nr;
  int kr;
  // How fast this row is among its peers: higher wins at equal fit. Distinct per ISA.
  int rank;
  Operand operand;     // what the strip holds
  const char* layout;  // the packed layout it reads
  void (*run)(const TileArgs&);
  const RowOps* ops;
};

}  // namespace qmatmul::cpu
