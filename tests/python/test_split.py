"""A call that is too large for one message: its parts give the result, and the errors, of the whole."""
import dataclasses

import grpc
import numpy as np
import pytest
import qmatmul
from google.rpc import error_details_pb2
from qmatmul.v1 import qmatmul_pb2 as pb

import fake_product
from conftest import refuse

X = (np.arange(103 * 200) * 37 % 251 - 125).astype(np.int8).reshape(103, 200)
SCALES = np.arange(1, 104, dtype=np.float32)
ZEROS = np.arange(103) % 9 - 4


@pytest.fixture
def product(fake):
    """The fake server, multiplying, and saying n of its weights."""
    fake.requests = []

    def answer(method, request, context):
        if method.endswith("/GetWeight"):
            return pb.Weight(n=fake_product.columns(pb.GetWeightRequest.FromString(request).name)).SerializeToString()
        fake.requests.append(pb.MatMulRequest.FromString(request))
        return fake_product.answer(request, context)

    fake.answer = answer
    return fake


def both(product, limit, *args, **kwargs):
    """The results in one piece and in messages of at most `limit` bytes, as lists."""
    with qmatmul.Client(product.target) as large, qmatmul.Client(product.target, message_bytes_max=limit) as small:
        results = [client.matmul(*args, **kwargs) for client in (large, small)]
    assert len(product.requests) > 4 and all(r.ByteSize() <= limit for r in product.requests[1:] if limit > 5000)
    return [r if isinstance(r, list) else [r] for r in results]


def check_same(whole, joined):
    assert len(whole) == len(joined)
    for one, other in zip(whole, joined):
        assert one.array.dtype == other.array.dtype and one.array.shape == other.array.shape
        assert one.array.tobytes() == other.array.tobytes() and not other.array.flags.writeable
        assert (one.indices is None) == (other.indices is None)
        if one.indices is not None:
            np.testing.assert_array_equal(one.indices, other.indices)
        assert one.execution.compute_ns == other.execution.compute_ns  # 10 ns a row
        assert one.execution.overflow_count == other.execution.overflow_count
        assert other.execution.batch_rows < one.execution.batch_rows == 103


def test_by_the_requests_size_with_scales_and_zero_points_of_the_rows(product):
    outs = ["INT32", qmatmul.Output("INT8")]
    check_same(*both(product, 6000, X, ["n5", "n3"], out=outs, scale=SCALES, zero_points=ZEROS))
    parts = sorted(product.requests[1:], key=lambda r: np.frombuffer(r.activations.static_scales.scales.data, "<f4")[0])
    sent = b"".join(r.activations.static_scales.scales.data for r in parts)
    assert sent == SCALES.tobytes()
    assert sum((list(r.activations.zero_points) for r in parts), []) == ZEROS.tolist()


def test_one_scale_for_all_goes_with_every_part(product):
    check_same(*both(product, 6000, X, "n5", out="INT32", scale=0.5, zero_points=3))
    assert all(len(r.activations.static_scales.scales.data) == 4 for r in product.requests)


def test_top_k(product):
    check_same(*both(product, 5000, X, "n50", out=qmatmul.Output("INT32", top_k=30)))


def test_a_chain(product):
    steps = [qmatmul.ChainStep("n9", qmatmul.Output("F32", activation="RELU")), qmatmul.ChainStep("n4", "INT32", "W8A32")]
    check_same(*both(product, 6000, X, "n5", out="F32", then=steps))
    first, second = product.requests[-1].then
    assert (first.weight, first.arithmetic, first.output.dtype) == ("weights/n9", pb.ARITHMETIC_W8A8, pb.DATA_TYPE_F32)
    assert first.output.activation == pb.ACTIVATION_RELU
    assert (second.weight, second.arithmetic) == ("weights/n4", pb.ARITHMETIC_W8A32)


def test_by_the_replys_size_learned_once(product):
    with qmatmul.Client(product.target, message_bytes_max=40_000) as small:
        first = small.matmul(X, "n500", out="INT32")
        count = len(product.requests)
        again = small.matmul(X, "n500", out="INT32")
    np.testing.assert_array_equal(first.array, X.astype(np.int64) @ fake_product.weight(200, 500))
    assert first.array.tobytes() == again.array.tobytes()
    assert len(product.requests) == 2 * count - 1 and count > 4


def test_an_overflow_is_told_as_in_one_piece(product):
    x = X.copy()
    x[:70] = 0
    out = qmatmul.Output("INT8", overflow="ERROR")
    told = []
    for limit in (64 << 20, 4000):
        with qmatmul.Client(product.target, message_bytes_max=limit) as client:
            with pytest.raises(qmatmul.OutOfRange) as caught:
                client.matmul(x, ["n2", "n11"], out=out)
        told.append((caught.value.message, caught.value.metadata, caught.value.reason))
    assert told[0] == told[1] and int(told[0][1]["row"]) >= 70
    assert len(product.requests) > 4


