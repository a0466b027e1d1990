// Counts allocations, in tests of what may not allocate. Linking allocations.cc replaces operator new of the whole
// program.
//
// Thread-safety: counts those of all threads.
#pragma once

#include <cstdint>

namespace qmatmul::test {

// Since the program began.
int64_t Allocations();

}  // namespace qmatmul::test
