"""What the server answers, as frozen dataclasses with the contract's field names.

Enumerations are their short names ("INT8", "KN", "SATURATE"), times are nanoseconds, sizes bytes. A field that
the server left unset is None.
"""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Optional, Tuple, Type, TypeVar

import numpy as np
from google.protobuf.message import Message

T = TypeVar("T")


@dataclass(frozen=True)
class WeightCopy:
    """One copy of a weight in the memory of one device."""

    device: str
    layout: str
    bytes: int


@dataclass(frozen=True)
class WeightAbsence:
    """A device that holds no copy of a weight, and why."""

    device: str
    reason: str


@dataclass(frozen=True)
class Weight:
    """A registered weight. `name` is "weights/{id}"; `id` is what the other methods take."""

    name: str
    dtype: str
    layout: str
    k: int
    n: int
    group_size: int
    scale_dtype: str
    scale_count: int
    bias_count: int
    digest: str
    generation: int
    create_time_ns: int
    copies: Tuple[WeightCopy, ...]
    absences: Tuple[WeightAbsence, ...]

    @property
    def id(self) -> str:
        return self.name.removeprefix("weights/")


@dataclass(frozen=True)
class Registration:
    """`uploaded_bytes` is 0 when the server knew the content already."""

    weight: Weight
    already_registered: bool
    uploaded_bytes: int


@dataclass(frozen=True)
class Execution:
    """What was done for one output."""

    weight: str
    digest: str
    generation: int
    device: str
    kernel: str
    overflow: str
    batch_rows: int
    padded_rows: int
    queue_ns: int
    compute_ns: int
    verified: bool
    overflow_count: int


@dataclass(frozen=True)
class Result:
    """One output.

    Attributes:
      array: [M, N], or [M, top_k] with top_k. Read-only: it lies in the reply's own memory.
      execution: which kernel on which device, how long, in what batch.
      indices: [M, top_k] int32 columns of the values, None without top_k.
      activation_scales: [M] float32, only with raw sums of float activations (real value = sum * scale * ...).
    """

    array: np.ndarray
    execution: Execution
    indices: Optional[np.ndarray] = None
    activation_scales: Optional[np.ndarray] = None


@dataclass(frozen=True)
class Candidate:
    """A kernel that could, or could not, compute the request, and why."""

    device: str
    kernel: str
    eligible: bool
    chosen: bool
    predicted_ns: Optional[int]
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What would run, by which rule; `candidates` are best first."""

    device: str
    kernel: str
    inline: bool
    rule: str
    candidates: Tuple[Candidate, ...]


@dataclass(frozen=True)
class Device:
    id: str
    kind: str
    description: str
    threads: int
    lanes: int
    memory_bytes: int
    memory_used_bytes: int
    features: Tuple[str, ...]
    state: str


@dataclass(frozen=True)
class Kernel:
    name: str
    device: str
    supported: bool
    disabled: bool
    quarantined: bool
    reason: str
    measured_gops: Optional[float]
    layout: str
    quarantine_time_ns: int
    weight: str  # the weights it multiplies by: "INT8", "INT4", "INT2"
    arithmetic: str  # "W8A8" or "W8A32"


@dataclass(frozen=True)
class KernelStatistics:
    device: str
    kernel: str
    executions: int
    rows: int
    ops: int
    compute_ns: int
    gops: float


@dataclass(frozen=True)
class Statistics:
    version: str
    uptime_ns: int
    requests: int
    errors: int
    rows: int
    ops: int
    weights: int
    weight_bytes: int
    packs: int
    in_flight_requests: int
    in_flight_bytes: int
    output_overflows: int
    kernels: Tuple[KernelStatistics, ...]


_NESTED: dict[str, type] = {
    "WeightCopy": WeightCopy,
    "WeightAbsence": WeightAbsence,
    "Candidate": Candidate,
    "KernelStatistics": KernelStatistics,
}


def from_message(cls: Type[T], message: Message) -> T:
    """The dataclass `cls` from the message of the same field names."""
    return cls(**{field.name: _value(message, field.name) for field in fields(cls)})  # type: ignore[arg-type]


def _value(message: Message, name: str) -> Any:
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if field.enum_type is not None:
        # SATURATE, not OVERFLOW_SATURATE: the zero value's name gives the prefix.
        prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        known = field.enum_type.values_by_number.get(value)
        return known.name.removeprefix(prefix) if known else str(value)
    if field.message_type is not None:
        return tuple(from_message(_NESTED[field.message_type.name], item) for item in value)
    if field.has_presence and not message.HasField(name):
        return None
    return value if isinstance(value, (str, bytes, int, float)) else tuple(value)
