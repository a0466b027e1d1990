"""Rows of the seeds table that are seen from Python; ctest registers each by its row's name."""
import importlib.util
import os
import re
import sys
import time
import types

import numpy as np
import pytest
import qmatmul

import check
import job
from conftest import ROOT
from model import forward, load_model, load_tokenizer
from server_process import ServerProcess


def test_F1_python_torch_int_mm(client, weight_id):
    rng = np.random.default_rng(1)
    w = rng.integers(-128, 128, (4096, 4096), np.int8)
    # Scales and a bias, which the helper must leave alone.
    client.register_weight(weight_id, w, layout="KN", scales=0.5, bias=np.ones(4096, np.float32))
    for m in (1, 2, 3, 7, 8, 63, 64, 65, 84, 88):
        a = rng.integers(-128, 128, (m, 4096), np.int8)
        got = qmatmul.torch_int_mm(a, weight_id, client=client)
        assert got.dtype == np.int32 and got.flags.writeable
        np.testing.assert_array_equal(got, check.integer_product(a, w), err_msg=f"M={m}")


class _Tensor:
    """What torch_int_mm uses of a torch tensor."""

    device = "meta:7"

    def __init__(self, array):
        self.array = array
        self.moved_to = None

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array

    def to(self, device):
        self.moved_to = device
        return self


def test_F1_python_torch_tensors(client, weight_id, monkeypatch):
    w = np.arange(-10, 10, dtype=np.int8).reshape(5, 4)
    client.register_weight(weight_id, w, layout="KN")
    a = np.arange(15, dtype=np.int8).reshape(3, 5)
    expected = a.astype(np.int32) @ w.astype(np.int32)
    stand_in = types.SimpleNamespace(Tensor=_Tensor, from_numpy=_Tensor)
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    got = qmatmul.torch_int_mm(_Tensor(a), weight_id, client=client)
    np.testing.assert_array_equal(got.array, expected)
    assert got.moved_to == "meta:7"
    assert isinstance(qmatmul.torch_int_mm(a, weight_id, client=client), np.ndarray)


if importlib.util.find_spec("torch"):  # 2 GB that build/venv goes without; the stand-in above is always there

    def test_F1_python_real_torch(client, weight_id):
        import torch

        w = np.arange(-10, 10, dtype=np.int8).reshape(5, 4)
        client.register_weight(weight_id, w, layout="KN")
        a = torch.arange(15, dtype=torch.int8).reshape(3, 5)
        got = qmatmul.torch_int_mm(a, weight_id, client=client)
        assert got.dtype == torch.int32
        np.testing.assert_array_equal(got.numpy(), a.numpy().astype(np.int32) @ w.astype(np.int32))


def test_B3_minilm_w8a8(client):
    folder = ROOT / "deploy/minilm"
    documents = [line.split("\t")[1] for line in (folder / "packages.tsv").read_text().splitlines()][:60]
    queries = (folder / "queries.txt").read_text().splitlines()[:4]
    outcome, _ = job.run(client, documents, queries)
    service = outcome.service
    assert (service.sums.wrong, service.floats.wrong) == (0, 0)
    assert service.floats.elements > 10_000_000 and service.sums.elements > 1_000_000
    assert outcome.cosine_min >= 0.99 and outcome.cosine_mean >= 0.997
    assert outcome.top1 >= 3
    names = [weight.id for weight in client.list_weights() if weight.id.startswith("minilm-")]
    assert len(names) == 37  # 36 layers and the index


SEQUENCE = 128  # tokens, as tract times the model
RATIO_MIN = 0.95
ROUNDS = 15


def _hidden_states(client, model, ids):
    """The model's layers over `ids`, linear ones by the service; what came out, milliseconds in all and of the kernels
    alone, and the kernels."""
    kernels, compute_ns = set(), []

    def linear(x, indices):
        results = client.matmul(x, [model.linears[i].name for i in indices], out="F32", dynamic=True)
        kernels.update(result.execution.kernel for result in results)
        compute_ns.append(results[0].execution.compute_ns)
        return [result.array for result in results]

    start = time.perf_counter()
    states = forward(model, ids, np.ones_like(ids), linear)
    return states, (time.perf_counter() - start) * 1e3, sum(compute_ns) / 1e6, kernels


def test_T6_minilm_gemv_and_routed(client, tmp_path, capsys):
    """tract times MiniLM with its vector kernel for everything, and with the right kernel for each shape."""
    vector = re.compile(r"\.1x\d+x\d+$")
    kernels = [k for k in client.kernels() if k.supported and k.weight == "INT8" and k.arithmetic == "W8A8"]
    others = [k.name for k in kernels if not vector.search(k.name)]
    if len(others) == len(kernels):
        pytest.skip("no vector kernel runs on this machine")
    model, tokenizer = load_model(), load_tokenizer()
    tokenizer.no_truncation()
    text = (ROOT / "deploy/minilm/packages.tsv").read_text()
    ids = np.array([tokenizer.encode(text[:10_000]).ids[:SEQUENCE]], np.int64)
    assert ids.shape == (1, SEQUENCE)
    server = ServerProcess(os.environ["QMATMUL_SERVER_BIN"], tmp_path / "log", ["--disable-kernels", ",".join(others)])
    try:
        server.wait_until_serving()
        with qmatmul.Client(server.target) as gemv_only:
            for one in (client, gemv_only):
                for layer in model.linears:
                    one.register_weight(layer.name, layer.weight, layout="KN", scales=layer.scales, bias=layer.bias,
                                        replace=True)
                _hidden_states(one, model, ids)  # warm up
            rounds = [(_hidden_states(gemv_only, model, ids), _hidden_states(client, model, ids)) for _ in range(ROUNDS)]
    finally:
        server.stop()
    (gemv_states, _, _, gemv_kernels), (routed_states, _, _, routed_kernels) = rounds[0]
    assert all(vector.search(name) for name in gemv_kernels) and not any(map(vector.search, routed_kernels))
    assert gemv_states.tobytes() == routed_states.tobytes(), "every kernel gives the same bytes"
    # What is not the kernels' is the same work on either side, and what else a machine does only ever adds to a time.
    rest_ms = min(all_ms - kernels_ms for one in rounds for _, all_ms, kernels_ms, _ in one)
    gemv_ms, routed_ms = (rest_ms + min(one[side][2] for one in rounds) for side in (0, 1))
    ratio = gemv_ms / routed_ms
    with capsys.disabled():
        print(f"\nT6 MiniLM, {SEQUENCE} tokens: {gemv_ms:.1f} ms gemv only ({', '.join(sorted(gemv_kernels))}), "
              f"{routed_ms:.1f} ms routed ({', '.join(sorted(routed_kernels))}), ratio {ratio:.2f}")
    assert ratio >= RATIO_MIN
