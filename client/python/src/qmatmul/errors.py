"""One exception per status code, carrying what the server said in google.rpc.ErrorInfo.

Catch the class for the kind of fault (`NotFound`) and read `.reason` for the exact one ("WEIGHT_UNKNOWN").
Faults that this package finds before sending use the same classes and reason words.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class FieldViolation:
    """One field of the request that the server refused."""

    field: str
    description: str


class QmatmulError(Exception):
    """The base of all errors of the service.

    Attributes:
      code: the gRPC status code's name, for example "NOT_FOUND".
      message: what went wrong, with the offending value and the limit.
      reason: an UPPER_SNAKE word that says exactly which fault; "" when the transport, not the service, failed.
      metadata: the offending values and limits as strings.
      violations: the refused fields (INVALID_ARGUMENT).
      retry_after: seconds to wait before trying again, None when the server did not say.
      attempts: calls that were made; 0 when it was refused before anything was sent.
    """

    code = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        code: str | None = None,
    ) -> None:
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.attempts = 0
        if code is not None:
            self.code = code
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.code}{f' ({self.reason})' if self.reason else ''}: {self.message}"


class InvalidArgument(QmatmulError, ValueError):
    """A shape, data type or value is not allowed."""

    code = "INVALID_ARGUMENT"


class NotFound(QmatmulError, LookupError):
    """No weight of that name."""

    code = "NOT_FOUND"


class AlreadyExists(QmatmulError):
    """The name holds other content; metadata["current_digest"] says which."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(QmatmulError):
    """A forced kernel or device that this server lacks or has quarantined."""

    code = "FAILED_PRECONDITION"


class Unavailable(QmatmulError, ConnectionError):
    """The server's queue is full, it is draining, or it cannot be reached."""

    code = "UNAVAILABLE"


class ResourceExhausted(QmatmulError):
    """Weight memory or quota is used up, or a message is over the transport's limit (then without reason)."""

    code = "RESOURCE_EXHAUSTED"


class OutOfRange(QmatmulError):
    """overflow="ERROR" was asked for and a result does not fit; metadata names its row and column."""

    code = "OUT_OF_RANGE"


class DeadlineExceeded(QmatmulError, TimeoutError):
    """The call did not finish within its timeout."""

    code = "DEADLINE_EXCEEDED"


class Unimplemented(QmatmulError, NotImplementedError):
    """This server version does not do that yet."""

    code = "UNIMPLEMENTED"


class DataLoss(QmatmulError):
    """A stored weight fails its digest; register it again."""

    code = "DATA_LOSS"


class Internal(QmatmulError):
    """A bug of the service."""

    code = "INTERNAL"


class Cancelled(QmatmulError):
    """The call was cancelled, on this side or the other."""

    code = "CANCELLED"


class Unauthenticated(QmatmulError):
    """No token, or one that the server does not know."""

    code = "UNAUTHENTICATED"


class PermissionDenied(QmatmulError, PermissionError):
    """The token lacks the scope that the call needs."""

    code = "PERMISSION_DENIED"


CLASSES: Mapping[str, type[QmatmulError]] = {
    c.code: c
    for c in (
        InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, Unavailable, ResourceExhausted, OutOfRange,
        DeadlineExceeded, Unimplemented, DataLoss, Internal, Cancelled, Unauthenticated, PermissionDenied,
    )
}


def from_status(code: str, message: str, status: status_pb2.Status | None) -> QmatmulError:
    """The exception for a status code's name, its message and, if there were any, its details."""
    reason, metadata, violations, retry_after = "", {}, [], None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad_request):
            violations += [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9
    cls = CLASSES.get(code, QmatmulError)
    return cls(message, reason=reason, metadata=metadata, violations=violations, retry_after=retry_after, code=code)


def from_rpc_error(error: grpc.RpcError) -> QmatmulError:
    """The exception for a failed grpc call."""
    status = None
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            status = status_pb2.Status.FromString(value)
    return from_status(error.code().name, error.details() or "", status)
