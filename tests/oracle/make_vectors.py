"""Writes the vector set: vectors.json (for people and other implementations), vectors.txt (the same,
one case a line, for the C++ test, which has no JSON reader) and vectors.bin (all tensors).

    python3 tests/oracle/make_vectors.py [folder]      needs numpy only; the same bytes every time
"""
import json
import pathlib
import sys

import numpy as np

import qmatmul_oracle as oracle

F32 = np.float32
RNG = np.random.RandomState(20240607)


class Blob:
    def __init__(self):
        self.data = bytearray()

    def add(self, raw):
        offset = len(self.data)
        self.data += raw
        return [offset, len(raw)]


def pack_lines(codes, bits):
    """Codes [lines, elements] as lines of bytes, low bits first."""
    per = 8 // bits
    pad = -codes.shape[1] % per
    codes = np.pad(codes, ((0, 0), (0, pad))).reshape(codes.shape[0], -1, per).astype(np.uint32)
    return (codes << (np.arange(per) * bits)).sum(axis=2).astype(np.uint8).tobytes()


def make_weight(dtype, layout, k, n, group, scale_dtype, scale_count, bias):
    bits, low, high = {"INT8": (8, -128, 127), "INT4": (4, -8, 7), "INT2": (2, -1, 1)}[dtype]
    values = RNG.randint(low, high + 1, size=(k, n)).astype(np.int8)
    if RNG.rand() < 0.2:
        values[:] = low
    sent = values if layout == "KN" else np.ascontiguousarray(values.T)
    raw = sent.tobytes() if bits == 8 else pack_lines(sent.astype(np.int64) - low, bits)
    scales, scale_raw = None, b""
    if scale_count:
        scales = (RNG.uniform(2.0**-9, 1, scale_count) * RNG.choice([1, 1, 1, -1], scale_count)).astype(F32)
        if scale_count > 5:
            scales[3] = -0.0
        if scale_dtype == "F16":
            scale_raw = scales.astype("<f2").tobytes()
            scales = np.frombuffer(scale_raw, "<f2").astype(F32)
        elif scale_dtype == "BF16":
            half = oracle.f32_to_bf16(scales)
            scale_raw, scales = half.astype("<u2").tobytes(), oracle.bf16_to_f32(half)
        else:
            scale_raw = scales.astype("<f4").tobytes()
    b = RNG.uniform(-100, 100, n).astype(F32) if bias else None
    return values, raw, scales, scale_raw, b


def make_activations(dtype, rows, k):
    if dtype == "INT8":
        return RNG.randint(-128, 128, size=(rows, k)).astype(np.int8)
    if dtype == "UINT8":
        return RNG.randint(0, 256, size=(rows, k)).astype(np.uint8)
    a = RNG.uniform(-4, 4, size=(rows, k)).astype(F32)
    for m in range(rows):  # corner rows among ordinary ones
        kind = RNG.randint(0, 8)
        if kind == 0:
            a[m] = -0.0
        elif kind == 1:
            a[m] *= F32(2.0**-104)
        elif kind == 2:
            a[m] = RNG.randint(-253, 254, size=k) / 2
            a[m, 0] = 127
        elif kind == 3 and dtype != "F16":
            a[m] *= F32(2.0**50)
        elif kind == 4:
            a[m] *= F32(2.0**-22 if dtype == "F16" else 2.0**-130)
    if dtype == "F16":
        return a.astype(np.float16)
    return oracle.f32_to_bf16(a) if dtype == "BF16" else a


def pick_output(raw_ok):
    out = {"dtype": str(RNG.choice(["INT32", "INT16", "INT8", "F32", "F16", "BF16"])),
           "overflow": str(RNG.choice(["SATURATE", "WRAP"])), "scaled": 0, "scale": 1.0, "zero_point": 0,
           "relu": int(RNG.rand() < 0.4), "skip_bias": int(RNG.rand() < 0.3)}
    narrow = out["dtype"] in ("INT8", "INT16")
    if narrow and (RNG.rand() < 0.6 or not raw_ok):
        limit = 128 if out["dtype"] == "INT8" else 32768
        out.update(scaled=1, scale=float(F32(RNG.uniform(1, 900))), zero_point=int(RNG.randint(-limit, limit)))
    elif out["dtype"] == "INT32" and not raw_ok:
        out["dtype"] = "F32"
    if out["dtype"] == "INT32" or (narrow and not out["scaled"]):
        out.update(relu=0, skip_bias=1)
    return out


