#include "kernels/cpu/cpu_features.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace qmatmul::cpu {
namespace {

#if defined(__x86_64__)
// The register states that the operating system saves (XCR0).
uint64_t SavedStates() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;  // OSXSAVE
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Tile data is a state that Linux grants to a process on demand (since 5.16).
bool MayUseTiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

CpuFeatures Detect() {
  CpuFeatures f;
  const uint64_t states = SavedStates();
  const bool ymm = (states & 0x6) == 0x6;
  const bool zmm = ymm && (states & 0xe0) == 0xe0;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool f16c = c >> 29 & 1;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2 = ymm && f16c && (b >> 5 & 1);
  const bool f_bw_vl = (b >> 16 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
  f.avx512_vnni = f.avx2 && zmm && f_bw_vl && (c >> 11 & 1);
  const bool tiles = (d >> 24 & 1) && (d >> 25 & 1) && (states >> 17 & 3) == 3;
  f.amx_int8 = f.avx512_vnni && tiles && MayUseTiles();
  const unsigned leaf_max = a;
  if (leaf_max >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx_vnni = f.avx2 && (a >> 4 & 1);
  return f;
}
#elif defined(__aarch64__)
CpuFeatures Detect() {
  CpuFeatures f;
  f.neon_dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  f.neon_i8mm = f.neon_dotprod && (getauxval(AT_HWCAP2) & HWCAP2_I8MM);
  return f;
}
#else
CpuFeatures Detect() { return {}; }
#endif

// One whole number, or `otherwise` when the file or the number is not there ("max").
int64_t ReadNumber(const char* path, int64_t otherwise) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : otherwise;
}

// What /proc/cpuinfo says of a field of the first processor; empty where it says nothing.
std::string CpuInfo(std::string_view field) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    if (line.substr(0, line.find_last_not_of("\t ", colon - 1) + 1) == field)
      return line.substr(colon + 2);
  }
  return {};
}

}  // namespace

std::vector<std::string> CpuFeatures::Names() const {
  std::vector<std::string> names;
  if (avx2) names.push_back("avx2");
  if (avx_vnni) names.push_back("avx_vnni");
  if (avx512_vnni) names.push_back("avx512_vnni");
  if (amx_int8) names.push_back("amx_int8");
  if (neon_dotprod) names.push_back("neon_dotprod");
  if (neon_i8mm) names.push_back("neon_i8mm");
  return names;
}

CpuFeatures DetectCpuFeatures() { return Detect(); }

std::string CpuModelName() {
  const std::string name = CpuInfo("model name"), part = CpuInfo("CPU part");
  return !name.empty() ? name : !part.empty() ? part : "unknown processor";
}

std::string CpuIdentity() {
  std::string identity;
  for (const std::string_view field : {"cpu family", "model", "stepping", "CPU implementer",
                                       "CPU variant", "CPU part", "CPU revision"})
    identity += CpuInfo(field) + '.';
  return identity + std::to_string(sysconf(_SC_LEVEL2_CACHE_SIZE)) + '.' +
         std::to_string(sysconf(_SC_LEVEL3_CACHE_SIZE));
}

int UsableThreads() {
  int threads = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) threads = CPU_COUNT(&set);
  // cgroup v2: "quota period" or "max period".
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0)
    threads = std::min(threads, static_cast<int>(std::ceil(quota / period)));
  return std::max(threads, 1);
}

int64_t L2CacheBytes() {
  const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? bytes : int64_t{512} << 10;
}

int64_t UsableMemoryBytes() {
  const int64_t physical = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  return std::min(physical, ReadNumber("/sys/fs/cgroup/memory.max", physical));
}

}  // namespace qmatmul::cpu
