"""What the server refuses, seen from Python: the class, the reason, and a good call after each."""
import numpy as np
import pytest
import qmatmul

X = np.zeros((2, 4), np.float32)
A = np.zeros((2, 4), np.int8)
NAN = np.full((2, 4), np.nan, np.float32)
HUGE = np.full((2, 4), 2.0**54, np.float32)

# (call, class, reason); "w" is int8 [4, 3] with scales and bias.
CALLS = [
    (lambda c: c.matmul(A, "no-such-weight", out="INT32"), qmatmul.NotFound, "WEIGHT_UNKNOWN"),
    (lambda c: c.matmul(A[:, :3], "w", out="F32"), qmatmul.InvalidArgument, "K_MISMATCH"),
    (lambda c: c.matmul(A, [], out="F32"), qmatmul.InvalidArgument, "WEIGHT_COUNT"),
    (lambda c: c.matmul(A, ["w"] * 17, out="F32"), qmatmul.InvalidArgument, "WEIGHT_COUNT"),
    (lambda c: c.matmul(A, ["w", "w"], out=["F32"]), qmatmul.InvalidArgument, "OUTPUT_COUNT"),
    (lambda c: c.matmul(A, "w", out="INT32"), qmatmul.InvalidArgument, "OUTPUT_SPEC"),  # a bias, and no skip_bias
    (lambda c: c.matmul(X, "w", out="F32"), qmatmul.InvalidArgument, "ARITHMETIC_MISSING"),
    (lambda c: c.matmul(X, "w", out="F32", arithmetic="W8A8"), qmatmul.InvalidArgument, "QUANTIZATION_SPEC"),
    (lambda c: c.matmul(A, "w", out="F32", dynamic=True), qmatmul.InvalidArgument, "QUANTIZATION_SPEC"),
    (lambda c: c.matmul(NAN, "w", out="F32", dynamic=True), qmatmul.InvalidArgument, "ACTIVATION_RANGE"),
    (lambda c: c.matmul(HUGE, "w", out="F32", dynamic=True), qmatmul.InvalidArgument, "ACTIVATION_RANGE"),
    (lambda c: c.matmul(X, "w", out="F32", scale=float("inf")), qmatmul.InvalidArgument, "SCALE_RANGE"),
    (lambda c: c.matmul(X, "w", out="F32", scale=0.0), qmatmul.InvalidArgument, "SCALE_RANGE"),
    (lambda c: c.matmul(X, "w", out="F32", scale=np.ones(3, np.float32)), qmatmul.InvalidArgument, "SCALE_COUNT"),
    (lambda c: c.matmul(A, "w", out="F32", zero_points=200), qmatmul.InvalidArgument, "ZERO_POINT_RANGE"),
    (lambda c: c.matmul(A, "w", out="F32", zero_points=[1, 2, 3]), qmatmul.InvalidArgument, "ZERO_POINT_COUNT"),
    (lambda c: c.matmul(A, "w", out="F32", kernel="cpu.none"), qmatmul.InvalidArgument, "KERNEL_UNKNOWN"),
    (lambda c: c.matmul(A, "w", out="F32", device="tpu"), qmatmul.InvalidArgument, "DEVICE_UNKNOWN"),
    (lambda c: c.matmul(A, "w", out="F32", device="cpu:7"), qmatmul.FailedPrecondition, "DEVICE_ABSENT"),
    (lambda c: c.get_weight("no-such-weight"), qmatmul.NotFound, "WEIGHT_UNKNOWN"),
    (lambda c: c.delete_weight("no-such-weight"), qmatmul.NotFound, "WEIGHT_UNKNOWN"),
    (lambda c: list(c.list_weights(page_size=-1)), qmatmul.InvalidArgument, "PAGE_SIZE"),
    (lambda c: c.register_weight("", A, layout="KN"), qmatmul.InvalidArgument, "WEIGHT_ID"),
    (lambda c: c.register_weight("a/b", A, layout="KN"), qmatmul.InvalidArgument, "WEIGHT_ID"),
    (lambda c: c.register_weight("v" * 129, A, layout="KN"), qmatmul.InvalidArgument, "WEIGHT_ID"),
    (lambda c: c.register_weight("v", A[:0], layout="KN"), qmatmul.InvalidArgument, None),  # K = 0
    (lambda c: c.register_weight("v", A, layout="KN", scales=np.ones(3, np.float32)), qmatmul.InvalidArgument, "SCALE_COUNT"),
    (lambda c: c.register_weight("v", A, layout="KN", scales=float("nan")), qmatmul.InvalidArgument, "SCALE_RANGE"),
    (
        lambda c: c.register_weight("v", A, layout="KN", bias=np.full(4, np.inf, np.float32)),
        qmatmul.InvalidArgument,
        "BIAS_RANGE",
    ),
    (
        lambda c: c.register_weight("v", np.ones((2048, 1025), np.int8), layout="KN", chunk_bytes=(1 << 20) + 1),
        qmatmul.InvalidArgument,
        "CHUNK_TOO_LARGE",
    ),
]


@pytest.mark.parametrize("call, cls, reason", CALLS, ids=[f"{i}-{row[2]}" for i, row in enumerate(CALLS)])
def test_refused_and_serving_on(client, call, cls, reason):
    w = np.arange(12, dtype=np.int8).reshape(4, 3)
    client.register_weight("w", w, layout="KN", scales=np.ones(3, np.float32), bias=np.ones(3, np.float32))
    with pytest.raises(cls) as caught:
        call(client)
    error = caught.value
    assert type(error) is cls and error.message
    assert error.reason == reason or (reason is None and error.reason)
    if cls is qmatmul.InvalidArgument:
        assert error.violations, f"no field named: {error}"
    good = client.matmul(np.ones((1, 4), np.int8), "w", out="F32").array
    assert good.tolist() == [[19.0, 23.0, 27.0]]


def test_a_message_over_the_limit_is_the_transports_own_refusal(server, client):
    big = np.zeros((65, 1 << 20), np.int8)  # over 64 MiB
    with qmatmul.Client(server.target, message_bytes_max=-1) as unlimited:
        with pytest.raises(qmatmul.ResourceExhausted) as caught:
            unlimited.matmul(big, "w", out="INT32")
    assert caught.value.reason == ""
    assert client.health() == "SERVING"
