"""numpy arrays to request messages, reply messages to numpy arrays. No socket, so sync and asyncio clients share it."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np

from . import dtypes, records
from .errors import InvalidArgument
from .v1 import qmatmul_pb2 as pb
from .weights import scale_values


@dataclass(frozen=True)
class Output:
    """What to make of one weight's sums; see OutputSpec in the contract.

    Attributes:
      dtype: "INT32", "INT16", "INT8" (raw sums, or scaled when `scale` is given), "F32", "F16", "BF16", or a numpy
        type.
      overflow: "SATURATE", "WRAP" or "ERROR"; integer outputs only. None: the server saturates and says so.
      scale, zero_point: INT8 and INT16: q = round(y / scale) + zero_point.
      activation: "RELU" or None.
      top_k: only the greatest of each row, with their columns; 0: all.
      skip_bias: leave the weight's bias out; needed for raw sums of a weight that has one.
    """

    dtype: Any
    overflow: Optional[str] = None
    scale: Optional[float] = None
    zero_point: Optional[int] = None
    activation: Optional[str] = None
    top_k: int = 0
    skip_bias: bool = False


OutputLike = Union[Output, str, type, np.dtype]


def weight_name(weight_id: str) -> str:
    """The bare id as RPCs carry it."""
    return "weights/" + weight_id.removeprefix("weights/")


def weight_names(weights: Union[str, Sequence[str]]) -> List[str]:
    return [weight_name(w) for w in ([weights] if isinstance(weights, str) else weights)]


def output_spec(out: OutputLike) -> pb.OutputSpec:
    """An OutputSpec from an Output, or from a type alone."""
    if not isinstance(out, Output):
        out = Output(out)
    spec = pb.OutputSpec(dtype=dtypes.to_enum(dtypes.name_of(out.dtype)), top_k=out.top_k, skip_bias=out.skip_bias)
    if out.overflow is not None:
        spec.overflow = _enum(pb.Overflow, "OVERFLOW_", out.overflow)
    if out.scale is not None:
        spec.scale = out.scale
    if out.zero_point is not None:
        spec.zero_point = out.zero_point
    if out.activation is not None:
        spec.activation = _enum(pb.Activation, "ACTIVATION_", out.activation)
    return spec


def output_specs(out: Union[OutputLike, Sequence[OutputLike]], count: int) -> List[pb.OutputSpec]:
    """One spec for each of `count` weights; a single `out` stands for all."""
    return [output_spec(o) for o in (out if isinstance(out, (list, tuple)) else [out] * count)]


def options(
    arithmetic: Optional[str], device: str, kernel: str, verify: bool = False
) -> pb.MatMulOptions:
    message = pb.MatMulOptions(device=device, kernel=kernel, verify=verify)
    if arithmetic is not None:
        message.arithmetic = arithmetic_value(arithmetic)
    return message


@dataclass(frozen=True)
class Activations:
    """[M, K] activations with their quantization, as arrays that the wire takes as they are.

    Attributes:
      scales: None, or 1 or M values; zero_points: none, 1 or M.
    """

    dtype: str
    data: np.ndarray
    dynamic: bool
    scale_dtype: str
    scales: Optional[np.ndarray]
    zero_points: Tuple[int, ...]

    @classmethod
    def of(
        cls, x: Any, dtype: Optional[str], dynamic: bool, scale: Any, scale_dtype: Optional[str], zero_points: Any
    ) -> Activations:
        name, array = dtypes.to_wire(np.asarray(x), dtype)
        if array.ndim != 2:
            raise InvalidArgument(
                f"activations are a 2-D array [M, K], this one has shape {list(array.shape)}; use x.reshape(-1, k) for "
                "more axes and x[None, :] for a vector",
                reason="SHAPE",
                metadata={"shape": str(list(array.shape))},
            )
        if dynamic and scale is not None:
            raise InvalidArgument(
                "dynamic=True and scale= exclude each other: the server computes the scales, or you give them",
                reason="QUANTIZATION_SPEC",
            )
        scale_name, scales = ("", None) if scale is None else scale_values(scale, scale_dtype)
        points = () if zero_points is None else np.atleast_1d(np.asarray(zero_points))
        return cls(name, array, dynamic, scale_name, scales, tuple(int(z) for z in points))

    @property
    def quantized(self) -> bool:
        return self.dynamic or self.scales is not None

    @property
    def row_bytes(self) -> int:
        """What a row takes on the wire, its zero point aside."""
        per_row = self.scales.itemsize if self.scales is not None and self.scales.size > 1 else 0
        return int(self.data.shape[1]) * self.data.itemsize + per_row

    def fill(self, tensor: pb.ActivationTensor, begin: int, end: int) -> None:
        """Writes rows [begin, end) into the message, their bytes copied once."""
        rows = self.data.shape[0]
        whole = end - begin == rows
        tensor.dtype = dtypes.to_enum(self.dtype)
        tensor.shape.extend((end - begin, self.data.shape[1]))
        tensor.data = self.data[begin:end].tobytes()
        if self.dynamic:
            tensor.dynamic.SetInParent()
        if self.scales is not None:
            scales = self.scales if whole or self.scales.size != rows else self.scales[begin:end]
            tensor.static_scales.scales.dtype = dtypes.to_enum(self.scale_dtype)
            tensor.static_scales.scales.data = scales.tobytes()
        points = self.zero_points
        tensor.zero_points.extend(points if whole or len(points) != rows else points[begin:end])


def default_arithmetic(arithmetic: Optional[str], quantized: bool) -> Optional[str]:
    """W8A8 where the quantization that was given means nothing else; otherwise the server asks for it by name."""
    return "W8A8" if arithmetic is None and quantized else arithmetic


def arithmetic_value(name: str) -> Any:
    return _enum(pb.Arithmetic, "ARITHMETIC_", name)


def result(output: pb.OutputTensor) -> records.Result:
    """One output as read-only views of the reply's bytes."""
    shape = tuple(output.shape)
    dtype = dtypes.numpy_dtype(dtypes.from_enum(output.dtype))
    scales = None
    if output.activation_scales.data:
        name = dtypes.from_enum(output.activation_scales.dtype)
        scales = np.frombuffer(output.activation_scales.data, dtypes.numpy_dtype(name))
    return records.Result(
        array=np.frombuffer(output.data, dtype).reshape(shape),
        execution=records.from_message(records.Execution, output.execution),
        indices=np.frombuffer(output.indices, "<i4").reshape(shape) if output.indices else None,
        activation_scales=scales,
    )


def _enum(kind: Any, prefix: str, name: str) -> Any:
    """The value of an enumeration by its short name; UNSPECIFIED is said by leaving the argument out."""
    full = prefix + str(name)
    if full not in kind.keys() or name == "UNSPECIFIED":
        known = [k.removeprefix(prefix) for k in kind.keys() if not k.endswith("UNSPECIFIED")]
        raise InvalidArgument(
            f"{name!r} is not one of {', '.join(known)}",
            reason="ENUM_UNKNOWN",
            metadata={"value": str(name), "known": ",".join(known)},
        )
    return kind.Value(full)
