// What the object-code check must find: a loop whose accumulators cannot all stay in registers, and
// a fused multiply-add. Never run.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

typedef float Lanes __attribute__((vector_size(16)));

void Spilled(const float* a, const Lanes* b, long steps, Lanes* out) {
  Lanes sums[40] = {};
  for (long i = 0; i < steps; ++i, b += 40)
#pragma GCC unroll 40
    for (int j = 0; j < 40; ++j) sums[j] = sums[j] + b[j] * a[i];
  for (int j = 0; j < 40; ++j) out[j] = sums[j];
}

float Fused(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
