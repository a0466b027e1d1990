// What calls and kernels cost on this device, measured when it opens.
//
// How: the smallest product gives the cost of a call, copies give the bytes a nanosecond up and down, one row
// of a large weight what a kernel reads, many rows what it multiplies; kernels by the device's own clock, since copies
// of large products take many times as long. Sizes grow until a product takes long enough to be measured, so that a
// slow (emulated) device is not kept busy for seconds.
//
// Thread-safety: called once, before the device serves.
#pragma once

#include <functional>

#include "kernels/cuda/kernel_choice.h"
#include "kernels/device.h"

namespace qmatmul::cuda {

// Runs a Work, and says what its launches took on the device, ns.
using LaunchTimer = std::function<Fault(const Work&, double* launches_ns)>;

// A kernel that fails on the way, or that is put aside, stays unmeasured.
void FitCosts(Device* device, const LaunchTimer& run, KernelChoices* choices);

}  // namespace qmatmul::cuda
