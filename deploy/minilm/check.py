"""The arithmetic of docs/numerics.md in numpy, written from that page and from nothing else in this repository.

It answers one question: is a reply the very bytes that the page promises?
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np

AMAX_MIN = np.float32(2.0**-100)  # section 4: a row below it is all zeros, scale 0


def quantize_rows(x: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Section 4, dynamic: int8 [M, K] and the scales sa [M] of float32 x [M, K]."""
    amax = np.abs(x).max(axis=1, initial=np.float32(0))
    tiny = amax < AMAX_MIN
    safe = np.where(tiny, np.float32(1), amax)
    scales = np.where(tiny, np.float32(0), safe / np.float32(127))
    inverse = np.float32(127) / safe
    q = np.rint(x * inverse[:, None])
    q[tiny] = 0
    return q.astype(np.int8), scales


def quantize_columns(w: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """An int8 weight [N, K] and scales [N] from float32 rows, each row its own scale; any rule would do here."""
    return quantize_rows(np.ascontiguousarray(w, np.float32))


def integer_product(q: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Section 1: int32 sums of q [M, K] and w [K, N]. Exact: float64 sums stay below 131,071 * 2^14 < 2^53."""
    return (q.astype(np.float64) @ w.astype(np.float64)).astype(np.int32)


def epilogue(acc: np.ndarray, sw: np.ndarray, sa: np.ndarray, bias: Optional[np.ndarray]) -> np.ndarray:
    """Section 2, F32: each step rounded to float32, in the page's order."""
    y = acc.astype(np.float32)
    y *= sw
    y *= sa[:, None]
    if bias is not None:
        y += bias
    return y


def wrong_elements(got: np.ndarray, expected: np.ndarray) -> int:
    """How many elements differ in any bit; all of them when type or shape differ."""
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return expected.size
    as_bits = np.dtype(f"u{expected.dtype.itemsize}")
    return int(np.count_nonzero(np.ascontiguousarray(got).view(as_bits) != expected.view(as_bits)))


@dataclass
class Tally:
    """How many results were looked at and how many were wrong."""

    wrong: int = 0
    elements: int = 0

    def add(self, got: np.ndarray, expected: np.ndarray) -> None:
        self.wrong += wrong_elements(got, expected)
        self.elements += expected.size

    def __str__(self) -> str:
        return f"{self.wrong:,} of {self.elements:,}"
