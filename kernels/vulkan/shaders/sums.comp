#version 450
// Exact int32 sums of int8 activations and packed weights: c[group][row][column] = Σ a·(w + offset).
//
// Compiled once for each weight type (BITS 8, 4, 2), each way to multiply (DOT 1: OpSDot on four packed
// bytes; 0: shifts, core Vulkan 1.0) and each form:
//
//   tile  (TILE 1)  an invocation sums 8 rows x 4 columns; a workgroup 8 x 128
//   row   (TILE 0)  an invocation sums every 16th step of 4 columns of one row, then 16 of them add up in
//                   shared memory; a workgroup 1 x 64. Sums are integers, so their order shows nowhere.
//
// The packed weight is drawn in vulkan_weight.h: one dword holds 4, 8 or 16 values of K of one column.
// INT4 and INT2 values stay offset by 8 and 1; the host takes the offset off again.
#extension GL_EXT_control_flow_attributes : require
#if DOT
#extension GL_EXT_spirv_intrinsics : require
// OpSDot (4450) with capabilities DotProductKHR and DotProductInput4x8BitPackedKHR: Debian's glslc has no
// GL_EXT_integer_dot_product.
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6019, 6018], id = 4450)
int SignedDot(int a, int b, spirv_literal int packed_format);
int Dot(uint a, uint b) { return SignedDot(int(a), int(b), 0); }
#else
int Dot(uint ua, uint ub) {
  int a = int(ua), b = int(ub);
  return (a << 24 >> 24) * (b << 24 >> 24) + (a << 16 >> 24) * (b << 16 >> 24) +
         (a << 8 >> 24) * (b << 8 >> 24) + (a >> 24) * (b >> 24);
}
#endif

#if TILE
layout(local_size_x = 32, local_size_y = 1) in;
#define ROWS 8
#else
layout(local_size_x = 16, local_size_y = 16) in;
#define ROWS 1
#endif
layout(set = 0, binding = 0, std430) readonly buffer Activations { uint a[]; };
layout(set = 0, binding = 1, std430) readonly buffer Weight { uvec4 b[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Sums { ivec4 c[]; };
// As struct SumsArguments in product.cc.
layout(push_constant) uniform Arguments {
  uint rows;
  uint quads;        // columns to sum, in fours
  uint quad_begin;   // of the part
  uint part_quads;   // from one step of the part to the next
  uint steps;        // of a group
  uint group_begin;
  uint group_dwords;  // of a packed row
  uint row_dwords;
  uint block;
} at;

// The dwords of activations that one dword of the weight meets.
#define DWORDS (8 / BITS)
// Values 4i … 4i+3 of a dword of the weight, as four bytes.
uint Values(uint w, uint i) {
#if BITS == 8
  return w;
#elif BITS == 4
  return w >> (4 * i) & 0x0f0f0f0fu;
#else
  return w >> (2 * i) & 0x03030303u;
#endif
}

#if !TILE
shared ivec4 partial[16][16];
#endif

void main() {
  const uint quad = gl_GlobalInvocationID.x;
  const uint row_begin = gl_WorkGroupID.y * ROWS;
  const uint group = at.group_begin + gl_WorkGroupID.z;
  const bool inside = quad < at.quads;
  ivec4 sums[ROWS];
  [[unroll]] for (uint r = 0; r < ROWS; ++r) sums[r] = ivec4(0);
  if (inside) {
    uint a_at[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; ++r)
      a_at[r] = min(row_begin + r, at.rows - 1) * at.row_dwords + group * at.group_dwords;
    const uint b_at = group * at.steps * at.part_quads + at.quad_begin + quad;
#if TILE
    for (uint s = 0; s < at.steps; ++s) {
#else
    for (uint s = gl_LocalInvocationID.y; s < at.steps; s += 16) {
#endif
      const uvec4 w = b[b_at + s * at.part_quads];
      [[unroll]] for (uint i = 0; i < DWORDS; ++i) {
        const uvec4 v = uvec4(Values(w.x, i), Values(w.y, i), Values(w.z, i), Values(w.w, i));
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
          const uint x = a[a_at[r] + s * DWORDS + i];
          sums[r] += ivec4(Dot(x, v.x), Dot(x, v.y), Dot(x, v.z), Dot(x, v.w));
        }
      }
    }
  }
  const uint c_at = (gl_WorkGroupID.z * at.rows + row_begin) * at.quads + quad;
#if TILE
  if (!inside) return;
  [[unroll]] for (uint r = 0; r < ROWS; ++r)
    if (row_begin + r < at.rows) c[c_at + r * at.quads] = sums[r];
#else
  const uint x = gl_LocalInvocationID.x, slice = gl_LocalInvocationID.y;
  partial[slice][x] = sums[0];
  for (uint half_of = 8; half_of > 0; half_of /= 2) {
    barrier();
    if (slice < half_of) partial[slice][x] += partial[slice + half_of][x];
  }
  if (slice == 0 && inside) c[c_at] = partial[0][x];
#endif
}
