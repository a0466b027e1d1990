"""The exact product and .npy files, in plain Python.

Slow and short on purpose. It shares no code with the programs under test, nor with NumPy, so that an answer
that agrees with it agrees with the definition.
"""
import operator
import random
import re
import struct


def int8_bytes(count: int, seed: int) -> bytes:
    """Any of the 256 values, -128 too."""
    return random.Random(seed).randbytes(count)


def signed(data: bytes) -> list[int]:
    return list(memoryview(data).cast("b"))


def product(activations: bytes, weight: bytes, m: int, k: int, n: int) -> list[int]:
    """[m, n] sums of int8 activations [m, k] and an int8 weight [k, n]."""
    rows, columns = signed(activations), signed(weight)
    by_column = [columns[column::n] for column in range(n)]
    return [sum(map(operator.mul, rows[row * k:(row + 1) * k], column)) for row in range(m) for column in by_column]


def int32_of(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 4}i", data))


# --- .npy (format 1.0) --------------------------------------------------------------------------------


def write_npy(path: str, data: bytes, shape: tuple[int, ...], descr: str = "|i1") -> None:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape})
    header += " " * (-(len(header) + 11) % 64) + "\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data)


def read_npy(path: str) -> tuple[str, tuple[int, ...], bytes]:
    with open(path, "rb") as file:
        raw = file.read()
    length, = struct.unpack("<H", raw[8:10])
    header = raw[10:10 + length].decode()
    shape = re.search(r"'shape': \(([^)]*)\)", header)[1]
    descr = re.search(r"'descr': '([^']*)'", header)[1]
    return descr, tuple(int(part) for part in shape.split(",") if part.strip()), raw[10 + length:]
