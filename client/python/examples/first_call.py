"""Registers a weight, multiplies, says who did it: python first_call.py [127.0.0.1:8500]"""
import sys

import numpy as np
import qmatmul

rng = np.random.default_rng(0)
w = rng.integers(-128, 128, (384, 64), np.int8)
scales = np.full(64, 0.01, np.float32)
x = rng.standard_normal((8, 384), np.float32)
with qmatmul.Client(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8500") as client:
    client.register_weight("first-call", w, layout="KN", scales=scales, replace=True)
    result = client.matmul(x, "first-call", out="F32", dynamic=True)
    print(result.array.shape, "by", result.execution.kernel, "in", result.execution.compute_ns / 1000, "us")
    print("largest difference to float:", np.abs(result.array - x @ (w * scales)).max())