def make_case(index, blob):
    w_dtype = ["INT8", "INT4", "INT2"][index % 3]
    layout = ["KN", "NK"][index // 3 % 2]
    arithmetic = "W8A32" if index % 4 == 3 else "W8A8"
    k, n, rows = int(RNG.randint(1, 90)), int(RNG.randint(1, 40)), int(RNG.randint(1, 7))
    if index % 16 == 7:
        k, n = 1030, min(n, 9)  # more than one block of W8A32
    group = 0
    if w_dtype == "INT4":
        group = k // 2 if k > 1000 else int(RNG.choice([d for d in range(1, k + 1) if k % d == 0]))
    scale_count = k // group * n if group else int(RNG.choice([0, 1, n]))
    scale_dtype = str(RNG.choice(["F32", "F16", "BF16"])) if scale_count else "NONE"
    values, raw, scales, scale_raw, bias = make_weight(w_dtype, layout, k, n, group, scale_dtype, scale_count, RNG.rand() < 0.5)
    a_dtype = str(RNG.choice(["F32", "F16", "BF16"] if arithmetic == "W8A32" else ["INT8", "UINT8", "F32", "F16", "BF16"]))
    a = make_activations(a_dtype, rows, k)
    quantization, a_scales, zero_points = "NONE", [], []
    if arithmetic == "W8A8":
        if a_dtype in ("F32", "F16", "BF16"):
            quantization = str(RNG.choice(["DYNAMIC", "STATIC"]))
        if quantization == "STATIC" or (quantization == "NONE" and RNG.rand() < 0.5):
            a_scales = RNG.uniform(0.01, 1, int(RNG.choice([1, rows]))).astype(F32)
        if quantization != "DYNAMIC" and RNG.rand() < 0.7:
            low = 0 if a_dtype == "UINT8" else -128
            zero_points = RNG.choice([low, low + 255, int(RNG.randint(low, low + 256))], int(RNG.choice([1, rows])))
    out = pick_output(raw_ok=arithmetic == "W8A8" and not (group and group < k))
    if k > 1000:
        out.update(dtype="F32", scaled=0, scale=1.0, zero_point=0, relu=0)  # so that the order of the blocks shows
    data, overflows, used = oracle.matmul(a, a_dtype, values, out, arithmetic, quantization, a_scales, zero_points,
                                          scales, group, bias)
    return {"index": index, "weight_dtype": w_dtype, "layout": layout, "k": k, "n": n, "group_size": group,
            "scale_dtype": scale_dtype, "scale_count": scale_count, "bias_count": n if bias is not None else 0,
            "rows": rows, "activation_dtype": a_dtype, "arithmetic": arithmetic, "quantization": quantization,
            "output_dtype": out["dtype"], "overflow": out["overflow"], "scaled": out["scaled"],
            "output_scale_bits": int(F32(out["scale"]).view(np.uint32)), "output_zero_point": out["zero_point"],
            "relu": out["relu"], "skip_bias": out["skip_bias"], "overflow_count": overflows,
            "weight": blob.add(raw), "weight_scales": blob.add(scale_raw),
            "bias": blob.add(b"" if bias is None else bias.astype("<f4").tobytes()),
            "activations": blob.add(np.ascontiguousarray(a).tobytes()),
            "activation_scales": blob.add(np.asarray(a_scales, "<f4").tobytes()),
            "zero_points": blob.add(np.asarray(zero_points, "<i4").tobytes()),
            "scales_used": blob.add(b"" if used is None else used.astype("<f4").tobytes()),
            "output": blob.add(data)}


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    blob = Blob()
    cases = [make_case(i, blob) for i in range(88)]
    (folder / "vectors.bin").write_bytes(bytes(blob.data))
    text = "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n"
    (folder / "vectors.json").write_text(text)
    lines = []
    for case in cases:
        words = []
        for key, value in case.items():
            words.append(f"{key}={value[0]}:{value[1]}" if isinstance(value, list) else f"{key}={value}")
        lines.append(" ".join(words))
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
