"""Arrays to messages and back, without a server. Expected bytes are worked out by hand."""
import hashlib
import sys

import ml_dtypes
import numpy as np
import pytest
import qmatmul
from qmatmul import dtypes, messages, records
from qmatmul.v1 import qmatmul_pb2 as pb


def activations(x, dtype=None, dynamic=False, scale=None, scale_dtype=None, zero_points=None):
    arrays = messages.Activations.of(x, dtype, dynamic, scale, scale_dtype, zero_points)
    tensor = pb.ActivationTensor()
    arrays.fill(tensor, 0, arrays.data.shape[0])
    return tensor


@pytest.mark.parametrize(
    "array, dtype, wire, data",
    [
        (np.array([[1, -1]], np.int8), None, pb.DATA_TYPE_INT8, b"\x01\xff"),
        (np.array([[1, 255]], np.uint8), None, pb.DATA_TYPE_UINT8, b"\x01\xff"),
        (np.array([[1.0]], "<f4"), None, pb.DATA_TYPE_F32, b"\0\0\x80\x3f"),
        (np.array([[1.0]], ">f4"), None, pb.DATA_TYPE_F32, b"\0\0\x80\x3f"),  # big-endian is turned
        (np.array([[1.0]], "<f2"), None, pb.DATA_TYPE_F16, b"\0\x3c"),
        (np.array([[1.0]], ml_dtypes.bfloat16), None, pb.DATA_TYPE_BF16, b"\x80\x3f"),
        (np.array([[0x3F80]], np.uint16), "BF16", pb.DATA_TYPE_BF16, b"\x80\x3f"),
        (np.array([[1, 2], [3, 4]], np.int8).T, None, pb.DATA_TYPE_INT8, b"\x01\x03\x02\x04"),  # strides
        (np.zeros((0, 3), np.int8), None, pb.DATA_TYPE_INT8, b""),
    ],
)
def test_activation_bytes(array, dtype, wire, data):
    tensor = activations(array, dtype)
    assert (tensor.dtype, list(tensor.shape), tensor.data) == (wire, list(array.shape), data)
    assert tensor.WhichOneof("quantization") is None


@pytest.mark.parametrize(
    "array, kwargs, reason",
    [
        (np.zeros(3, np.int8), {}, "SHAPE"),
        (np.zeros((1, 2, 3), np.int8), {}, "SHAPE"),
        (np.zeros((1, 2)), {}, "DTYPE_UNKNOWN"),  # float64 is never rounded silently
        (np.zeros((1, 2), np.uint16), {}, "DTYPE_UNKNOWN"),  # bits of what?
        (np.zeros((1, 2), object), {}, "DTYPE_UNKNOWN"),
        (np.zeros((1, 2), np.float32), {"dtype": "BF16"}, "DTYPE_MISMATCH"),
        (np.zeros((1, 2), np.float32), {"dtype": "F64"}, "DTYPE_UNKNOWN"),
        (np.zeros((1, 2), np.float32), {"dynamic": True, "scale": 1.0}, "QUANTIZATION_SPEC"),
        (np.zeros((1, 2), np.float32), {"scale": np.zeros(1)}, "DTYPE_UNKNOWN"),
        (np.zeros((1, 2), np.float32), {"scale": np.zeros(1, np.int8)}, "SCALE_DTYPE"),
        (np.zeros((1, 2), np.float32), {"scale": np.ones((1, 1), np.float32)}, "SCALE_DTYPE"),
    ],
)
def test_activations_refused_here(array, kwargs, reason):
    with pytest.raises(qmatmul.InvalidArgument) as caught:
        activations(array, **kwargs)
    assert caught.value.reason == reason


def test_quantization_is_what_was_said():
    x = np.zeros((2, 2), np.float32)
    assert activations(x, dynamic=True).WhichOneof("quantization") == "dynamic"
    static = activations(x, scale=0.5, zero_points=-4)
    assert static.static_scales.scales == pb.Scales(dtype=pb.DATA_TYPE_F32, data=b"\0\0\0\x3f")
    assert list(static.zero_points) == [-4]
    rows = activations(x, scale=np.array([1, 2], np.float16), zero_points=np.array([1, 2]))
    assert rows.static_scales.scales == pb.Scales(dtype=pb.DATA_TYPE_F16, data=b"\0\x3c\0\x40")
    assert list(rows.zero_points) == [1, 2]
    bits = activations(x, scale=np.array([0x3F80], np.uint16), scale_dtype="BF16")
    assert bits.static_scales.scales == pb.Scales(dtype=pb.DATA_TYPE_BF16, data=b"\x80\x3f")


