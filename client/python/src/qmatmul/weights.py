"""A weight as the service takes it: spec, digest and upload chunks. numpy and hashlib only, no socket.

The identity is docs/numerics.md section 1: SHA-256 over a header line, then data, scales and bias as sent. It
is computed here before anything is sent, so that a weight which the server knows costs no upload.
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Iterator, Optional, Tuple

import numpy as np

from . import dtypes
from .errors import InvalidArgument
from .v1 import qmatmul_pb2 as pb

CHUNK_BYTES_MAX = 1 << 20  # the contract's limit (CHUNK_TOO_LARGE)

_LAYOUTS = ("KN", "NK")


@dataclass(frozen=True)
class PlainWeight:
    """A weight with its optional scales and bias, checked and ready to send.

    Attributes:
      data: the 2-D int8 array in its layout, contiguous: one value an element, whatever the dtype.
      layout: "KN" ([K, N], x @ w) or "NK" ([N, K], as torch.nn.Linear.weight).
      scales: the values in the contract's order, float32, float16 or bfloat16; None for none.
      bias: [N] float32; None for none.
      dtype: "INT8", "INT4" or "INT2".
      group_size: INT4: how many values along K share a scale; else 0.
      packed: what is sent: `data`, or its nibbles or codes.
    """

    data: np.ndarray
    layout: str
    scale_dtype: str
    scales: Optional[np.ndarray]
    bias: Optional[np.ndarray]
    dtype: str
    group_size: int
    packed: np.ndarray

    @property
    def k(self) -> int:
        return int(self.data.shape[0 if self.layout == "KN" else 1])

    @property
    def n(self) -> int:
        return int(self.data.shape[1 if self.layout == "KN" else 0])

    def parts(self) -> Tuple[memoryview, ...]:
        """The bytes in the identity's order, without a copy."""
        arrays = (a for a in (self.packed, self.scales, self.bias) if a is not None and a.size)
        return tuple(a.reshape(-1).view(np.uint8).data for a in arrays)

    def bytes_total(self) -> int:
        return sum(len(part) for part in self.parts())

    def header(self) -> bytes:
        """The identity's first line."""
        scale_count = 0 if self.scales is None else self.scales.size
        bias_count = 0 if self.bias is None else self.bias.size
        fields = (
            self.dtype, self.layout, self.k, self.n, self.group_size, self.scale_dtype, scale_count, bias_count
        )
        return ("qmatmul.weight.v1;" + ";".join(map(str, fields)) + "\n").encode()

    def digest(self) -> str:
        """The identity, 64 lower-case hex characters."""
        sha = hashlib.sha256(self.header())
        for part in self.parts():
            sha.update(part)
        return sha.hexdigest()

    def spec(self, weight_id: str, *, replace: bool = False, replace_digest: str = "") -> pb.WeightSpec:
        spec = pb.WeightSpec(
            weight_id=weight_id,
            dtype=dtypes.to_enum(self.dtype),
            layout=pb.Layout.Value("LAYOUT_" + self.layout),
            k=self.k,
            n=self.n,
            group_size=self.group_size,
            scale_count=0 if self.scales is None else self.scales.size,
            bias_count=0 if self.bias is None else self.bias.size,
            expected_digest=self.digest(),
            replace=replace,
            replace_digest=replace_digest,
        )
        if self.scales is not None:
            spec.scale_dtype = dtypes.to_enum(self.scale_dtype)
        return spec

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """The bytes of parts(), cut; a chunk never spans two parts."""
        for part in self.parts():
            for start in range(0, len(part), chunk_bytes):
                yield bytes(part[start : start + chunk_bytes])


