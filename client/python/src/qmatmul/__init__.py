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
    WeightCopy,
)
from .weights import PlainWeight, plain_weight

__version__ = "0.1.0"

__all__ = [name for name in dir() if not name.startswith("_") and name not in (
    "client", "dtypes", "errors", "int_mm", "messages", "records", "retry", "v1", "weights")]