def test_arithmetic_is_only_filled_in_where_nothing_else_is_meant():
    def arithmetic(**kwargs):
        return qmatmul.Request(np.zeros((1, 2), np.float32), "w", "F32", **kwargs).prepare().message().options.arithmetic

    assert arithmetic(dynamic=True) == pb.ARITHMETIC_W8A8
    assert arithmetic(scale=1.0) == pb.ARITHMETIC_W8A8
    assert arithmetic() == pb.ARITHMETIC_UNSPECIFIED  # the server asks for it by name
    assert arithmetic(arithmetic="W8A32") == pb.ARITHMETIC_W8A32


def test_output_specs():
    out = qmatmul.Output("INT8", overflow="WRAP", scale=0.5, zero_point=-3, activation="RELU", top_k=2, skip_bias=True)
    spec = messages.output_spec(out)
    assert spec == pb.OutputSpec(
        dtype=pb.DATA_TYPE_INT8, overflow=pb.OVERFLOW_WRAP, scale=0.5, zero_point=-3,
        activation=pb.ACTIVATION_RELU, top_k=2, skip_bias=True,
    )
    plain = messages.output_spec(np.float16)
    assert plain == pb.OutputSpec(dtype=pb.DATA_TYPE_F16)
    assert not plain.HasField("scale") and not plain.HasField("zero_point")
    assert [s.dtype for s in messages.output_specs("F32", 2)] == [pb.DATA_TYPE_F32] * 2
    assert [s.dtype for s in messages.output_specs(["F32", np.int32], 2)] == [pb.DATA_TYPE_F32, pb.DATA_TYPE_INT32]
    for bad in (qmatmul.Output("INT8", overflow="CLIP"), qmatmul.Output("F32", activation="UNSPECIFIED")):
        with pytest.raises(qmatmul.InvalidArgument) as caught:
            messages.output_spec(bad)
        assert caught.value.reason == "ENUM_UNKNOWN"


def test_results_are_views_of_the_reply():
    output = pb.OutputTensor(dtype=pb.DATA_TYPE_BF16, shape=[1, 2], data=b"\x80\x3f\x00\x40", indices=b"\1\0\0\0\7\0\0\0")
    output.activation_scales.dtype = pb.DATA_TYPE_F32
    output.activation_scales.data = b"\0\0\0\x3f"
    output.execution.overflow = pb.OVERFLOW_SATURATE
    output.execution.kernel = "cpu.x"
    result = messages.result(output)
    assert result.array.dtype == ml_dtypes.bfloat16 and result.array.astype(float).tolist() == [[1.0, 2.0]]
    assert not result.array.flags.writeable
    assert result.indices.tolist() == [[1, 7]]
    assert result.activation_scales.tolist() == [0.5]
    assert result.execution.overflow == "SATURATE" and result.execution.kernel == "cpu.x"


def test_unset_fields_and_nested_records():
    message = pb.ExplainResponse(kernel="a", candidates=[pb.Candidate(kernel="a", predicted_ns=0), pb.Candidate()])
    explanation = records.from_message(records.Explanation, message)
    assert [c.predicted_ns for c in explanation.candidates] == [0, None]
    device = records.from_message(records.Device, pb.Device(id="cpu", features=["avx2", "fma"]))
    assert device.features == ("avx2", "fma")
    unknown = records.from_message(records.Execution, pb.Execution.FromString(b"\x30\x63"))  # overflow = 99
    assert unknown.overflow == "99"


def test_digest_is_the_sha256_of_the_documented_bytes():
    w = np.array([[1, -2, 3], [4, 5, -6]], np.int8)
    scales = np.array([0.5, 1, 2], np.float32)
    bias = np.array([1, 0, -1], np.float32)
    weight = qmatmul.plain_weight(w, "KN", scales, bias)
    expected = b"qmatmul.weight.v1;INT8;KN;2;3;0;F32;3;3\n" + w.tobytes() + scales.tobytes() + bias.tobytes()
    assert weight.digest() == hashlib.sha256(expected).hexdigest()
    assert (weight.k, weight.n, weight.bytes_total()) == (2, 3, 6 + 12 + 12)
    assert b"".join(weight.chunks(4)) == expected.split(b"\n", 1)[1]
    assert max(map(len, weight.chunks(4))) == 4
    turned = qmatmul.plain_weight(np.ascontiguousarray(w.T), "NK")
    bare = b"qmatmul.weight.v1;INT8;NK;2;3;0;NONE;0;0\n" + w.T.tobytes()
    assert (turned.k, turned.n) == (2, 3)
    assert turned.digest() == hashlib.sha256(bare).hexdigest()
    assert qmatmul.plain_weight(w.T, "NK").digest() == turned.digest()  # strides do not matter


