"""matmul_stream: outcomes in any order, the window, and every way a stream ends."""
import threading

import grpc
import numpy as np
import pytest
import qmatmul
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from qmatmul.v1 import qmatmul_pb2 as pb

import fake_product


def request(i, **kwargs):
    return qmatmul.Request(np.array([[i % 100, 2, 3]], np.int8), "n3", "INT32", **kwargs)


def expected(i):
    return np.array([[i % 100, 2, 3]], np.int64) @ fake_product.weight(3, 3)


def reply(message):
    """The answer to one StreamMatMulRequest."""
    asked = pb.StreamMatMulRequest.FromString(message)
    answer = pb.MatMulResponse.FromString(fake_product.answer(asked.request.SerializeToString()))
    return pb.StreamMatMulResponse(request_id=asked.request_id, response=answer).SerializeToString()


def in_batches(size):
    """A stream that gathers so many requests and answers the last first."""

    def stream(requests, context):
        gathered = []
        for message in requests:
            gathered.append(message)
            if len(gathered) == size:
                yield from map(reply, reversed(gathered))
                gathered = []
        yield from map(reply, reversed(gathered))

    return stream


def test_outcomes_find_their_requests_in_any_order(fake):
    fake.stream = in_batches(4)
    with qmatmul.Client(fake.target) as client:
        outcomes = list(client.matmul_stream((request(i) for i in range(64)), window=8))
    assert [i for i, _ in outcomes[:4]] == [3, 2, 1, 0] and sorted(i for i, _ in outcomes) == list(range(64))
    for i, result in outcomes:
        np.testing.assert_array_equal(result.array, expected(i))


def test_several_weights_give_lists(fake):
    fake.stream = in_batches(1)
    x = np.array([[1, 2, 3]], np.int8)
    requests = [qmatmul.Request(x, ["n3", "n5"], "INT32"), qmatmul.Request(x, "n5", qmatmul.Output("INT32", top_k=2))]
    with qmatmul.Client(fake.target) as client:
        outcomes = dict(client.matmul_stream(requests))
    assert [r.array.shape for r in outcomes[0]] == [(1, 3), (1, 5)]
    assert outcomes[1].array.shape == outcomes[1].indices.shape == (1, 2)


def test_no_more_than_the_window_is_taken(fake):
    fake.stream = in_batches(1)
    taken, seen = [], []

    def requests():
        for i in range(100):
            taken.append(i)
            yield request(i)

    with qmatmul.Client(fake.target) as client:
        for i, _ in client.matmul_stream(requests(), window=5):
            seen.append(i)
            assert len(taken) - len(seen) <= 6  # five in flight, and one prepared that waits for room
    assert len(seen) == 100


def test_one_requests_error_is_its_outcome(fake):
    def stream(requests, context):
        for message in requests:
            if pb.StreamMatMulRequest.FromString(message).request_id != 2:
                yield reply(message)
                continue
            status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="512 rows wait")
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.nanos = 30_000_000
            for detail in (error_details_pb2.ErrorInfo(reason="QUEUE_FULL", metadata={"limit": "512"}), retry):
                packed = any_pb2.Any()
                packed.Pack(detail)
                status.details.append(packed)
            yield pb.StreamMatMulResponse(request_id=2, error=status).SerializeToString()

    fake.stream = stream
    with qmatmul.Client(fake.target) as client:
        outcomes = dict(client.matmul_stream(request(i) for i in range(3)))
    error = outcomes[1]
    assert isinstance(error, qmatmul.Unavailable) and error.reason == "QUEUE_FULL"
    assert error.retry_after == pytest.approx(0.03) and error.metadata == {"limit": "512"}
    np.testing.assert_array_equal(outcomes[2].array, expected(2))


def test_the_streams_own_end_is_raised(fake):
    def stream(requests, context):
        yield reply(next(requests))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request_id 7 is in flight")

    fake.stream = stream
    seen = []
    with qmatmul.Client(fake.target) as client, pytest.raises(qmatmul.InvalidArgument, match="7 is in flight"):
        for outcome in client.matmul_stream(request(i) for i in range(3)):
            seen.append(outcome)
    assert len(seen) <= 1


