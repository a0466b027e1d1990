// What blocks of threads do together in several kernels.
//
// Thread-safety: device code; called by all threads of the block.
#pragma once

#include "kernels/cuda/simt.h"

namespace qmatmul::cuda {

inline constexpr int kWarp = 32;

// Sixteen bytes in one access.
struct alignas(16) Words {
  uint32_t w[4];
};
QMATMUL_DEVICE Words LoadWords(const unsigned char* from) {
  return *reinterpret_cast<const Words*>(from);
}

// True in the block that comes last of the `slices` of a tile, with all that the others wrote before it to be
// seen. `flag` is shared memory. The ticket is zero again after the last.
QMATMUL_DEVICE bool LastOfTile(uint32_t* ticket, int slices, int* flag) {
  simt::Fence();
  simt::SyncThreads();
  if (simt::Thread() == 0) {
    const bool last = simt::AtomicAdd(ticket, uint32_t{1}) == uint32_t(slices - 1);
    if (last) *ticket = 0;
    *flag = last;
  }
  simt::SyncThreads();
  simt::Fence();
  return *flag != 0;
}

}  // namespace qmatmul::cuda
