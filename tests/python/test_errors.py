"""Every status code becomes its exception, with what the details say."""
import grpc
import numpy as np
import pytest
import qmatmul
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from qmatmul.retry import Repeatable, RetryPolicy

from conftest import refuse

# Every code that the contract names, its class, and the standard exception that it also is.
CODES = [
    (grpc.StatusCode.INVALID_ARGUMENT, qmatmul.InvalidArgument, ValueError),
    (grpc.StatusCode.NOT_FOUND, qmatmul.NotFound, LookupError),
    (grpc.StatusCode.ALREADY_EXISTS, qmatmul.AlreadyExists, Exception),
    (grpc.StatusCode.FAILED_PRECONDITION, qmatmul.FailedPrecondition, Exception),
    (grpc.StatusCode.UNAVAILABLE, qmatmul.Unavailable, ConnectionError),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, qmatmul.ResourceExhausted, Exception),
    (grpc.StatusCode.OUT_OF_RANGE, qmatmul.OutOfRange, Exception),
    (grpc.StatusCode.DEADLINE_EXCEEDED, qmatmul.DeadlineExceeded, TimeoutError),
    (grpc.StatusCode.UNIMPLEMENTED, qmatmul.Unimplemented, NotImplementedError),
    (grpc.StatusCode.DATA_LOSS, qmatmul.DataLoss, Exception),
    (grpc.StatusCode.INTERNAL, qmatmul.Internal, Exception),
    (grpc.StatusCode.CANCELLED, qmatmul.Cancelled, Exception),
    (grpc.StatusCode.UNAUTHENTICATED, qmatmul.Unauthenticated, Exception),
    (grpc.StatusCode.PERMISSION_DENIED, qmatmul.PermissionDenied, PermissionError),
    (grpc.StatusCode.ABORTED, qmatmul.QmatmulError, Exception),  # not in the contract: the base class, code kept
]


@pytest.mark.parametrize("code, cls, standard", CODES, ids=[c[0].name for c in CODES])
def test_status_becomes_its_class(fake, code, cls, standard):
    info = error_details_pb2.ErrorInfo(reason="SOME_REASON", domain="qmatmul", metadata={"k": "7", "limit": "5"})
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="activations.shape", description="has 3 axes")
    fake.answer = lambda method, request, context: refuse(context, code, "k is 7, the limit is 5", info, bad)
    with qmatmul.Client(fake.target) as client, pytest.raises(cls) as caught:
        client.get_weight("w")
    error = caught.value
    assert type(error) is cls and isinstance(error, standard)
    assert error.code == code.name
    assert error.message == "k is 7, the limit is 5"
    assert error.reason == "SOME_REASON"
    assert error.metadata == {"k": "7", "limit": "5"}
    assert error.violations == (qmatmul.FieldViolation("activations.shape", "has 3 axes"),)
    assert error.retry_after is None
    assert str(error) == f"{code.name} (SOME_REASON): k is 7, the limit is 5"


def test_an_error_of_the_transport_has_no_reason(fake):
    fake.answer = lambda method, request, context: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")
    with qmatmul.Client(fake.target) as client, pytest.raises(qmatmul.ResourceExhausted) as caught:
        client.statistics()
    assert caught.value.reason == "" and caught.value.metadata == {} and caught.value.violations == ()
    assert str(caught.value) == "RESOURCE_EXHAUSTED: too large"


def _full(context, delay_s):
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=int(delay_s), nanos=int(delay_s % 1 * 1e9)))
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="qmatmul")
    refuse(context, grpc.StatusCode.UNAVAILABLE, "the queue is full", info, retry)


def test_a_full_server_is_tried_again_after_its_delay(fake):
    fake.answer = lambda method, request, context: _full(context, 0.02) if len(fake.calls) <= 2 else b""
    with qmatmul.Client(fake.target) as client:
        assert client.devices() == []
    assert len(fake.calls) == 3


