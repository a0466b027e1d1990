"""How a MatMul that does not fit one message is cut by rows, and how the parts' results become one.

Rows are independent (docs/numerics.md section 8), so the result is byte for byte what one call would give; where it
would not be, because the weight changed between the parts, the call fails. No socket.
"""
from __future__ import annotations

import dataclasses
import re
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from . import dtypes, records
from .errors import InvalidArgument, OutOfRange, QmatmulError, ResourceExhausted
from .request import Prepared

# More than what a request holds besides its rows and the names in it, and than one output's description in a reply.
_REQUEST_FIXED_BYTES = 512
_OUTPUT_FIXED_BYTES = 1024
_ZERO_POINT_BYTES = 5  # a varint
_INDEX_BYTES = 4
_ACTIVATION_SCALE_BYTES = 4

Rows = Tuple[int, int]


def plan(request: Prepared, columns: Dict[str, int], message_bytes_max: int) -> List[Rows]:
    """The parts in order, one when all fits. `columns`: n of weights, as far as it is known; negative limit: none."""
    activations, rows = request.activations, request.rows
    request_row = activations.row_bytes + _ZERO_POINT_BYTES * (len(activations.zero_points) > 1)
    request_fixed = _REQUEST_FIXED_BYTES + sum(len(name) + 64 for name in request.head.weights)
    request_fixed += sum(len(step.weight) + 64 for step in request.head.then)
    reply_row = reply_fixed = 0
    for spec, weight in zip(request.last_outputs, request.width_weights):
        elements = spec.top_k or columns.get(weight, 0)
        reply_row += elements * dtypes.numpy_dtype(dtypes.from_enum(spec.dtype)).itemsize
        reply_row += spec.top_k * _INDEX_BYTES + _ACTIVATION_SCALE_BYTES
        reply_fixed += _OUTPUT_FIXED_BYTES
    if message_bytes_max < 0 or rows < 1:
        return [(0, rows)]
    fit = min(
        (message_bytes_max - fixed) // row if row else rows
        for row, fixed in ((request_row, request_fixed), (reply_row, reply_fixed))
    )
    if rows <= fit:
        return [(0, rows)]
    if fit < 1:
        raise ResourceExhausted(
            f"one row needs a request of {request_row + request_fixed} bytes and a reply of {reply_row + reply_fixed}, "
            f"the limit of a message is {message_bytes_max}: raise message_bytes_max here and at the server",
            reason="ROW_TOO_LARGE",
            metadata={
                "request_bytes": str(request_row + request_fixed),
                "reply_bytes": str(reply_row + reply_fixed),
                "limit": str(message_bytes_max),
            },
        )
    _check_counts(request)
    count = -(-rows // fit)
    return [(rows * i // count, rows * (i + 1) // count) for i in range(count)]


def _check_counts(request: Prepared) -> None:
    """What is cut must have one piece a row; in one message the server would be asked."""
    activations = request.activations
    scales = 0 if activations.scales is None else activations.scales.size
    for reason, what, count in (
        ("SCALE_COUNT", "scale", scales),
        ("ZERO_POINT_COUNT", "zero point", len(activations.zero_points)),
    ):
        if count not in (0, 1, request.rows):
            raise InvalidArgument(
                f"activations have 1 {what} or one a row, not {count}, for {request.rows} rows that must be sent in parts",
                reason=reason,
                metadata={"count": str(count), "rows": str(request.rows)},
            )


def may_be_cut(error: ResourceExhausted) -> bool:
    """The reply was too large, by the server's word or by the transport's, which gives no reason. Then n of the weights
    tells how to cut it, or that one row is too much."""
    return error.reason in ("", "REPLY_TOO_LARGE")


def join(parts: Sequence[List[records.Result]]) -> List[records.Result]:
    """The outputs of all rows from the outputs of the parts, in order."""
    return [_join_output([part[i] for part in parts]) for i in range(len(parts[0]))]


def _join_output(parts: List[records.Result]) -> records.Result:
    done = [part.execution for part in parts]
    if len({execution.digest for execution in done}) > 1:
        raise QmatmulError(
            f"{done[0].weight} moved to other content while the call's {len(parts)} parts ran; call again",
            reason="WEIGHT_REPLACED",
            code="ABORTED",
        )
    execution = dataclasses.replace(
        done[0],
        batch_rows=max(e.batch_rows for e in done),
        padded_rows=sum(e.padded_rows for e in done),
        queue_ns=max(e.queue_ns for e in done),
        compute_ns=sum(e.compute_ns for e in done),
        verified=all(e.verified for e in done),
        overflow_count=sum(e.overflow_count for e in done),
    )
    array = _stack([part.array for part in parts])
    assert array is not None
    return records.Result(
        array=array,
        execution=execution,
        indices=_stack([part.indices for part in parts]),
        activation_scales=_stack([part.activation_scales for part in parts]),
    )


def _stack(arrays: List[Optional[np.ndarray]]) -> Optional[np.ndarray]:
    if any(array is None for array in arrays):
        return None
    whole = np.concatenate([array for array in arrays if array is not None])
    whole.flags.writeable = False  # as in a reply that came in one piece
    return whole


def join_errors(failed: Sequence[Tuple[Rows, QmatmulError]]) -> QmatmulError:
    """The error that the call in one piece would have given, from those of its parts, in their order."""
    for rows, error in failed:
        if not is_overflow(error):
            return _shift(error, rows[0], None)
    first = min(range(len(failed)), key=lambda i: _output_of(failed[i][1]))  # the first of equals
    output = _output_of(failed[first][1])
    count = sum(int(error.metadata.get("count", 0)) for _, error in failed if _output_of(error) == output)
    return _shift(failed[first][1], failed[first][0][0], count)


def is_overflow(error: QmatmulError) -> bool:
    """Whether the other parts must run too: an overflow is counted over all rows."""
    return isinstance(error, OutOfRange) and error.reason == "OVERFLOW"


def _output_of(error: QmatmulError) -> int:
    match = re.search(r"of output (\d+)", error.message)
    return int(match[1]) if match else 0


def _shift(error: QmatmulError, first_row: int, count: Optional[int]) -> QmatmulError:
    message, metadata = error.message, dict(error.metadata)
    if "row" in metadata:
        row = str(int(metadata["row"]) + first_row)
        message = message.replace(f"row {metadata['row']}", f"row {row}", 1)
        metadata["row"] = row
    elif isinstance(error, InvalidArgument):
        message += f" (in the part that begins with row {first_row}, counted from its first)"
    if count is not None and "count" in metadata:
        message = re.sub(f"^{metadata['count']} ", f"{count} ", message)
        metadata["count"] = str(count)
    shifted = type(error)(
        message, reason=error.reason, metadata=metadata, violations=error.violations, retry_after=error.retry_after,
        code=error.code,
    )
    shifted.attempts = error.attempts
    return shifted
