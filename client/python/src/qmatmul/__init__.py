"""qmatmul: exact quantized matrix multiplication by a service, numpy in and out.

    with qmatmul.Client("127.0.0.1:8500") as client:
        client.register_weight("w", w_int8, layout="KN", scales=scales)
        y = client.matmul(x, "w", out="F32", dynamic=True).array
"""
from .client import Client
from .errors import (
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    QmatmulError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from .int_mm import torch_int_mm
from .messages import Output
from .records import (
    Candidate,
    Device,
    Execution,
    Explanation,
    Kernel,
    KernelStatistics,
    Registration,
    Result,
    Statistics,
    Weight,
    WeightAbsence,
    WeightCopy,
)
from .request import ChainStep, Request
from .retry import RetryOptions
from .weights import PlainWeight, pack, plain_weight

__version__ = "0.1.0"

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "Candidate",
    "ChainStep",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "Device",
    "Execution",
    "Explanation",
    "FailedPrecondition",
    "FieldViolation",
    "Internal",
    "InvalidArgument",
    "Kernel",
    "KernelStatistics",
    "NotFound",
    "OutOfRange",
    "Output",
    "PermissionDenied",
    "PlainWeight",
    "QmatmulError",
    "Registration",
    "Request",
    "ResourceExhausted",
    "Result",
    "RetryOptions",
    "Statistics",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Weight",
    "WeightAbsence",
    "WeightCopy",
    "pack",
    "plain_weight",
    "torch_int_mm",
]
