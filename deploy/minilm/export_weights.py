"""Writes one int8 matrix of each shape of the model as raw bytes, [K, N] row-major, for kernels_bench.

    build/venv/bin/python deploy/minilm/export_weights.py FOLDER      → FOLDER/384x384.bin, …
"""
from __future__ import annotations

import sys
from pathlib import Path

from model import load_model


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for linear in load_model().linears:
        k, n = linear.weight.shape
        (folder / f"{k}x{n}.bin").write_bytes(linear.weight.tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
