// What a kernel says to the machine: threads, barriers, shared memory, integer dot products, atomics, and
// fp32 steps that are never fused.
//
// Why: every kernel here is compiled twice from one source: by nvcc for the device, and by the C++ compiler
// for tests on machines without one (QMATMUL_CUDA_EMULATED), where emulation.h gives the same functions on
// the CPU. So the arithmetic, the addressing and the barriers of what is shipped are tested everywhere.
//
// Thread-safety: device code. Collective functions (names with Warp, Mma, LoadMatrix, Sync) are called by
// all threads of the warp or block.
//
// Invariant: floats are computed by Multiply, Add and Divide alone; an expression a * b + c could be fused.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef QMATMUL_CUDA_EMULATED
#include "kernels/cuda/emulation.h"
#else

#define QMATMUL_DEVICE __device__ __forceinline__

namespace qmatmul::cuda::simt {

struct Index {
  int x, y, z;
};
QMATMUL_DEVICE int Thread() { return int(threadIdx.x); }
QMATMUL_DEVICE int Threads() { return int(blockDim.x); }
QMATMUL_DEVICE Index Block() { return {int(blockIdx.x), int(blockIdx.y), int(blockIdx.z)}; }
QMATMUL_DEVICE Index Grid() { return {int(gridDim.x), int(gridDim.y), int(gridDim.z)}; }
QMATMUL_DEVICE void SyncThreads() { __syncthreads(); }
// The block's shared memory, aligned to 128 bytes.
QMATMUL_DEVICE unsigned char* Shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// The sum over the warp, in every lane.
QMATMUL_DEVICE int32_t WarpSum(int32_t value) { return __reduce_add_sync(0xffffffffu, value); }
QMATMUL_DEVICE uint32_t WarpMax(uint32_t value) { return __reduce_max_sync(0xffffffffu, value); }
QMATMUL_DEVICE uint32_t WarpMin(uint32_t value) { return __reduce_min_sync(0xffffffffu, value); }
QMATMUL_DEVICE uint32_t WarpXor(uint32_t value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

QMATMUL_DEVICE int32_t Dp4a(uint32_t a, uint32_t b, int32_t c) {
  return __dp4a(int32_t(a), int32_t(b), c);
}
// c += a · b for int8: A is 16 × 32, B is 32 × 8. Lane 4g + t holds of A rows g (registers 0, 2) and g + 8
// (1, 3), k from 4t (0, 1) and 16 + 4t (2, 3); of B column g, k from 4t and 16 + 4t; of C rows g (0, 1) and
// g + 8 (2, 3), columns 2t and 2t + 1.
QMATMUL_DEVICE void Mma(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four matrices of 8 rows of 16 bytes; lane 8i + j gives the address of row j of matrix i. Lane 4g + t
// receives word t of row g of each.
QMATMUL_DEVICE void LoadMatrices(uint32_t (&r)[4], const unsigned char* row) {
  const auto address = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Sixteen bytes to shared memory, arriving by a later WaitCopies; zeros when not `valid`.
QMATMUL_DEVICE void CopyAsync(unsigned char* shared, const unsigned char* global, bool valid) {
  const auto address = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
QMATMUL_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most kPending of this thread's committed groups are under way.
template <int kPending>
QMATMUL_DEVICE void WaitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

QMATMUL_DEVICE int32_t AtomicAdd(int32_t* to, int32_t value) { return atomicAdd(to, value); }
QMATMUL_DEVICE uint32_t AtomicAdd(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }
QMATMUL_DEVICE void AtomicAdd(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
QMATMUL_DEVICE void AtomicMin(uint64_t* to, uint64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
QMATMUL_DEVICE int32_t AtomicExchange(int32_t* to, int32_t value) { return atomicExch(to, value); }
QMATMUL_DEVICE void AtomicOr(uint32_t* to, uint32_t value) { atomicOr(to, value); }
// What this thread wrote is seen by other blocks before what it writes next.
QMATMUL_DEVICE void Fence() { __threadfence(); }
// Ends the launch, and the device with it.
QMATMUL_DEVICE void Trap() { __trap(); }
// A value that another block wrote, not a stale copy of it.
QMATMUL_DEVICE float LoadFresh(const float* from) { return __ldcg(from); }

QMATMUL_DEVICE float Multiply(float a, float b) { return __fmul_rn(a, b); }
QMATMUL_DEVICE float Add(float a, float b) { return __fadd_rn(a, b); }
QMATMUL_DEVICE float Divide(float a, float b) { return __fdiv_rn(a, b); }
QMATMUL_DEVICE int32_t RoundToInt(float value) { return __float2int_rn(value); }
QMATMUL_DEVICE float ToFloat(int32_t value) { return __int2float_rn(value); }
QMATMUL_DEVICE uint32_t Bits(float value) { return __float_as_uint(value); }
QMATMUL_DEVICE float FromBits(uint32_t bits) { return __uint_as_float(bits); }
QMATMUL_DEVICE int LeadingZeros(uint32_t value) { return __clz(int(value)); }

}  // namespace qmatmul::cuda::simt
#endif
