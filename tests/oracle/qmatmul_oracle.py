"""docs/numerics.md in numpy: what a product of quantized matrices is, bit for bit.

Anyone can check another implementation against this file, or against vectors.json + vectors.bin that
make_vectors.py writes with it. Plain and slow. Arrays are C-contiguous; weights are int8 [k, n]
(decoded), activations int8, uint8, float32, float16, or uint16 that hold bfloat16 bits ("BF16").
"""
import numpy as np

F32 = np.float32


def bf16_to_f32(bits):
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(F32)


def f32_to_bf16(x):
    bits = np.asarray(x, F32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widen(x, dtype):
    """Float tensors as fp32, exactly."""
    return bf16_to_f32(x) if dtype == "BF16" else np.asarray(x).astype(F32)


def quantize_dynamic(a):
    """Numerics §4: (q, sa), one scale a row."""
    amax = np.abs(a).max(axis=1)
    zero = amax < F32(2.0**-100)
    safe = np.where(zero, F32(1), amax)
    inverse = np.where(zero, F32(0), F32(127) / safe).astype(F32)
    q = np.rint((a * inverse[:, None]).astype(F32)).astype(np.int64)
    q[zero] = 0
    return q, np.where(zero, F32(0), safe / F32(127)).astype(F32)


def quantize_static(a, scales, zero_points):
    """q - za, so that zero points need no further care."""
    inverse = (F32(1) / scales).astype(F32)
    t = np.clip((a * inverse[:, None]).astype(F32), F32(-(2.0**30)), F32(2.0**30))
    q = np.clip(np.rint(t).astype(np.int64) + zero_points[:, None], -128, 127)
    return q - zero_points[:, None]


def per_row(values, rows, dtype):
    return np.broadcast_to(np.asarray(values, dtype), (rows,)) if len(values) <= 1 else np.asarray(values, dtype)


def integer_product(q, w, scales, group):
    """Sums and y before the activation scale (numerics §1, §2). scales: None or [groups, n]."""
    k = w.shape[0]
    acc, y = 0, None
    for g in range(k // group):
        rows = slice(g * group, (g + 1) * group)
        part = q[:, rows].astype(np.int64) @ w[rows].astype(np.int64)
        acc = acc + part
        value = part.astype(F32)
        if scales is not None:
            value = value * scales[g]
        y = value if y is None else y + value
    return acc, y


def float_product(a, w, scales, group, group_wise):
    """Numerics §5, up to the bias."""
    block = group if group_wise else 512
    total = np.zeros((a.shape[0], w.shape[1]), F32)
    for begin in range(0, w.shape[0], block):
        s = np.zeros_like(total)
        for k in range(begin, min(begin + block, w.shape[0])):
            s = s + a[:, k : k + 1] * w[k].astype(F32)
        total = total + (s * scales[begin // block] if group_wise else s)
    return total if group_wise or scales is None else total * scales[0]


def store(acc, y, out):
    """The output's bytes and how many results overflowed (numerics §2, §3)."""
    dtype = out["dtype"]
    if dtype == "F32":
        return y.astype("<f4").tobytes(), 0
    if dtype == "F16":
        with np.errstate(over="ignore"):
            half = y.astype("<f2")
        return half.tobytes(), int(np.isinf(half).sum())
    if dtype == "BF16":
        return f32_to_bf16(y).astype("<u2").tobytes(), int(np.isinf(bf16_to_f32(f32_to_bf16(y))).sum())
    if dtype == "INT32":
        return acc.astype("<i4").tobytes(), 0
    q = acc
    if out["scaled"]:
        with np.errstate(over="ignore"):
            t = y * (F32(1) / F32(out["scale"]))
        q = np.rint(np.clip(t, F32(-(2.0**30)), F32(2.0**30))).astype(np.int64) + out["zero_point"]
    limit = 128 if dtype == "INT8" else 32768
    clipped = np.clip(q, -limit, limit - 1)
    kept = q if out["overflow"] == "WRAP" else clipped
    return kept.astype("<i1" if dtype == "INT8" else "<i2").tobytes(), int((q != clipped).sum())


def matmul(a, a_dtype, w, out, arithmetic="W8A8", quantization="NONE", a_scales=(), zero_points=(), w_scales=None,
           group=0, bias=None):
    """(bytes, overflow count, sa per row or None). w_scales: fp32 of 1, n or groups*n; group: 0 or INT4's."""
    rows, (k, n) = a.shape[0], w.shape
    group = group or k
    scales = None if w_scales is None else np.broadcast_to(np.asarray(w_scales, F32).reshape(-1, 1 if len(w_scales) == 1 else n), (k // group, n))
    acc = used = None
    if arithmetic == "W8A32":
        y = float_product(widen(a, a_dtype), w, scales, group, group < k)
    else:
        sa = None if len(a_scales) == 0 else per_row(a_scales, rows, F32)
        za = per_row(zero_points if len(zero_points) else (0,), rows, np.int64)
        if quantization == "DYNAMIC":
            q, sa = quantize_dynamic(widen(a, a_dtype))
            used = sa
        elif quantization == "STATIC":
            q = quantize_static(widen(a, a_dtype), sa, za)
        else:
            q = a.astype(np.int64) - za[:, None]
        acc, y = integer_product(q, w, scales, group)
        if sa is not None:
            y = y * sa[:, None]
    if bias is not None and not out.get("skip_bias"):
        y = y + np.asarray(bias, F32)
    if out.get("relu"):
        y = np.where(y > 0, y, F32(0))
    data, overflows = store(acc, y, out)
    return data, overflows, used
