// Whether two kernels of a device agree on a product that is large enough for every part of both: several
// tiles and stages, ragged in each direction, K in slices or not.
//
// Why: kernels/self_test.h compares small products with the reference. A kernel that no emulation runs
// (wgmma) must show more before it serves, and the reference would take seconds for it.
//
// Thread-safety: a free function. Ownership: borrows the device for the call.
#pragma once

#include <string_view>

#include "kernels/device.h"

namespace qmatmul::cuda {

// Ok when both give the same sums for INT8 weights; else as ProveKernel. `multiprocessors`: the device's.
Fault CompareKernels(Device* device, int multiprocessors, std::string_view one,
                     std::string_view other);

}  // namespace qmatmul::cuda
