// Planted faults that check_cuda must find: a fused multiply-add, sums in local memory, and a kernel without
// the instruction that it should live on.
__global__ void PlantedFused(float* out, const float* in) {
  out[threadIdx.x] = __fmaf_rn(in[threadIdx.x], in[threadIdx.x + 32], in[threadIdx.x + 64]);
}

__global__ void PlantedSpill(float* out, const float* in, int which) {
  float sums[64];
  for (int i = 0; i < 64; ++i) sums[i] = __fmul_rn(in[i], in[i + 64]);
  out[threadIdx.x] = sums[which];
}

__global__ void PlantedNothing(float* out) { out[threadIdx.x] = 0.0f; }
