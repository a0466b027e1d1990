#version 450
// The sums of W8A32 in the one order that numerics §5 names: p = a·w, s = s + p for k ascending within a
// block, block sums added in ascending order to a total that starts at +0. An invocation sums 4 rows x 4
// columns (SOFT: 1 x 4), a workgroup 4 x 128 (1 x 128).
//
// Compiled for each weight type (BITS 8, 4, 2) and each arithmetic:
//
//   SOFT 0, PRESERVE 1  the device's own, told to keep denormals
//   SOFT 0, PRESERVE 0  the device's own, on drivers that promise nothing of denormals: it serves only
//                       after it has proved itself
//   SOFT 1              fp32 by integer instructions: exact on any device, slower
//
// Built without the optimiser: Debian's drops NoContraction from what it inlines (a test looks for it).
// All of the first two is `precise` (NoContraction) and rounds to nearest even (RoundingModeRTE).
#extension GL_EXT_control_flow_attributes : require
#if !SOFT
#extension GL_EXT_spirv_intrinsics : require
// RoundingModeRTE (4462) 32, capability 4467; DenormPreserve (4459) 32, capability 4464.
spirv_execution_mode(extensions = ["SPV_KHR_float_controls"], capabilities = [4467], 4462, 32);
#if PRESERVE
spirv_execution_mode(extensions = ["SPV_KHR_float_controls"], capabilities = [4464], 4459, 32);
#endif
#endif

