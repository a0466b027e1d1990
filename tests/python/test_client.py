"""The package against a real server: every method, every operand type, oracles in numpy."""
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import qmatmul

import check  # deploy/minilm: docs/numerics.md in numpy
from conftest import ROOT


def int8(rng, *shape):
    return rng.integers(-128, 128, shape, np.int8)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def exact(a, w):
    return (a.astype(np.int64) @ w.astype(np.int64)).astype(np.int32)


# Weights


def test_register_uploads_once(client, weight_id, rng):
    w, scales, bias = int8(rng, 1500, 900), np.ones(900, np.float16), np.zeros(900, np.float32)
    seen = []
    first = client.register_weight(
        weight_id, w, layout="KN", scales=scales, bias=bias, progress=lambda done, total: seen.append((done, total))
    )
    total = 1500 * 900 + 2 * 900 + 4 * 900
    assert not first.already_registered and first.uploaded_bytes == total
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == 4 and seen[-1] == (total, total)  # 1 MiB + rest of the data, scales, bias
    weight = first.weight
    assert (weight.id, weight.dtype, weight.layout, weight.k, weight.n) == (weight_id, "INT8", "KN", 1500, 900)
    assert (weight.scale_dtype, weight.scale_count, weight.bias_count) == ("F16", 900, 900)
    assert weight.digest == qmatmul.plain_weight(w, "KN", scales, bias).digest()
    assert weight.copies[0].bytes >= 1500 * 900

    seen.clear()
    packs = client.statistics().packs
    again = client.register_weight(
        weight_id, w, layout="KN", scales=scales, bias=bias, progress=lambda *at: seen.append(at)
    )
    assert again.already_registered and again.uploaded_bytes == 0 and seen == [(total, total)]
    assert client.statistics().packs == packs
    assert client.get_weight(weight_id) == again.weight


def test_small_chunks_are_the_same_weight(client, weight_id, rng):
    w = int8(rng, 33, 17)
    weight = client.register_weight(weight_id, w, layout="NK", chunk_bytes=7).weight
    assert (weight.k, weight.n) == (17, 33)
    a = int8(rng, 3, 17)
    np.testing.assert_array_equal(client.matmul(a, weight_id, out="INT32").array, exact(a, w.T))


def test_a_name_moves_only_when_told(client, weight_id, rng):
    one, two = int8(rng, 8, 4), int8(rng, 8, 4)
    first = client.register_weight(weight_id, one, layout="KN").weight
    with pytest.raises(qmatmul.AlreadyExists) as caught:
        client.register_weight(weight_id, two, layout="KN")
    assert caught.value.reason == "WEIGHT_EXISTS"
    assert caught.value.metadata["current_digest"] == first.digest
    with pytest.raises(qmatmul.AlreadyExists):
        client.register_weight(weight_id, two, layout="KN", replace_digest="0" * 64)
    second = client.register_weight(weight_id, two, layout="KN", replace_digest=first.digest).weight
    assert second.generation > first.generation
    third = client.register_weight(weight_id, one, layout="KN", replace=True).weight
    assert third.digest == first.digest
    a = int8(rng, 2, 8)
    result = client.matmul(a, weight_id, out="INT32")
    assert result.execution.digest == first.digest and result.execution.generation == third.generation
    np.testing.assert_array_equal(result.array, exact(a, one))


def test_list_is_paged_and_delete_says_what_it_frees(client, rng):
    names = [f"page-{i}" for i in range(5)]
    for name in names:
        client.register_weight(name, int8(rng, 4, 4), layout="KN")
    listed = [weight.id for weight in client.list_weights(page_size=2)]
    assert [name for name in listed if name.startswith("page-")] == names and listed == sorted(listed)
    for name in names:
        assert client.delete_weight(name) > 0
        with pytest.raises(qmatmul.NotFound):
            client.get_weight("weights/" + name)


# Products


