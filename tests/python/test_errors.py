"""Every status code becomes its exception, with what the details say."""
import grpc
import pytest
import qmatmul
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

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


def test_the_budget_ends_retries(fake):
    fake.answer = lambda method, request, context: _full(context, 0.001)
    with qmatmul.Client(fake.target) as client:
        with pytest.raises(qmatmul.Unavailable) as caught:
            client.devices()
        assert caught.value.reason == "QUEUE_FULL" and caught.value.retry_after == pytest.approx(0.001)
        first = len(fake.calls)
        assert first == 5  # 10 tokens, none below half
        with pytest.raises(qmatmul.Unavailable):
            client.devices()
        assert len(fake.calls) == first + 1  # spent: one attempt, no retry


def test_no_retry_past_the_deadline(fake):
    fake.answer = lambda method, request, context: _full(context, 5)
    with qmatmul.Client(fake.target) as client, pytest.raises(qmatmul.Unavailable) as caught:
        client.devices(timeout_s=1)
    assert caught.value.retry_after == 5 and len(fake.calls) == 1


def test_unavailable_without_retry_info_is_not_retried():
    with qmatmul.Client("127.0.0.1:1") as client, pytest.raises(qmatmul.Unavailable) as caught:
        client.devices(timeout_s=5)
    assert caught.value.retry_after is None


def test_a_slow_server_meets_the_deadline(fake):
    import threading

    release = threading.Event()
    fake.answer = lambda method, request, context: release.wait(5) and b"" or b""
    with qmatmul.Client(fake.target, timeout_s=0.1) as client, pytest.raises(qmatmul.DeadlineExceeded):
        client.devices()
    release.set()