def test_an_error_ends_the_other_parts(product):
    def answer(method, request, context):
        product.requests.append(request)
        info = error_details_pb2.ErrorInfo(reason="ACTIVATION_RANGE", domain="qmatmul")
        refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "activation [2, 7] = nan", info)

    product.answer = answer
    with qmatmul.Client(product.target, message_bytes_max=2000) as client:
        with pytest.raises(qmatmul.InvalidArgument) as caught:
            client.matmul(X, "n5", out="INT32")
    assert caught.value.reason == "ACTIVATION_RANGE" and "in the part that begins with row" in caught.value.message
    assert len(product.requests) <= 4


def test_a_weight_that_moves_between_the_parts_is_noticed(product):
    honest = product.answer

    def answer(method, request, context):
        reply = pb.MatMulResponse.FromString(honest(method, request, context))
        if len(product.requests) > 2:
            reply.outputs[0].execution.digest = "other"
        return reply.SerializeToString()

    product.answer = answer
    with qmatmul.Client(product.target, message_bytes_max=4000) as client, pytest.raises(qmatmul.QmatmulError) as caught:
        client.matmul(X, "n5", out="INT32")
    assert (caught.value.code, caught.value.reason) == ("ABORTED", "WEIGHT_REPLACED")


@pytest.mark.parametrize(
    "kwargs, limit, cls, reason",
    [
        ({}, 600, qmatmul.ResourceExhausted, "ROW_TOO_LARGE"),
        ({"scale": SCALES[:7]}, 6000, qmatmul.InvalidArgument, "SCALE_COUNT"),
        ({"zero_points": ZEROS[:7]}, 6000, qmatmul.InvalidArgument, "ZERO_POINT_COUNT"),
    ],
)
def test_what_cannot_be_cut_is_refused_here(product, kwargs, limit, cls, reason):
    with qmatmul.Client(product.target, message_bytes_max=limit) as client, pytest.raises(cls) as caught:
        client.matmul(X, "n5", out="INT32", **kwargs)
    assert caught.value.reason == reason and caught.value.attempts == 0 and not product.requests


def test_one_row_of_the_reply_that_does_not_fit_is_refused_with_the_sizes(product):
    with qmatmul.Client(product.target, message_bytes_max=2000) as client:
        with pytest.raises(qmatmul.ResourceExhausted) as caught:
            client.matmul(X[:1], "n500", out="INT32")
    assert caught.value.reason == "ROW_TOO_LARGE"
    assert (caught.value.metadata["reply_bytes"], caught.value.metadata["limit"]) == ("3028", "2000")


def test_a_refused_part_is_tried_again(product):
    honest = product.answer
    refused = []

    def answer(method, request, context):
        if len(product.requests) == 2 and not refused:
            refused.append(request)
            info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="qmatmul")
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.nanos = 1_000_000
            refuse(context, grpc.StatusCode.UNAVAILABLE, "full", info, retry)
        return honest(method, request, context)

    product.answer = answer
    check_same(*both(product, 6000, X, "n5", out="INT32"))
    assert refused


# The real server


def test_the_real_server_in_parts(server, client, weight_id):
    rng = np.random.default_rng(1)
    w, x = rng.integers(-128, 128, (70, 45), np.int8), rng.standard_normal((500, 70), np.float32)
    client.register_weight(weight_id, w, layout="KN", scales=rng.random(45, np.float32))
    for kwargs in ({"dynamic": True}, {"scale": rng.random(500, np.float32) + 0.5, "zero_points": np.arange(500) % 9}):
        whole = client.matmul(x, weight_id, out="F32", **kwargs)
        with qmatmul.Client(server.target, message_bytes_max=9000) as small:
            joined = small.matmul(x, weight_id, out="F32", **kwargs)
        assert joined.array.tobytes() == whole.array.tobytes()
        keep = {"digest", "generation", "weight", "device", "overflow_count"}
        one, other = dataclasses.asdict(whole.execution), dataclasses.asdict(joined.execution)
        assert {k: one[k] for k in keep} == {k: other[k] for k in keep}


@pytest.mark.parametrize("layout", ["KN", "NK"])
@pytest.mark.parametrize("dtype, least, greatest", [("INT4", -8, 7), ("INT2", -1, 1)])
def test_the_real_server_reads_packed_weights(client, weight_id, layout, dtype, least, greatest):
    rng = np.random.default_rng(2)
    w = rng.integers(least, greatest + 1, (60, 33)).astype(np.int8)  # [K, N]
    groups = 60 if dtype == "INT4" else 0
    scales = np.full((1, 33), 0.5, np.float32) if groups else np.full(33, 0.5, np.float32)
    sent = w if layout == "KN" else np.ascontiguousarray(w.T)
    client.register_weight(weight_id, sent, layout=layout, scales=scales, dtype=dtype, group_size=groups)
    a = rng.integers(-128, 128, (7, 60), np.int8)
    exact = a.astype(np.int64) @ w.astype(np.int64)
    np.testing.assert_array_equal(client.matmul(a, weight_id, out="INT32").array, exact)
    np.testing.assert_array_equal(client.matmul(a, weight_id, out="F32").array, exact.astype(np.float32) * np.float32(0.5))