@pytest.mark.parametrize("layout", ["KN", "NK"])
@pytest.mark.parametrize("m, k, n", [(0, 5, 3), (1, 1, 1), (1, 384, 65), (7, 333, 517), (64, 130, 100)])
def test_int32_sums(client, weight_id, rng, layout, m, k, n):
    w = int8(rng, k, n)
    client.register_weight(weight_id, w if layout == "KN" else w.T, layout=layout)
    a = int8(rng, m, k)
    result = client.matmul(a, weight_id, out="INT32")
    assert result.array.dtype == np.int32 and result.array.shape == (m, n)
    np.testing.assert_array_equal(result.array, exact(a, w))
    assert result.execution.weight == f"weights/{weight_id}" and result.execution.device == "cpu"
    u = rng.integers(0, 256, (m, k), np.uint8)
    zero_points = rng.integers(0, 256, m)
    got = client.matmul(u, weight_id, out=np.int32, zero_points=zero_points if m else None).array
    np.testing.assert_array_equal(got, exact(u.astype(np.int64) - zero_points[:, None], w))


def test_overflow_rules(client, weight_id, rng):
    w, a = int8(rng, 64, 32), int8(rng, 9, 64)
    client.register_weight(weight_id, w, layout="KN")
    acc = exact(a, w)
    saturated = client.matmul(a, weight_id, out="INT8")
    np.testing.assert_array_equal(saturated.array, acc.clip(-128, 127).astype(np.int8))
    assert saturated.execution.overflow == "SATURATE" and saturated.execution.overflow_count > 0
    wrapped = client.matmul(a, weight_id, out=qmatmul.Output("INT16", overflow="WRAP"))
    np.testing.assert_array_equal(wrapped.array, acc.astype(np.int16))
    bad = np.argwhere((acc < -128) | (acc > 127))[0]
    with pytest.raises(qmatmul.OutOfRange) as caught:
        client.matmul(a, weight_id, out=qmatmul.Output("INT8", overflow="ERROR"))
    assert caught.value.reason == "OVERFLOW"
    assert [caught.value.metadata["row"], caught.value.metadata["column"]] == [str(i) for i in bad]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_dynamic_float_in_and_out(client, weight_id, rng, kind):
    numpy_type = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    w = int8(rng, 256, 48)
    scales, bias = rng.random(48, np.float32), rng.standard_normal(48, np.float32)
    client.register_weight(weight_id, w, layout="KN", scales=scales, bias=bias)
    x = rng.standard_normal((5, 256), np.float32).astype(numpy_type)
    x[3] = 0
    result = client.matmul(x, weight_id, out=kind, dynamic=True)
    q, sa = check.quantize_rows(x.astype(np.float32))
    expected = check.epilogue(check.integer_product(q, w), scales, sa, bias).astype(numpy_type)
    assert check.wrong_elements(result.array, expected) == 0
    if kind == "BF16":  # the same bits as uint16
        bits = client.matmul(x.view(np.uint16), weight_id, out="BF16", dynamic=True, dtype="BF16")
        assert bits.array.tobytes() == result.array.tobytes()
    relu = client.matmul(x, weight_id, out=qmatmul.Output("F32", activation="RELU", skip_bias=True), dynamic=True)
    plain = check.epilogue(check.integer_product(q, w), scales, sa, None)
    np.testing.assert_array_equal(relu.array, np.maximum(plain, 0))


def test_static_scales_and_scaled_int8_output(client, weight_id, rng):
    w, x = int8(rng, 64, 16), rng.standard_normal((4, 64), np.float32)
    client.register_weight(weight_id, w, layout="KN", scales=0.25)
    out = qmatmul.Output("INT8", scale=8.0, zero_point=3)
    got = client.matmul(x, weight_id, out=out, scale=0.5, zero_points=-4).array
    q = np.clip(np.rint(x * np.float32(2)) - 4, -128, 127)  # section 4, static: 1/0.5 is exact
    y = exact(q + 4, w).astype(np.float32) * np.float32(0.25) * np.float32(0.5)
    expected = np.clip(np.rint(y * np.float32(1 / 8)) + 3, -128, 127).astype(np.int8)
    np.testing.assert_array_equal(got, expected)


def test_raw_sums_of_float_activations_carry_their_scales(client, weight_id, rng):
    w, x = int8(rng, 32, 8), rng.standard_normal((3, 32), np.float32)
    client.register_weight(weight_id, w, layout="KN")
    result = client.matmul(x, weight_id, out="INT32", dynamic=True)
    q, sa = check.quantize_rows(x)
    np.testing.assert_array_equal(result.array, exact(q, w))
    np.testing.assert_array_equal(result.activation_scales, sa)


