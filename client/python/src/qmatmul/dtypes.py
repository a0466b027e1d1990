"""The names of element types (INT8, UINT8, INT16, INT32, F32, F16, BF16) and their numpy types.

All bytes on the wire are little-endian. BF16 has no numpy type of its own: with ml_dtypes installed it is
ml_dtypes.bfloat16, without it arrays of its uint16 bits stand for it, and then dtype="BF16" must be said.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from .errors import InvalidArgument
from .v1 import qmatmul_pb2 as pb

try:
    from ml_dtypes import bfloat16 as _bfloat16
except ImportError:
    _bfloat16 = np.uint16

BF16 = np.dtype(_bfloat16)

_NUMPY: dict[str, np.dtype[Any]] = {
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BF16,
}
_NAMES = {dtype: name for name, dtype in _NUMPY.items() if dtype != np.uint16}


def name_of(dtype: Any) -> str:
    """"F32" for "F32", np.float32, "float32" or np.dtype("<f4"). InvalidArgument DTYPE_UNKNOWN otherwise."""
    if isinstance(dtype, str) and dtype in _NUMPY:
        return dtype
    try:
        known = _NAMES.get(np.dtype(dtype).newbyteorder("<"))
    except TypeError:
        known = None
    if known is None:
        raise InvalidArgument(
            f"{dtype!r} is not an element type of the service (known: {', '.join(_NUMPY)}, or their numpy types; "
            'bfloat16 bits in uint16 need dtype="BF16")',
            reason="DTYPE_UNKNOWN",
            metadata={"dtype": str(dtype)},
        )
    return known


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type of an element type's name."""
    return _NUMPY[name]


def to_enum(name: str) -> pb.DataType:
    """The contract's value of a name."""
    return pb.DataType.Value("DATA_TYPE_" + name)


def from_enum(value: int) -> str:
    """The name of the contract's value."""
    return str(pb.DataType.Name(value)).removeprefix("DATA_TYPE_")


def to_wire(array: np.ndarray, dtype: str | None = None) -> tuple[str, np.ndarray]:
    """The element type's name and the array as contiguous little-endian elements, copied only if need be.

    dtype="BF16" takes uint16 bits; for every other array its own type decides.
    """
    if dtype == "BF16" and array.dtype in (np.dtype(np.uint16), BF16):
        name, target = "BF16", array.dtype.newbyteorder("<")
    else:
        name = name_of(array.dtype)
        target = _NUMPY[name]
        if dtype is not None and name_of(dtype) != name:
            raise InvalidArgument(
                f"dtype={dtype!r} was said of an array of {array.dtype}; convert it first, nothing is converted here",
                reason="DTYPE_MISMATCH",
                metadata={"dtype": str(dtype), "array_dtype": str(array.dtype)},
            )
    return name, np.ascontiguousarray(array, dtype=target)
