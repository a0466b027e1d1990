// Each kernel proves itself against the reference before it serves: a few small products with extreme
// values, ragged in every direction, through the device's own door.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/device.h"

namespace qmatmul {

// The reason of a fault that says: the kernel ran, and its bytes are wrong.
inline constexpr std::string_view kSelfTestFailed = "SELF_TEST";

// Ok when `kernel` gives the reference's bytes for products of `rows` rows. Another reason than kSelfTestFailed
// says why it could not be asked: short memory, a lost device.
Fault ProveKernel(Device* device, const KernelInfo& kernel, int64_t rows);

}  // namespace qmatmul
