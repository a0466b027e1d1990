"""The main job: sentence search over package descriptions, every matrix product of it computed by the service.

    python job.py --target 127.0.0.1:8500                     a server that is running
    python job.py --server build/release/bin/qmatmul-server   starts one on free loopback ports, and stops it

Registers the 36 int8 matrices of all-MiniLM-L6-v2, embeds packages.tsv and queries.txt (W8A8, dynamic per row,
float32 out with scales and bias), registers the quantized embeddings as one more weight, and lets the service
score the queries against them. Prints a table and exits with 1 when a figure misses its bound.
"""
from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import qmatmul

import check
from embed import embed, with_linear, with_onnxruntime
from model import Linear, load_model, load_tokenizer
from server_process import ServerProcess

SUMS_EVERY = 10  # every tenth call is repeated for its int32 sums

WRONG_MAX = 0
TOP1_MIN = 15
COSINE_MIN = 0.99
COSINE_MEAN_MIN = 0.997


@dataclass
class Service:
    """The linear layers, by the server, each reply compared with check.py before it is used."""

    client: qmatmul.Client
    linears: List[Linear]
    sums: check.Tally = field(default_factory=check.Tally)
    floats: check.Tally = field(default_factory=check.Tally)
    calls: int = 0
    products: int = 0
    ops: int = 0
    # Of the calls whose replies were used: as this process saw them, its own CPU time, and the server's words.
    call_s: float = 0.0
    client_s: float = 0.0
    queue_s: float = 0.0
    kernel_s: float = 0.0
    check_s: float = 0.0  # comparing, and the calls made only for it
    kernels: set = field(default_factory=set)

    def register(self, linear: Linear, layout: str) -> qmatmul.Registration:
        return self.client.register_weight(
            linear.name, linear.weight, layout=layout, scales=linear.scales, bias=linear.bias, replace=True
        )

    def linear(self, x: np.ndarray, indices: Sequence[int]) -> List[np.ndarray]:
        """What model.forward asks for: one call, one weight or three (query, key, value)."""
        return self.multiply(x, [self.linears[i] for i in indices])

    def multiply(self, x: np.ndarray, linears: Sequence[Linear]) -> List[np.ndarray]:
        names = [linear.name for linear in linears]
        start, cpu = time.perf_counter(), time.thread_time()
        results = self.client.matmul(x, names, out="F32", dynamic=True)
        called = time.perf_counter()
        self.call_s += called - start
        self.client_s += time.thread_time() - cpu
        self.calls += 1
        self._split([result.execution for result in results])
        self._check(x, names, linears, results)
        self.check_s += time.perf_counter() - called
        return [result.array for result in results]

    def times(self, wall_s: float, onnxruntime_s: float) -> Dict[str, float]:
        """Where a wall time with all these calls in it, checks included, went; the parts sum to wall_s."""
        wall_s -= self.check_s
        return {
            "wall_s": wall_s,
            "numpy_s": wall_s - self.call_s,
            "client_s": self.client_s,
            "wire_s": self.call_s - self.client_s - self.queue_s - self.kernel_s,
            "queue_s": self.queue_s,
            "kernel_s": self.kernel_s,
            "onnxruntime_s": onnxruntime_s,
            "calls": self.calls,
        }

    def _split(self, executions: Sequence[qmatmul.Execution]) -> None:
        # Products of one run name the same time; those of several runs follow one another.
        times = [execution.compute_ns for execution in executions]
        self.kernel_s += (times[0] if len(set(times)) == 1 else sum(times)) / 1e9
        self.queue_s += executions[0].queue_ns / 1e9

    def _check(self, x: np.ndarray, names: Sequence[str], linears: Sequence[Linear], results) -> None:
        q, sa = check.quantize_rows(x)
        sums = [check.integer_product(q, linear.weight) for linear in linears]
        for result, linear, acc in zip(results, linears, sums):
            self.floats.add(result.array, check.epilogue(acc, linear.scales, sa, linear.bias))
            self._count(result.execution, acc, linear)
        if self.calls % SUMS_EVERY == 1:
            raw = self.client.matmul(q, names, out=qmatmul.Output("INT32", skip_bias=True))
            for result, acc in zip(raw, sums):
                self.sums.add(result.array, acc)

    def _count(self, execution: qmatmul.Execution, acc: np.ndarray, linear: Linear) -> None:
        self.products += 1
        self.ops += 2 * acc.size * linear.weight.shape[0]
        self.kernels.add(execution.kernel)


@dataclass(frozen=True)
class Outcome:
    """The job's figures, each with its bound."""

    cosine_min: float
    cosine_mean: float
    top1: int
    queries: int
    kernel_gops: float
    service: Service
    times: Dict[str, float] = field(default_factory=dict)

    def misses(self) -> List[str]:
        """What misses its bound; empty when all is well."""
        wrong = self.service.sums.wrong + self.service.floats.wrong
        rows = (
            (wrong <= WRONG_MAX, f"{wrong} results are wrong, {WRONG_MAX} may be"),
            (self.service.sums.elements > 0, "no integer sums were compared"),
            (self.top1 >= TOP1_MIN, f"top-1 agreement {self.top1}, at least {TOP1_MIN} is asked"),
            (self.cosine_min >= COSINE_MIN, f"cosine min {self.cosine_min:.6f}, at least {COSINE_MIN} is asked"),
            (
                self.cosine_mean >= COSINE_MEAN_MIN,
                f"cosine mean {self.cosine_mean:.6f}, at least {COSINE_MEAN_MIN} is asked",
            ),
        )
        return [text for good, text in rows if not good]


