"""numpy arrays to request messages, reply messages to numpy arrays. No socket, so sync and asyncio clients share it."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Union

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
        message.arithmetic = _enum(pb.Arithmetic, "ARITHMETIC_", arithmetic)
    return message


def activations(
    x: Any, dtype: Optional[str], dynamic: bool, scale: Any, scale_dtype: Optional[str], zero_points: Any
) -> pb.ActivationTensor:
    """The activation tensor [M, K] with its quantization, the array's bytes copied once."""
    name, array = dtypes.to_wire(np.asarray(x), dtype)
    if array.ndim != 2:
        raise InvalidArgument(
            f"activations are a 2-D array [M, K], this one has shape {list(array.shape)}; use x.reshape(-1, k) for "
            "more axes and x[None, :] for a vector",
            reason="SHAPE",
            metadata={"shape": str(list(array.shape))},
        )
    tensor = pb.ActivationTensor(dtype=dtypes.to_enum(name), shape=array.shape, data=array.tobytes())
    if dynamic and scale is not None:
        raise InvalidArgument(
            "dynamic=True and scale= exclude each other: the server computes the scales, or you give them",
            reason="QUANTIZATION_SPEC",
        )
    if dynamic:
        tensor.dynamic.SetInParent()
    if scale is not None:
        scale_name, values = scale_values(scale, scale_dtype)
        tensor.static_scales.scales.dtype = dtypes.to_enum(scale_name)
        tensor.static_scales.scales.data = values.tobytes()
    if zero_points is not None:
        tensor.zero_points.extend(int(z) for z in np.atleast_1d(np.asarray(zero_points)))
    return tensor


def default_arithmetic(arithmetic: Optional[str], tensor: pb.ActivationTensor) -> Optional[str]:
    """W8A8 where the quantization that was given means nothing else; otherwise the server asks for it by name."""
    quantized = tensor.WhichOneof("quantization") is not None
    return "W8A8" if arithmetic is None and quantized else arithmetic


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