def plain_weight(
    data: np.ndarray,
    layout: str,
    scales: object = None,
    bias: object = None,
    scale_dtype: str | None = None,
    dtype: str = "INT8",
    group_size: int = 0,
) -> PlainWeight:
    """Checks what only this side can see (array types, ranks, INT4 and INT2 values); ranges and limits are the server's.

    `scales` may be a number, [1] or [N], and [K/G, N] for INT4; a Python float or a float64 array is refused rather
    than rounded silently, except that a plain number is taken as float32.
    """
    array = np.asarray(data)
    if array.dtype != np.int8 or array.ndim != 2:
        raise InvalidArgument(
            f"a weight is a 2-D int8 array, this one is {array.dtype} of shape {list(array.shape)}; quantize it "
            "first (scale = max|w| / 127 per column)",
            reason="SHAPE" if array.dtype == np.int8 else "DTYPE_UNKNOWN",
            metadata={"dtype": str(array.dtype), "shape": str(list(array.shape))},
        )
    if layout not in _LAYOUTS:
        raise InvalidArgument(
            f"layout {layout!r} is not KN ([K, N], x @ w) or NK ([N, K], torch.nn.Linear.weight); it is never guessed",
            reason="LAYOUT_MISSING",
            metadata={"layout": str(layout)},
        )
    array = np.ascontiguousarray(array)
    packed = array if dtype == "INT8" else pack(array, dtype)
    k, n = array.shape if layout == "KN" else array.shape[::-1]
    scale_name, scale_array = "NONE", None
    if scales is not None:
        scale_name, scale_array = scale_values(_in_one_line(scales, dtype, group_size, k, n), scale_dtype)
    bias_array = None
    if bias is not None:
        bias_name, bias_array = dtypes.to_wire(np.atleast_1d(np.asarray(bias)))
        if bias_name != "F32":
            raise InvalidArgument(
                f"a bias is float32, this one is {bias_array.dtype}", reason="DTYPE_MISMATCH",
                metadata={"dtype": str(bias_array.dtype)},
            )
    return PlainWeight(array, layout, scale_name, scale_array, bias_array, dtype, group_size, packed)


# dtype: (bits, least value, greatest value); a value's code is its distance from the least.
_PACKED = {"INT4": (4, -8, 7), "INT2": (2, -1, 1)}


def pack(values: np.ndarray, dtype: str) -> np.ndarray:
    """uint8 [lines, bytes of a line]: the int8 values of each line (row of the array) as nibbles of value + 8 (INT4,
    low nibble first) or codes of value + 1 (INT2, low bits first); the unused bits of a line's last byte are 0.
    """
    if dtype not in _PACKED:
        raise InvalidArgument(
            f"a weight is INT8, INT4 or INT2, not {dtype!r}", reason="DTYPE_UNKNOWN", metadata={"dtype": str(dtype)}
        )
    bits, least, greatest = _PACKED[dtype]
    wrong = np.argwhere((values < least) | (values > greatest))
    if len(wrong):
        row, column = (int(i) for i in wrong[0])
        raise InvalidArgument(
            f"value [{row}, {column}] = {values[row, column]} is outside {least} ... {greatest} of {dtype}",
            reason="WEIGHT_VALUE",
            metadata={"row": str(row), "column": str(column), "value": str(values[row, column])},
        )
    per_byte = 8 // bits
    lines, elements = values.shape
    codes = np.zeros((lines, -(-elements // per_byte) * per_byte), np.uint8)
    codes[:, :elements] = (values.astype(np.int16) - least).astype(np.uint8)
    packed = np.zeros((lines, codes.shape[1] // per_byte), np.uint8)
    for i in range(per_byte):
        packed |= codes[:, i::per_byte] << np.uint8(i * bits)
    return packed


def _in_one_line(scales: object, dtype: str, group_size: int, k: int, n: int) -> object:
    """The scales of groups are [K/G, N]; a transposed array would not show in their count."""
    if dtype != "INT4" or np.ndim(scales) != 2:  # type: ignore[arg-type]
        return scales
    array = np.asarray(scales)
    expected = (k // group_size if group_size > 0 else 0, n)
    if array.shape != expected:
        raise InvalidArgument(
            f"scales of an INT4 weight with k = {k}, n = {n} and group_size = {group_size} are [K/G, N] = "
            f"{list(expected)}, these are {list(array.shape)}",
            reason="SCALE_COUNT",
            metadata={"shape": str(list(array.shape)), "expected": str(list(expected))},
        )
    return array.reshape(-1)


def scale_values(scales: object, dtype: str | None = None) -> Tuple[str, np.ndarray]:
    """The type's name and the 1-D values of scales: F32, F16 or BF16; a plain Python number counts as float32."""
    if isinstance(scales, (int, float)) and not isinstance(scales, np.generic):
        scales = np.float32(scales)
    name, array = dtypes.to_wire(np.atleast_1d(np.asarray(scales)), dtype)
    if name not in ("F32", "F16", "BF16") or array.ndim != 1:
        raise InvalidArgument(
            f"scales are a 1-D array of float32, float16 or bfloat16, these are {array.dtype} of shape "
            f"{list(array.shape)}",
            reason="SCALE_DTYPE",
            metadata={"dtype": str(array.dtype), "shape": str(list(array.shape))},
        )
    return name, array
