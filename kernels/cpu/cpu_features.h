// What this processor and this process may use: instruction sets that both the CPU and the
// operating system support, its name, and how many threads make sense. Plain values; reading them
// is cheap enough to do once per device and never on a request.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace qmatmul::cpu {

struct CpuFeatures {
  bool avx2 = false;         // with F16C, which every AVX2 processor has; checked together
  bool avx_vnni = false;     // vpdpbusd on ymm, VEX-encoded
  bool avx512_vnni = false;  // AVX512 F, BW, VL and VNNI
  bool amx_int8 = false;     // with avx512_vnni; the kernel lets this process use tiles
  bool neon_dotprod = false;
  bool neon_i8mm = false;

  std::vector<std::string> Names() const;
};

// Asks Linux for the use of AMX tiles where the processor has them: granted once, it holds for every
// thread of the process.
CpuFeatures DetectCpuFeatures();

// The processor's own name, for example "AMD EPYC 7B13".
std::string CpuModelName();
// What tells processors apart whose names are the same, as in virtual machines that hide them: family, model, stepping (or
// ARM's part and revision) and the sizes of L2 and the last-level cache.
std::string CpuIdentity();

// Threads this process can really run at once: the least of the affinity mask and the cgroup's CPU
// quota (rounded up), at least 1.
int UsableThreads();

// The L2 cache of a core; 512 KiB where the system does not say.
int64_t L2CacheBytes();

// Physical memory, or the cgroup's limit when that is lower.
int64_t UsableMemoryBytes();

}  // namespace qmatmul::cpu
