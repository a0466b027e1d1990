"""The service seen from outside with nothing of ours: protobuf, .npy and the exact product, in plain Python.

Slow and short on purpose. It shares no code with the programs under test, nor with NumPy, so that an answer
that agrees with it agrees with the definition.
"""
import operator
import random
import re
import struct

INT8, INT32 = 1, 4  # qmatmul.v1.DataType


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


# --- protobuf -----------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, value) -> bytes:
    """An int, a str, bytes (also a message), or a list of ints (packed)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, list):
        value = b"".join(map(varint, value))
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def matmul_request(name: str, activations: bytes, m: int, k: int) -> bytes:
    """A MatMulRequest: int8 activations, raw int32 sums out. The numbers are those of qmatmul.proto."""
    tensor = field(1, INT8) + field(2, [m, k]) + field(3, activations)
    return field(1, f"weights/{name}") + field(2, tensor) + field(3, field(1, INT32))


def count_prefixed(messages: list[bytes]) -> bytes:
    """What ghz reads from a binary file."""
    return b"".join(varint(len(message)) + message for message in messages)