@pytest.mark.parametrize(
    "args, reason",
    [
        ((np.zeros((2, 2), np.uint8), "KN"), "DTYPE_UNKNOWN"),
        ((np.zeros(2, np.int8), "KN"), "SHAPE"),
        ((np.zeros((2, 2), np.int8), "NN"), "LAYOUT_MISSING"),
        ((np.zeros((2, 2), np.int8), ""), "LAYOUT_MISSING"),
        ((np.zeros((2, 2), np.int8), "KN", np.zeros(2)), "DTYPE_UNKNOWN"),
        ((np.zeros((2, 2), np.int8), "KN", None, np.zeros(2, np.float16)), "DTYPE_MISMATCH"),
    ],
)
def test_weights_refused_here(args, reason):
    with pytest.raises(qmatmul.InvalidArgument) as caught:
        qmatmul.plain_weight(*args)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "dtype, values, expected",
    [
        ("INT4", [[-8, 7]], "f0"),
        ("INT4", [[0, 1, -1], [1, -7, 0]], "9807" "1908"),  # an odd line ends with a zero nibble
        ("INT2", [[-1, 0, 1, 0]], "64"),
        ("INT2", [[1, 1, 1, 1, 1], [0, 0, 0, 0, -1]], "aa02" "5500"),
    ],
)
def test_packed_bytes(dtype, values, expected):
    packed = qmatmul.pack(np.array(values, np.int8), dtype)
    assert packed.dtype == np.uint8 and packed.tobytes().hex() == expected


def test_packed_weights_have_their_identity_and_spec():
    w = np.array([[-8, 7, 0], [1, -1, -7]], np.int8)
    scales = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    weight = qmatmul.plain_weight(w, "KN", scales, dtype="INT4", group_size=1)
    expected = b"qmatmul.weight.v1;INT4;KN;2;3;1;F32;6;0\n" + bytes.fromhex("f0087901") + scales.tobytes()
    assert weight.digest() == hashlib.sha256(expected).hexdigest()
    spec = weight.spec("w")
    assert (spec.dtype, spec.group_size, spec.k, spec.n, spec.scale_count) == (pb.DATA_TYPE_INT4, 1, 2, 3, 6)
    assert b"".join(weight.chunks(1 << 20)) == expected.split(b"\n", 1)[1]
    ternary = qmatmul.plain_weight(np.sign(w), "NK", dtype="INT2")
    assert (ternary.k, ternary.n, ternary.bytes_total()) == (3, 2, 2)


@pytest.mark.parametrize(
    "values, kwargs, reason",
    [
        ([[8]], {"dtype": "INT4", "group_size": 1}, "WEIGHT_VALUE"),
        ([[-9]], {"dtype": "INT4", "group_size": 1}, "WEIGHT_VALUE"),
        ([[0, -2]], {"dtype": "INT2"}, "WEIGHT_VALUE"),
        ([[0]], {"dtype": "INT16"}, "DTYPE_UNKNOWN"),
        ([[0, 0]] * 4, {"dtype": "INT4", "group_size": 2, "scales": np.ones((4, 2), np.float32)}, "SCALE_COUNT"),
        ([[0, 0]] * 4, {"scales": np.ones((2, 2), np.float32)}, "SCALE_DTYPE"),
    ],
)
def test_packed_weights_refused_here(values, kwargs, reason):
    with pytest.raises(qmatmul.InvalidArgument) as caught:
        qmatmul.plain_weight(np.array(values, np.int8), "KN", **kwargs)
    assert caught.value.reason == reason


def test_names():
    assert messages.weight_names("w") == ["weights/w"]
    assert messages.weight_names(["weights/w", "v"]) == ["weights/w", "weights/v"]
    assert dtypes.from_enum(pb.DATA_TYPE_INT4) == "INT4"


def test_bf16_is_its_bits_without_ml_dtypes(monkeypatch):
    import importlib

    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    try:
        bare = importlib.reload(dtypes)
        assert bare.numpy_dtype("BF16") == np.uint16
        assert bare.to_wire(np.array([0x3F80], np.uint16), "BF16")[0] == "BF16"
        with pytest.raises(qmatmul.InvalidArgument):
            bare.to_wire(np.array([0x3F80], np.uint16))
    finally:
        monkeypatch.undo()
        importlib.reload(dtypes)
