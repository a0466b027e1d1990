// Each kernel proves itself against the reference before it serves: a few small products with extreme
// values, ragged in every direction, through the device's own door.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/device.h"

namespace qmatmul {

// Empty when `kernel` gives the reference's bytes for products of `rows` rows, else what differs.
std::string ProveKernel(Device* device, const KernelInfo& kernel, int64_t rows);

}  // namespace qmatmul
