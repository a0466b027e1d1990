#version 450
// Bytes of an upload, cut anywhere, to their places in one part of a packed weight (vulkan_weight.h).
//
// An invocation takes four bytes. Values of one dword may come from different invocations and different
// chunks, so each is or-ed into memory that was filled with zeros.
//
// Compiled for each weight type: BITS 8, 4, 2.
layout(local_size_x = 64) in;
layout(set = 0, binding = 0, std430) readonly buffer Chunk { uint chunk[]; };
layout(set = 0, binding = 1, std430) buffer Part { uint part[]; };
// As struct PlaceArguments in vulkan_packer.cc.
layout(push_constant) uniform Arguments {
  uint bytes;       // of the chunk
  uint line;        // of its first byte
  uint line_at;     // the byte within that line
  uint line_bytes;
  uint elements;    // of a line
  uint is_nk;       // lines are columns
  uint group_k;
  uint steps;       // dwords of a group
  uint columns;     // from one step to the next
  uint column_begin;
  uint column_end;
} at;

#define VALUES (32 / BITS)

void Place(uint k, uint n, uint value) {
  if (n < at.column_begin || n >= at.column_end) return;
  const uint group = k / at.group_k, rest = k % at.group_k;
  const uint step = rest / VALUES, v = rest % VALUES;
  const uint dword = (group * at.steps + step) * at.columns + (n - at.column_begin);
  const uint bits = value << (v % 4 * 8 + v / 4 * BITS);
  if (bits != 0) atomicOr(part[dword], bits);
}

void main() {
  const uint first = gl_GlobalInvocationID.x * 4;
  if (first >= at.bytes) return;
  const uint dword = chunk[gl_GlobalInvocationID.x];
  for (uint i = 0; i < min(at.bytes - first, 4u); ++i) {
    const uint b = dword >> (8 * i) & 0xffu;
    const uint from = at.line_at + first + i;
    const uint line = at.line + from / at.line_bytes;
    const uint element = from % at.line_bytes * (8 / BITS);
    for (uint e = 0; e < 8 / BITS; ++e) {
      if (element + e >= at.elements) break;
      const uint value = b >> (e * BITS) & ((1u << BITS) - 1u);
      const uint k = at.is_nk != 0 ? element + e : line;
      const uint n = at.is_nk != 0 ? line : element + e;
      Place(k, n, value);
    }
  }
}