def test_several_weights_share_one_activation(client, rng):
    shapes = {"shared-q": 16, "shared-k": 24, "shared-v": 8}
    weights = {name: int8(rng, 40, n) for name, n in shapes.items()}
    for name, w in weights.items():
        client.register_weight(name, w, layout="KN", scales=0.5)
    a = int8(rng, 6, 40)
    outs = ["INT32", "F32", qmatmul.Output("INT8", overflow="WRAP")]
    results = client.matmul(a, list(weights), out=outs)
    assert [r.execution.weight for r in results] == [f"weights/{name}" for name in weights]
    q, k, v = (exact(a, w) for w in weights.values())
    np.testing.assert_array_equal(results[0].array, q)
    np.testing.assert_array_equal(results[1].array, k.astype(np.float32) * np.float32(0.5))
    np.testing.assert_array_equal(results[2].array, v.astype(np.int8))
    same = client.matmul(a, ["shared-q"] * 16, out="INT32")
    assert len(same) == 16 and all((r.array == q).all() for r in same)
    for name in weights:
        client.delete_weight(name)


def test_every_kernel_gives_the_same_bytes(client, weight_id, rng):
    w, x = int8(rng, 300, 70), rng.standard_normal((9, 300), np.float32)
    client.register_weight(weight_id, w, layout="KN", scales=rng.random(70, np.float32))
    routed = client.matmul(x, weight_id, out="F32", dynamic=True).array.tobytes()
    usable = [
        kernel
        for kernel in client.kernels()
        if kernel.supported and not kernel.disabled and ".s8s8s32." in kernel.name  # 8-bit activations and weight
    ]
    assert [kernel.name for kernel in usable if kernel.name.startswith("cpu.scalar.")]
    for kernel in usable:
        result = client.matmul(x, weight_id, out="F32", dynamic=True, kernel=kernel.name)
        assert result.execution.kernel == kernel.name
        assert result.array.tobytes() == routed, kernel.name


# What the server is and did


def test_info(client, weight_id, rng):
    assert client.health() == "SERVING" and client.health("qmatmul.v1.MatMulService") == "SERVING"
    with pytest.raises(qmatmul.NotFound):
        client.health("no.such.Service")
    (cpu,) = [device for device in client.devices() if device.kind == "cpu"]
    assert cpu.id == "cpu" and cpu.threads >= 1 and cpu.state == "ready"
    names = [kernel.name for kernel in client.kernels()]
    assert len(set(names)) == len(names) >= 1
    client.register_weight(weight_id, int8(rng, 16, 8), layout="KN")
    before = client.statistics()
    client.matmul(int8(rng, 5, 16), weight_id, out="INT32")
    with pytest.raises(qmatmul.NotFound):
        client.matmul(int8(rng, 5, 16), "no-such-weight", out="INT32")
    after = client.statistics()
    assert (after.requests - before.requests, after.errors - before.errors) == (1, 1)
    assert (after.rows - before.rows, after.ops - before.ops) == (5, 2 * 5 * 16 * 8)
    assert sum(kernel.rows for kernel in after.kernels) >= 5


def test_explain_says_what_then_runs(client, weight_id, rng):
    client.register_weight(weight_id, int8(rng, 64, 64), layout="KN")
    explanation = client.explain(weight_id, 8, activations=np.int8)
    assert explanation.rule and [c.chosen for c in explanation.candidates].count(True) == 1
    result = client.matmul(int8(rng, 8, 64), weight_id, out="INT32")
    assert result.execution.kernel == explanation.kernel and result.execution.device == explanation.device


def test_the_example_runs(server):
    example = ROOT / "client/python/examples/first_call.py"
    assert len(example.read_text().splitlines()) <= 18
    done = subprocess.run([sys.executable, example, server.target], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(8, 64) by cpu.")


def test_headers_reach_the_server(fake):
    with qmatmul.Client(fake.target, metadata=(("authorization", "Bearer t"),)) as client:
        assert client.matmul(np.zeros((1, 2), np.int8), ["weights/a", "b"], out="INT32") == []
    assert fake.headers[0]["authorization"] == "Bearer t"
    assert fake.headers[0]["qmatmul-weight"] == "a"
