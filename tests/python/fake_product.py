"""What a server computes, in numpy, for tests of what the client makes of whole answers and of parts. A weight "n7"
has 7 columns, whatever the request's k is."""
import numpy as np
from google.rpc import error_details_pb2
from qmatmul.v1 import qmatmul_pb2 as pb

import grpc
from conftest import refuse


def columns(name):
    return int(name.rsplit("n", 1)[1])


def weight(k, n):
    return ((np.arange(k)[:, None] * 31 + np.arange(n) * 17) % 7 - 3).astype(np.int64)


def answer(request_bytes, context=None):
    """The reply's bytes: INT8 activations with zero points, INT32 or (saturated, or refused) INT8 outputs, top_k."""
    request = pb.MatMulRequest.FromString(request_bytes)
    tensor = request.activations
    rows, k = tensor.shape
    a = np.frombuffer(tensor.data, np.int8).reshape(rows, k).astype(np.int64)
    if tensor.zero_points:
        a = a - np.broadcast_to(np.array(tensor.zero_points), rows)[:, None]
    reply = pb.MatMulResponse()
    for i, name in enumerate(request.weights):
        spec = request.then[-1].output if request.then else request.outputs[i]
        name = request.then[-1].weight if request.then else name
        sums = a @ weight(k, columns(name)) + 1000 * len(request.then)
        output = reply.outputs.add(dtype=spec.dtype)
        if spec.dtype == pb.DATA_TYPE_INT8:
            wrong = np.argwhere((sums < -128) | (sums > 127))
            if len(wrong) and spec.overflow == pb.OVERFLOW_ERROR:
                overflow(context, i, wrong)
            output.execution.overflow_count = len(wrong)
            sums = sums.clip(-128, 127)
        if spec.top_k:
            order = np.argsort(-sums, axis=1, kind="stable")[:, : spec.top_k]
            output.indices = order.astype("<i4").tobytes()
            sums = np.take_along_axis(sums, order, axis=1)
        output.shape.extend(sums.shape)
        output.data = sums.astype(np.int8 if spec.dtype == pb.DATA_TYPE_INT8 else "<i4").tobytes()
        output.execution.weight, output.execution.digest = name, "content of " + name
        output.execution.compute_ns, output.execution.batch_rows = 10 * rows, rows
    return reply.SerializeToString()


def overflow(context, output, wrong):
    row, column = (int(i) for i in wrong[0])
    metadata = {"row": str(row), "column": str(column), "count": str(len(wrong))}
    refuse(
        context,
        grpc.StatusCode.OUT_OF_RANGE,
        f"{len(wrong)} results of output {output} do not fit INT8, the first at row {row}, column {column}",
        error_details_pb2.ErrorInfo(reason="OVERFLOW", domain="qmatmul", metadata=metadata),
    )
