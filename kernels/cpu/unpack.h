// A packed weight read back: its plain values, and the bytes of the upload that it was packed from.
//
// Thread-safety: free functions without state. Ownership: views are borrowed for the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cpu/pack.h"

namespace qmatmul::cpu {

// Rows [k_begin, k_end) as int8 values, row-major [k_end - k_begin, n].
void UnpackRows(const CpuPackedWeight& weight, int64_t k_begin, int64_t k_end, int8_t* out);
// Bytes [begin, begin + out.size()) of the upload: data, scales, bias (numerics §1).
void ReadUploadBytes(const CpuPackedWeight& weight, int64_t begin, std::span<std::byte> out);

}  // namespace qmatmul::cpu
