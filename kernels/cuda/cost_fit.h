// What calls and kernels cost on this device, measured when it opens.
//
// How: the smallest product gives the cost of a call, copies give the bytes a nanosecond up and down, one row
// of a large weight what a kernel reads, many rows what it multiplies. Sizes grow until a product takes long
// enough to be measured, so that a slow (emulated) device is not kept busy for seconds.
//
// Thread-safety: called once, before the device serves.
#pragma once

#include "kernels/cuda/kernel_choice.h"
#include "kernels/device.h"

namespace qmatmul::cuda {

// A kernel that fails on the way stays unmeasured.
void FitCosts(Device* device, KernelChoices* choices);

}  // namespace qmatmul::cuda
