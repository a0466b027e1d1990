"""Rows of the seeds table that are seen from Python; ctest registers each by its row's name."""
import importlib.util
import sys
import types

import numpy as np
import qmatmul

import check
import job
from conftest import ROOT


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
