#include "kernels/bench/roof.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qmatmul::bench {
namespace {

// Twelve independent accumulators, so that neither latency nor register pressure limits the loop.
// Each returns the multiply-accumulates it did.
#if defined(__x86_64__)
#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

__attribute__((target("avx2"))) double DotAvx2(int64_t iterations) {
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
#define X(j) __m256i c##j = _mm256_setzero_si256();
  TWELVE(X)
#undef X
  for (int64_t i = 0; i < iterations; ++i) {
#define X(j)                                                                                     \
  {                                                                                              \
    __m256i p;                                                                                   \
    asm volatile("vpmaddwd %3,%2,%1\n vpaddd %1,%0,%0" : "+x"(c##j), "=&x"(p) : "x"(a), "x"(b)); \
  }
    TWELVE(X)
#undef X
  }
#define X(j) asm volatile("" ::"x"(c##j));
  TWELVE(X)
#undef X
  return double(iterations) * 12 * 16;
}

__attribute__((target("avx512f,avx512vnni"))) double DotAvx512Vnni(int64_t iterations) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
#define X(j) __m512i c##j = _mm512_setzero_si512();
  TWELVE(X)
#undef X
  for (int64_t i = 0; i < iterations; ++i) {
#define X(j) asm volatile("vpdpbusd %2,%1,%0" : "+v"(c##j) : "v"(a), "v"(b));
    TWELVE(X)
#undef X
  }
#define X(j) asm volatile("" ::"v"(c##j));
  TWELVE(X)
#undef X
  return double(iterations) * 12 * 64;
}

// Four independent tiles of sums.
__attribute__((target("amx-tile,amx-int8"))) double DotAmx(int64_t iterations) {
  struct Palette {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } const palette;
  asm volatile("" ::"r"(&palette) : "memory");  // GCC 12 does not know that it is read
  _tile_loadconfig(&palette);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbssd(0, 4, 5);
    _tile_dpbssd(1, 4, 5);
    _tile_dpbssd(2, 4, 5);
    _tile_dpbssd(3, 4, 5);
  }
  _tile_release();
  return double(iterations) * 4 * 16 * 16 * 64;
}

__attribute__((target("avx2"))) void Read(const char* data, size_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (size_t i = 0; i + 128 <= bytes; i += 128) {
    _mm_prefetch(data + i + 4096, _MM_HINT_T0);
    _mm_prefetch(data + i + 4160, _MM_HINT_T0);
    const auto* p = reinterpret_cast<const __m256i*>(data + i);
    a = _mm256_xor_si256(a, _mm256_load_si256(p));
    b = _mm256_xor_si256(b, _mm256_load_si256(p + 1));
    c = _mm256_xor_si256(c, _mm256_load_si256(p + 2));
    d = _mm256_xor_si256(d, _mm256_load_si256(p + 3));
  }
  asm volatile("" ::"x"(a), "x"(b), "x"(c), "x"(d));
}
#else
void Read(const char* data, size_t bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t v;
    std::memcpy(&v, data + i, 8);
    sum ^= v;
  }
  asm volatile("" ::"r"(sum));
}
#endif

int64_t Clock(clockid_t id) {
  timespec t;
  clock_gettime(id, &t);
  return t.tv_sec * int64_t{1'000'000'000} + t.tv_nsec;
}

// Σ over threads of the median rate of `work`, which returns units done; per nanosecond of its own
// CPU time.
double Rate(int threads, const std::function<double(int thread)>& work) {
  std::vector<double> medians(size_t(threads), 0.0);
  std::vector<std::thread> team;
  team.reserve(size_t(threads));
  for (int t = 0; t < threads; ++t)
    team.emplace_back([&, t] {
      std::vector<double> rates;
      work(t);
      for (int i = 0; i < 25; ++i) {
        const int64_t start = Clock(CLOCK_THREAD_CPUTIME_ID);
        const double units = work(t);
        rates.push_back(units / double(Clock(CLOCK_THREAD_CPUTIME_ID) - start));
      }
      std::nth_element(rates.begin(), rates.begin() + 12, rates.end());
      medians[size_t(t)] = rates[12];
    });
  double sum = 0;
  for (int t = 0; t < threads; ++t) {
    team[size_t(t)].join();
    sum += medians[size_t(t)];
  }
  return sum;
}

}  // namespace

int64_t BenchClockNs(int threads) {
  return Clock(threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC);
}

Peak::Peak(std::string_view kernel) {
#if defined(__x86_64__)
  const auto is_of = [kernel](std::string_view isa) { return kernel.find(isa) != kernel.npos; };
  if (is_of(".amx_int8.")) work_ = DotAmx;
  else if (is_of(".avx512_vnni.")) work_ = DotAvx512Vnni;
  else if (is_of(".avx2")) work_ = DotAvx2;
#endif
}

double Peak::Run(int count) {
  const int64_t start = BenchClockNs(1);
  ops_ = 0;
  for (int i = 0; i < count; ++i) ops_ = 2 * work_(kIterations);
  return double(BenchClockNs(1) - start) / count;
}

double Roof::ReadGBps(int64_t bytes) {
  const auto known = reads_.find(bytes);
  if (known != reads_.end()) return known->second;
  constexpr int64_t kHugePage = int64_t{2} << 20;
  const int64_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  auto* data = static_cast<char*>(std::aligned_alloc(kHugePage, size_t(size)));
  (void)madvise(data, size_t(size), MADV_HUGEPAGE);
  std::memset(data, 1, size_t(size));
  const int64_t part = bytes / threads_ / 128 * 128;
  const int passes =
      static_cast<int>(std::max<int64_t>(1, (int64_t{16} << 20) / std::max<int64_t>(bytes, 1)));
  const double rate = Rate(threads_, [&](int t) {
    for (int i = 0; i < passes; ++i) Read(data + t * part, size_t(part));
    return double(part) * passes;
  });
  std::free(data);
  return reads_[bytes] = rate;
}

}  // namespace qmatmul::bench