def test_unanswered_and_unknown_requests_are_noticed(fake):
    fake.stream = lambda requests, context: map(reply, [next(requests)])
    with qmatmul.Client(fake.target) as client, pytest.raises(qmatmul.Internal) as caught:
        list(client.matmul_stream(request(i) for i in range(3)))
    assert caught.value.reason == "STREAM_ENDED"
    fake.stream = lambda requests, context: iter([pb.StreamMatMulResponse(request_id=9).SerializeToString()])
    with qmatmul.Client(fake.target) as client, pytest.raises(qmatmul.Internal) as caught:
        list(client.matmul_stream([request(0)]))
    assert caught.value.reason == "REPLY_MALFORMED"


def test_what_the_iterable_raises_comes_out(fake):
    fake.stream = in_batches(1)

    def requests():
        yield request(0)
        raise KeyError("no more rows")

    with qmatmul.Client(fake.target) as client, pytest.raises(KeyError, match="no more rows"):
        list(client.matmul_stream(requests()))
    bad = qmatmul.Request(np.zeros(3, np.int8), "n3", "INT32")
    with qmatmul.Client(fake.target) as client, pytest.raises(qmatmul.InvalidArgument) as caught:
        list(client.matmul_stream([bad]))
    assert caught.value.reason == "SHAPE"


def test_a_server_that_does_not_answer_is_given_up(fake):
    release = threading.Event()

    def stream(requests, context):
        release.wait(20)
        yield from ()

    fake.stream = stream
    with qmatmul.Client(fake.target) as client, pytest.raises(qmatmul.DeadlineExceeded, match="1 requests unanswered"):
        list(client.matmul_stream([request(0)], timeout_s=0.2))
    release.set()


def test_leaving_early_ends_the_stream(fake):
    ended = threading.Event()

    def stream(requests, context):
        context.add_callback(ended.set)
        yield from in_batches(1)(requests, context)

    fake.stream = stream
    before = threading.active_count()
    with qmatmul.Client(fake.target) as client:
        for _ in client.matmul_stream((request(i) for i in range(1000)), window=4):
            break
        assert ended.wait(10)
    assert threading.active_count() <= before + 8  # the fake server's pool, none of ours


# The real server


@pytest.fixture
def mlp(client):
    """Two weights, W1 [40, 24] and W2 [24, 16], with scales."""
    rng = np.random.default_rng(3)
    for name, (k, n) in {"mlp-up": (40, 24), "mlp-down": (24, 16)}.items():
        w = rng.integers(-128, 128, (k, n), np.int8)
        client.register_weight(name, w, layout="KN", scales=rng.random(n, np.float32), replace=True)
    yield rng.standard_normal((6, 40), np.float32)
    for name in ("mlp-up", "mlp-down"):
        client.delete_weight(name)


def test_the_real_servers_stream(client, mlp):
    requests = [qmatmul.Request(mlp[i : i + 1], "mlp-up", "F32", dynamic=True) for i in range(6)] * 20
    outcomes = list(client.matmul_stream(requests, window=16))
    whole = client.matmul(mlp, "mlp-up", out="F32", dynamic=True).array
    assert len(outcomes) == 120
    for i, result in outcomes:
        assert result.array.tobytes() == whole[i % 6].tobytes()


def test_the_real_servers_chain(client, mlp):
    relu = qmatmul.Output("F32", activation="RELU")
    steps = [qmatmul.ChainStep("mlp-down", "F32")]
    chained = client.matmul(mlp, "mlp-up", out=relu, dynamic=True, then=steps)
    between = client.matmul(mlp, "mlp-up", out=relu, dynamic=True).array
    assert chained.array.tobytes() == client.matmul(between, "mlp-down", out="F32", dynamic=True).array.tobytes()


def test_the_real_servers_top_k(client, mlp):
    top = client.matmul(mlp, "mlp-up", out=qmatmul.Output("F32", top_k=5), dynamic=True)
    whole = client.matmul(mlp, "mlp-up", out="F32", dynamic=True).array
    order = np.argsort(-whole, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(top.indices, order)
    np.testing.assert_array_equal(top.array, np.take_along_axis(whole, order, axis=1))
