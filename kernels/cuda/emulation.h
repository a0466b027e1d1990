// The functions of simt.h on the CPU: one fiber a thread of the block, one block after another.
//
// Why: the kernels that are shipped must be tested where no GPU is. What a GPU leaves open is made hostile
// here: threads and blocks run forward, backward or in a random order by a seed, shared memory starts as
// rubbish and ends at a faulting page, asynchronous copies arrive only when they are waited for, and a
// barrier that not all threads reach ends the program with a message.
//
// Thread-safety: host threads emulate launches independently; a launch belongs to one host thread.
//
// Not emulated: races within a warp between collectives, memory order weaker than the CPU's, and wgmma and
// TMA, which only a device can prove.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#define QMATMUL_DEVICE inline

namespace qmatmul::cuda::simt {

struct Index {
  int x, y, z;
};

enum class Order : uint8_t { kForward, kReversed, kRandom };

struct EmulatedLaunch {
  Index grid;
  int threads = 0;  // a multiple of 32
  int shared_bytes = 0;
  Order order = Order::kForward;
  uint64_t seed = 0;
};
// Runs `kernel(args)` in every thread of every block.
void Emulate(const EmulatedLaunch& launch, void (*kernel)(const void* args), const void* args);

int Thread();
int Threads();
Index Block();
Index Grid();
void SyncThreads();
unsigned char* Shared();

int32_t WarpSum(int32_t value);
uint32_t WarpMax(uint32_t value);
uint32_t WarpMin(uint32_t value);
uint32_t WarpXor(uint32_t value, int mask);
void Mma(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void LoadMatrices(uint32_t (&r)[4], const unsigned char* row);

void CopyAsync(unsigned char* shared, const unsigned char* global, bool valid);
void CommitCopies();
void WaitCopies(int pending);
template <int kPending>
void WaitCopies() {
  WaitCopies(kPending);
}

inline int32_t Dp4a(uint32_t a, uint32_t b, int32_t c) {
  for (int i = 0; i < 32; i += 8) c += int32_t(int8_t(a >> i)) * int8_t(b >> i);
  return c;
}

// One block runs at a time, and its threads take turns: plain memory is atomic enough.
template <typename T>
T AtomicAdd(T* to, T value) {
  const T before = *to;
  *to = T(std::make_unsigned_t<T>(before) + std::make_unsigned_t<T>(value));
  return before;
}
inline void AtomicMin(uint64_t* to, uint64_t value) { *to = value < *to ? value : *to; }
inline int32_t AtomicExchange(int32_t* to, int32_t value) {
  const int32_t before = *to;
  *to = value;
  return before;
}
inline void AtomicOr(uint32_t* to, uint32_t value) { *to |= value; }
inline void Fence() {}
void Trap();
inline float LoadFresh(const float* from) { return *from; }

// Compiled with -ffp-contract=off.
inline float Multiply(float a, float b) { return a * b; }
inline float Add(float a, float b) { return a + b; }
inline float Divide(float a, float b) { return a / b; }
inline int32_t RoundToInt(float value) { return int32_t(std::nearbyint(value)); }
inline float ToFloat(int32_t value) { return float(value); }
inline uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }
inline float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }
inline int LeadingZeros(uint32_t value) { return std::countl_zero(value); }

}  // namespace qmatmul::cuda::simt