def run(client: qmatmul.Client, documents: Sequence[str], queries: Sequence[str]) -> Tuple[Outcome, np.ndarray]:
    """The job on the given texts: its figures, and the best document of each query."""
    before = client.statistics()
    model, tokenizer = load_model(), load_tokenizer()
    service = Service(client, model.linears)
    for linear in model.linears:
        service.register(linear, "KN")
    texts = [*documents, *queries]
    start = time.perf_counter()
    local = embed(texts, tokenizer, with_onnxruntime())
    onnxruntime_s = time.perf_counter() - start
    start = time.perf_counter()
    ours = embed(texts, tokenizer, with_linear(model, service.linear))
    times = service.times(time.perf_counter() - start, onnxruntime_s)
    scores = search(service, ours[: len(documents)], ours[len(documents) :])
    best = scores.argmax(1)
    local_best = (local[len(documents) :] @ local[: len(documents)].T).argmax(1)
    cosines = (local * ours).sum(1)
    outcome = Outcome(
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        top1=int((best == local_best).sum()),
        queries=len(queries),
        kernel_gops=kernel_gops(before, client.statistics()),
        service=service,
        times=times,
    )
    return outcome, best


def kernel_gops(before: qmatmul.Statistics, after: qmatmul.Statistics) -> float:
    """Operations per nanosecond of compute between two readings: what the kernels did, without the way to them."""
    compute_ns = sum(k.compute_ns for k in after.kernels) - sum(k.compute_ns for k in before.kernels)
    return (after.ops - before.ops) / max(1, compute_ns)


def search(service: Service, documents: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Scores [queries, documents]: the documents' int8 embeddings are one more weight, a column each."""
    q, scales = check.quantize_columns(documents)
    index = Linear("minilm-index", np.ascontiguousarray(q.T), scales, np.zeros(len(documents), np.float32))
    service.register(index, "KN")
    return service.multiply(queries, [index])[0]


def print_table(outcome: Outcome, texts: int, total_s: float) -> None:
    service = outcome.service
    rows = (
        ("texts embedded", f"{texts}"),
        ("wrong int32 sums (every 10th call)", str(service.sums)),
        ("wrong float32 results (every call)", str(service.floats)),
        ("cosine to onnxruntime, min", f"{outcome.cosine_min:.6f}"),
        ("cosine to onnxruntime, mean", f"{outcome.cosine_mean:.6f}"),
        ("top-1 as onnxruntime's", f"{outcome.top1} of {outcome.queries}"),
        ("calls (matrix products)", f"{service.calls} ({service.products})"),
        ("GOPS, in the kernels", f"{outcome.kernel_gops:.1f}"),
        ("GOPS, seen by the client", f"{service.ops / service.call_s / 1e9:.1f}"),
        ("seconds embedding, by onnxruntime", f"{outcome.times['onnxruntime_s']:.2f}"),
        ("seconds embedding, by the service", f"{outcome.times['wall_s']:.2f}"),
        ("  of these numpy, client, wire, queue, kernel", split_text(outcome.times)),
        ("kernels", ", ".join(sorted(service.kernels))),
        ("seconds, checks included", f"{total_s:.1f}"),
    )
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def split_text(times: Dict[str, float]) -> str:
    return ", ".join(f"{times[part + '_s']:.2f}" for part in ("numpy", "client", "wire", "queue", "kernel"))


def run_committed_texts(target: str, times_to: Optional[Path] = None) -> bool:
    """The job on packages.tsv and queries.txt; prints its answers and its table. True when every bound is met."""
    here = Path(__file__).parent
    packages = [line.split("\t") for line in (here / "packages.tsv").read_text().splitlines()]
    queries = (here / "queries.txt").read_text().splitlines()
    start = time.perf_counter()
    with qmatmul.Client(target) as client:
        outcome, best = run(client, [description for _, description in packages], queries)
    for query, document in zip(queries, best):
        name, description = packages[document]
        print(f"  {query:<36} {name}: {description}")
    print()
    print_table(outcome, len(packages) + len(queries), time.perf_counter() - start)
    if times_to:
        times_to.write_text(json.dumps(outcome.times))
    misses = outcome.misses()
    for miss in misses:
        print(f"main job failed: {miss}", file=sys.stderr)
    return not misses


def run_with_server(binary: str, log: Path, keep: bool, times_to: Optional[Path] = None) -> bool:
    """The job against a server of its own; the server must also end cleanly."""
    server = ServerProcess(binary, log)
    good = False
    try:
        server.wait_until_serving()
        good = run_committed_texts(server.target, times_to)
    finally:
        if keep and good:
            print_how_to_talk(binary, server)
        elif (code := server.stop()) != 0:
            print(f"main job failed: the server ended with {code}, its log is {log}", file=sys.stderr)
            good = False
    return good


def print_how_to_talk(binary: str, server: ServerProcess) -> None:
    cli = Path(binary).with_name("qmatmul")
    print(f"the server runs on as process {server.process.pid}, its log is {server.log}")
    print(f"  {cli} list --server {server.target}")
    print(f"  curl http://{server.http}/metrics")
    print(f"  kill {server.process.pid}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--target", help="host:port or unix:/path of a running server")
    where.add_argument("--server", help="the qmatmul-server program to start")
    parser.add_argument("--log", type=Path, default=Path("qmatmul-server.log"), help="where the started server's output goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the split of the time goes, in seconds")
    parser.add_argument("--keep", action="store_true", help="leave the started server running and print how to talk to it")
    arguments = parser.parse_args()
    # As Ctrl-C: the server is stopped in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if arguments.target:
            good = run_committed_texts(arguments.target, arguments.json)
        else:
            good = run_with_server(arguments.server, arguments.log, arguments.keep, arguments.json)
    except (qmatmul.QmatmulError, OSError, RuntimeError) as error:
        print(f"main job failed: {error}", file=sys.stderr)
        return 1
    if good:
        print("main job done")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