#if SOFT  // long code, better not four times
#define ROWS 1
#else
#define ROWS 4
#endif
layout(local_size_x = 32, local_size_y = 1) in;
layout(set = 0, binding = 0, std430) readonly buffer Activations { uint a[]; };
layout(set = 0, binding = 1, std430) readonly buffer Weight { uvec4 b[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Sums { uvec4 c[]; };
layout(push_constant) uniform Arguments {
  uint rows;
  uint quads;
  uint quad_begin;
  uint part_quads;
  uint steps;
  uint group_begin;
  uint group_dwords;
  uint row_dwords;
  uint block;  // steps of a block
} at;

#define VALUES (32 / BITS)
// Value k of a dword of the weight: byte k % 4, and in it bits by k / 4.
ivec4 Values(uvec4 w, uint k) {
#if BITS == 8
  return ivec4(w) << (24 - 8 * k) >> 24;
#elif BITS == 4
  return ivec4(w >> (k % 4 * 8 + k / 4 * 4) & 15u) - 8;
#else
  return ivec4(w >> (k % 4 * 8 + k / 4 * 2) & 3u) - 1;
#endif
}

#if SOFT
// Four numbers at a time, as their bits. sign · p · 2^e to the nearest fp32, ties to even; p < 2^32,
// e >= -152, and results stay far below infinity (numerics §0).
uvec4 Round(uvec4 sign, uvec4 p, ivec4 e) {
  const ivec4 shift = max(findMSB(p) - 23, -149 - e);
  const uvec4 right = uvec4(max(shift, 0)), left = uvec4(max(-shift, 0));
  const uvec4 one = uvec4(1) << right, rest = p & (one - 1), kept = p >> right;
  const uvec4 twice = rest + rest, odd = kept & 1;
  const uvec4 up = mix(mix(uvec4(0), odd, equal(twice, one)), uvec4(1), greaterThan(twice, one));
  uvec4 q = (kept + up) << left;
  const uvec4 carry = q >> 24;  // only of 2^24 itself: nothing is lost below
  q >>= carry;
  // The significand's top bit counts the exponent up.
  const uvec4 bits = (uvec4(e + shift + ivec4(carry) + 149) << 23) + q;
  return sign | mix(bits, uvec4(0), equal(p, uvec4(0)));
}
uvec4 Significand(uvec4 x) {
  return (x & 0x7fffffu) | mix(uvec4(0x800000u), uvec4(0), equal(x & 0x7f800000u, uvec4(0)));
}
ivec4 Exponent(uvec4 x) { return max(ivec4(x >> 23 & 0xffu), 1) - 150; }

uvec4 Multiply(uvec4 x, ivec4 w) {
  return Round((x ^ uvec4(w)) & 0x80000000u, Significand(x) * uvec4(abs(w)), Exponent(x));
}
uvec4 Add(uvec4 x, uvec4 y) {
  const bvec4 swapped = lessThan(x & 0x7fffffffu, y & 0x7fffffffu);
  const uvec4 high = mix(x, y, swapped), low = mix(y, x, swapped);
  const uvec4 d = uvec4(min(Exponent(high) - Exponent(low), 31));
  // Three more bits, the last of them set by anything beyond it.
  const uvec4 whole = Significand(low) << 3, lost = whole & ((uvec4(1) << d) - 1);
  const uvec4 small = whole >> d | mix(uvec4(1), uvec4(0), equal(lost, uvec4(0)));
  const uvec4 large = Significand(high) << 3;
  const bvec4 differ = notEqual((x ^ y) & 0x80000000u, uvec4(0));
  const uvec4 sum = mix(large + small, large - small, differ);
  const uvec4 sign = mix(high, x & y, equal(sum, uvec4(0))) & 0x80000000u;
  return Round(sign, sum, Exponent(high) - 3);
}
#define NUMBERS uvec4
NUMBERS AddProduct(NUMBERS s, uint x, ivec4 w) { return Add(s, Multiply(uvec4(x), w)); }
NUMBERS AddBlock(NUMBERS total, NUMBERS s) { return Add(total, s); }
uvec4 Bits(NUMBERS x) { return x; }
#else
#define NUMBERS vec4
NUMBERS AddProduct(NUMBERS s, uint x, ivec4 w) {
  precise vec4 p = vec4(uintBitsToFloat(x)) * vec4(w);
  precise vec4 sum = s + p;
  return sum;
}
NUMBERS AddBlock(NUMBERS total, NUMBERS s) {
  precise vec4 sum = total + s;
  return sum;
}
uvec4 Bits(NUMBERS x) { return floatBitsToUint(x); }
#endif

// Unrolled by hand: lavapipe ends an invocation's loops, all counted together, after 65,535 rounds, and a
// loop around every value would take more for K = 131,071.
#if SOFT
#define PRODUCT(k) s[0] = AddProduct(s[0], a[a_at[0] + step * VALUES + (k)], Values(w, k));
#else
#define PRODUCT(k)                            \
  {                                           \
    const ivec4 v = Values(w, k);             \
    const uint at_k = step * VALUES + (k);    \
    s[0] = AddProduct(s[0], a[a_at[0] + at_k], v); \
    s[1] = AddProduct(s[1], a[a_at[1] + at_k], v); \
    s[2] = AddProduct(s[2], a[a_at[2] + at_k], v); \
    s[3] = AddProduct(s[3], a[a_at[3] + at_k], v); \
  }
#endif

void main() {
  const uint quad = gl_GlobalInvocationID.x;
  const uint row_begin = gl_WorkGroupID.y * ROWS;
  const uint group = at.group_begin + gl_WorkGroupID.z;
  if (quad >= at.quads) return;
  NUMBERS total[ROWS];
  uint a_at[ROWS];
  [[unroll]] for (uint r = 0; r < ROWS; ++r) {
    total[r] = NUMBERS(0);
    a_at[r] = min(row_begin + r, at.rows - 1) * at.row_dwords + group * at.group_dwords;
  }
  const uint b_at = group * at.steps * at.part_quads + at.quad_begin + quad;
  for (uint begin = 0; begin < at.steps; begin += at.block) {
    const uint end = min(at.block, at.steps - begin) + begin;
    NUMBERS s[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; ++r) s[r] = NUMBERS(0);
    for (uint step = begin; step < end; ++step) {
      const uvec4 w = b[b_at + step * at.part_quads];
#if BITS == 2
      for (uint k = 0; k < VALUES; k += 8) {
#else
      const uint k = 0;
      {
#endif
        PRODUCT(k) PRODUCT(k + 1) PRODUCT(k + 2) PRODUCT(k + 3)
#if BITS < 8
        PRODUCT(k + 4) PRODUCT(k + 5) PRODUCT(k + 6) PRODUCT(k + 7)
#endif
      }
    }
    [[unroll]] for (uint r = 0; r < ROWS; ++r) total[r] = AddBlock(total[r], s[r]);
  }
  const uint c_at = (gl_WorkGroupID.z * at.rows + row_begin) * at.quads + quad;
  [[unroll]] for (uint r = 0; r < ROWS; ++r)
    if (row_begin + r < at.rows) c[c_at + r * at.quads] = Bits(total[r]);
}
