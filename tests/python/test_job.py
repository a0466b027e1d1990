"""The job's own arithmetic and verdict: hand-worked numbers, and proof that it can fail."""
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import qmatmul

import check
import job
from conftest import ROOT
from model import Linear


def test_quantize_rows_by_hand():
    x = np.array(
        [
            [127.0, 0.5, 1.5, -2.5],  # scale 1: halves go to even
            [0.0, -0.0, 0.0, 0.0],
            [2.0**-101, 0.0, 0.0, 0.0],  # below 2^-100: zeros, scale 0
            [2.0**-100, -(2.0**-100), 0.0, 0.0],  # the first that is not
            [-254.0, 1.0, 3.0, 254.0],  # scale 2
        ],
        np.float32,
    )
    q, scales = check.quantize_rows(x)
    assert q.tolist() == [[127, 0, 2, -2], [0] * 4, [0] * 4, [127, -127, 0, 0], [-127, 0, 2, 127]]
    assert scales.tolist() == [1, 0, 0, float(np.float32(2.0**-100) / np.float32(127)), 2]
    assert scales.dtype == np.float32


def test_integer_product_where_float32_would_be_wrong():
    a = np.full((1, 4096), 127, np.int8)
    a[0, 0] = 126
    w = np.full((4096, 1), 127, np.int8)
    w[1, 0] = 126
    exact = 127 * 127 * 4094 + 126 * 127 + 127 * 126
    assert exact == 66064130 and check.integer_product(a, w).tolist() == [[exact]]
    low = np.full((1, 131071), -128, np.int8)
    assert check.integer_product(low, low.T).tolist() == [[131071 * 16384]]


def test_epilogue_rounds_each_step():
    # 16777217 is not a float32: it becomes 16777216 before any scale is applied.
    acc = np.array([[16777217, -3]], np.int32)
    sw, sa = np.array([3, 0.5], np.float32), np.array([0.25], np.float32)
    assert check.epilogue(acc, sw, sa, None).tolist() == [[16777216 * 0.75, -0.375]]
    bias = np.array([1, 1], np.float32)
    assert check.epilogue(acc, sw, sa, bias).tolist() == [[float(np.float32(16777216 * 0.75 + 1)), 0.625]]


def test_wrong_elements_are_bits():
    zero = np.array([0.0, 1.0], np.float32)
    assert check.wrong_elements(zero, zero) == 0
    assert check.wrong_elements(-zero, zero) == 2  # -0 is not +0
    assert check.wrong_elements(zero.astype(np.float64), zero) == 2
    assert check.wrong_elements(zero[:1], zero) == 2


class _NumpyClient:
    """Answers as the service should, but for one element of every `wrong_every`-th float and int reply."""

    def __init__(self, wrong_bits: int = 0) -> None:
        self.weights = {}
        self.wrong_bits = wrong_bits

    def register_weight(self, name, data, *, layout, scales, bias, replace):
        self.weights[name] = (data, scales, bias)

    def matmul(self, x, names, *, out, dynamic=False):
        return [self._one(x, *self.weights[name], dynamic) for name in names]

    def _one(self, x, w, scales, bias, dynamic):
        execution = qmatmul.Execution("", "", 1, "cpu", "numpy", "", 1, 0, 0, 1, False, 0)
        if not dynamic:
            return qmatmul.Result(check.integer_product(x, w), execution)
        q, sa = check.quantize_rows(x)
        array = check.epilogue(check.integer_product(q, w), scales, sa, bias)
        array.view(np.uint32)[-1, -1] ^= self.wrong_bits
        return qmatmul.Result(array, execution)


@pytest.mark.parametrize("wrong_bits, wrong", [(0, 0), (1, 12)])
def test_one_wrong_bit_a_reply_is_seen(wrong_bits, wrong):
    rng = np.random.default_rng(3)
    linear = Linear("l", rng.integers(-128, 128, (8, 5), np.int8), np.ones(5, np.float32), np.ones(5, np.float32))
    service = job.Service(_NumpyClient(wrong_bits), [linear])
    service.register(linear, "KN")
    for _ in range(12):
        service.linear(rng.standard_normal((3, 8), np.float32), [0])
    assert (service.calls, service.sums.elements, service.floats.elements) == (12, 2 * 15, 12 * 15)
    assert (service.sums.wrong, service.floats.wrong) == (0, wrong)


def test_a_weight_that_is_not_what_was_registered_is_seen():
    linear = Linear("l", np.ones((8, 5), np.int8), np.ones(5, np.float32), np.zeros(5, np.float32))
    client = _NumpyClient()
    service = job.Service(client, [linear])
    service.register(dataclasses.replace(linear, weight=2 * linear.weight), "KN")
    service.linear(np.ones((1, 8), np.float32), [0])
    assert (service.sums.wrong, service.floats.wrong) == (5, 5)


def test_the_parts_of_the_time_sum_to_all_of_it():
    service = job.Service(None, [], call_s=5.0, client_s=1.0, queue_s=0.5, kernel_s=2.0, check_s=10.0, calls=3)
    times = service.times(17.0, onnxruntime_s=4.0)
    assert times["wall_s"] == 7.0 and times["onnxruntime_s"] == 4.0 and times["calls"] == 3
    assert [times[part + "_s"] for part in ("numpy", "client", "wire", "queue", "kernel")] == [2.0, 1.0, 1.5, 0.5, 2.0]


def test_products_of_one_run_count_its_time_once():
    service = job.Service(None, [])
    one = qmatmul.Execution("", "", 1, "cpu", "numpy", "", 1, 0, 300, 1000, False, 0)
    service._split([one, one, one])
    assert (round(service.kernel_s * 1e9), round(service.queue_s * 1e9)) == (1000, 300)
    service._split([one, dataclasses.replace(one, compute_ns=2000)])
    assert (round(service.kernel_s * 1e9), round(service.queue_s * 1e9)) == (4000, 600)


GOOD = dict(cosine_min=0.99, cosine_mean=0.997, top1=15, queries=20, kernel_gops=1.0)


@pytest.mark.parametrize(
    "change, wrong, miss",
    [
        ({}, 0, None),  # every figure exactly at its bound
        ({}, 1, "1 results are wrong"),
        ({"cosine_min": 0.9899}, 0, "cosine min"),
        ({"cosine_mean": 0.9969}, 0, "cosine mean"),
        ({"cosine_min": float("nan")}, 0, "cosine min"),
        ({"top1": 14}, 0, "top-1"),
    ],
)
def test_each_bound_is_held(change, wrong, miss):
    service = job.Service(None, [], sums=check.Tally(0, 1), floats=check.Tally(wrong, 9))
    misses = job.Outcome(service=service, **{**GOOD, **change}).misses()
    assert (len(misses) == 1 and miss in misses[0]) if miss else misses == []


def test_a_server_that_does_not_start_fails_the_job(tmp_path):
    command = [sys.executable, ROOT / "deploy/minilm/job.py", "--server", "/bin/false", "--log", tmp_path / "log"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "main job failed: the server is not serving" in done.stderr and "main job done" not in done.stdout
