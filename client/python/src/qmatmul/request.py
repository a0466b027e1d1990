"""A MatMul as it is asked for, and the messages of it: of all its rows, or of some of them. No socket."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Union

from . import messages
from .messages import OutputLike
from .v1 import qmatmul_pb2 as pb


@dataclass(frozen=True)
class ChainStep:
    """One more product on the result: the float output of the step before times a weight.

    Attributes:
      weight: its name; its k is the n of the weight before.
      out: the output type or an Output; "F32" for every step that another follows.
      arithmetic: "W8A8" (the step before is quantized per row, as with dynamic=True) or "W8A32".
    """

    weight: str
    out: OutputLike = "F32"
    arithmetic: str = "W8A8"

    def message(self) -> pb.ChainStep:
        step = pb.ChainStep(weight=messages.weight_name(self.weight), output=messages.output_spec(self.out))
        step.arithmetic = messages.arithmetic_value(self.arithmetic)
        return step


@dataclass(frozen=True)
class Request:
    """The arguments of Client.matmul as a value, for Client.matmul_stream; see there what they mean."""

    x: Any
    weights: Union[str, Sequence[str]]
    out: Union[OutputLike, Sequence[OutputLike]]
    then: Sequence[ChainStep] = ()
    dynamic: bool = False
    scale: Any = None
    zero_points: Any = None
    arithmetic: Optional[str] = None
    dtype: Optional[str] = None
    scale_dtype: Optional[str] = None
    device: str = ""
    kernel: str = ""
    verify: bool = False

    def prepare(self) -> Prepared:
        return Prepared(self)


class Prepared:
    """A Request whose arrays and names were looked at once; nothing of it is sent yet.

    Attributes:
      rows: M.
      activations: the arrays, see messages.Activations.
      single: one weight was named by a string, so one result is wanted.
    """

    def __init__(self, request: Request) -> None:
        self.single = isinstance(request.weights, str)
        self.activations = messages.Activations.of(
            request.x, request.dtype, request.dynamic, request.scale, request.scale_dtype, request.zero_points
        )
        self.rows: int = self.activations.data.shape[0]
        names = messages.weight_names(request.weights)
        arithmetic = messages.default_arithmetic(request.arithmetic, self.activations.quantized)
        # All but the activations.
        self.head = pb.MatMulRequest(
            weights=names,
            outputs=messages.output_specs(request.out, len(names)),
            options=messages.options(arithmetic, request.device, request.kernel, request.verify),
            then=[step.message() for step in request.then],
        )

    @property
    def route(self) -> str:
        """What balancers hash: the first weight's id."""
        return self.head.weights[0].removeprefix("weights/") if self.head.weights else ""

    @property
    def width_weights(self) -> List[str]:
        """For each output, the weight that it is as wide as."""
        return [self.head.then[-1].weight] if self.head.then else list(self.head.weights)

    @property
    def last_outputs(self) -> List[pb.OutputSpec]:
        return [self.head.then[-1].output] if self.head.then else list(self.head.outputs)

    def message(self, begin: int = 0, end: Optional[int] = None) -> pb.MatMulRequest:
        """The request of rows [begin, end)."""
        request = pb.MatMulRequest()
        request.CopyFrom(self.head)
        self.activations.fill(request.activations, begin, self.rows if end is None else end)
        return request