def test_a_refused_call_is_tried_so_often(fake):
    fake.answer = lambda method, request, context: _full(context, 0.001)
    retries = qmatmul.RetryOptions(attempts_max=3, backoff_s=0.001)
    with qmatmul.Client(fake.target, retries=retries) as client, pytest.raises(qmatmul.Unavailable) as caught:
        client.devices()
    assert caught.value.reason == "QUEUE_FULL" and caught.value.retry_after == pytest.approx(0.001)
    assert len(fake.calls) == caught.value.attempts == 3


def test_the_budget_ends_retries(fake):
    fake.answer = lambda method, request, context: _full(context, 0.0005)
    retries = qmatmul.RetryOptions(backoff_s=0, budget_max=6, budget_per_call=0.25)
    with qmatmul.Client(fake.target, retries=retries) as client:
        for _ in range(8):
            with pytest.raises(qmatmul.Unavailable):
                client.devices()
    assert len(fake.calls) == 8 + 6 + 1  # eight calls, six tokens, and eight quarters less the one at the top


def test_no_retry_past_the_deadline(fake):
    fake.answer = lambda method, request, context: _full(context, 5)
    with qmatmul.Client(fake.target) as client, pytest.raises(qmatmul.Unavailable) as caught:
        client.devices(timeout_s=1)
    assert caught.value.retry_after == 5 and len(fake.calls) == 1


def test_a_lost_connection_is_tried_again_where_twice_is_as_good_as_once(fake):
    fake.answer = lambda method, request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "reset")
    w = np.zeros((2, 2), np.int8)
    calls = [
        (lambda c: c.devices(), 3),
        (lambda c: c.matmul(w, "w", out="INT32"), 3),
        (lambda c: c.get_weight("w"), 3),
        (lambda c: c.delete_weight("w"), 1),
        (lambda c: c.health(), 1),
    ]
    retries = qmatmul.RetryOptions(attempts_max=3, backoff_s=0.001)
    for call, attempts in calls:
        with qmatmul.Client(fake.target, retries=retries) as client, pytest.raises(qmatmul.Unavailable) as caught:
            call(client)
        assert caught.value.retry_after is None and caught.value.attempts == attempts


def test_nobody_listens():
    with qmatmul.Client("127.0.0.1:1") as client, pytest.raises(qmatmul.Unavailable) as caught:
        client.devices(timeout_s=5)
    assert caught.value.attempts == 5


def test_waits_grow_to_a_limit_and_begin_at_nothing():
    options = qmatmul.RetryOptions(
        attempts_max=100, backoff_s=0.01, backoff_max_s=0.04, budget_max=1e6, seed=5
    )
    policy, same = RetryPolicy(options), RetryPolicy(options)
    refusal = qmatmul.Unavailable("full", reason="QUEUE_FULL", retry_after=0.005)
    for attempts, longest in ((1, 0.01), (2, 0.02), (3, 0.04), (9, 0.04)):
        waits = [policy.wait_s(refusal, Repeatable.REFUSED, attempts, 60) for _ in range(300)]
        assert waits == [same.wait_s(refusal, Repeatable.REFUSED, attempts, 60) for _ in range(300)]
        assert 0.005 <= min(waits) < 0.005 + longest / 10 and 0.005 + 0.9 * longest < max(waits) <= 0.005 + longest
    assert policy.wait_s(refusal, Repeatable.REFUSED, 1, 0.005) is None  # no time left
    assert policy.wait_s(refusal, Repeatable.NEVER, 1, 60) is None
    assert policy.wait_s(qmatmul.ResourceExhausted("x", retry_after=1), Repeatable.IDEMPOTENT, 1, 60) is None


def test_a_slow_server_meets_the_deadline(fake):
    import threading

    release = threading.Event()
    fake.answer = lambda method, request, context: release.wait(5) and b"" or b""
    with qmatmul.Client(fake.target, timeout_s=0.1) as client, pytest.raises(qmatmul.DeadlineExceeded):
        client.devices()
    release.set()
