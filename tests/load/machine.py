"""The programs that figures are made with: servers started and watched, load sent, kernels timed.

Everything runs on this machine; CPU time is read from the process's own clock, not estimated. Nothing outlives
the Machine that started it.
"""
import collections
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "support"))
from server_process import NotStarted, ServerProcess  # noqa: E402

CORES = len(os.sched_getaffinity(0))


class NotAvailable(Exception):
    """What a figure needs is not there: a feature of the server, or a tool of the machine."""


class Machine:
    """Builds' programs, a folder for what they leave, and the servers started from here."""

    def __init__(self, bin_folder: str, quick: bool):
        self.bin, self.quick = bin_folder, quick
        self.folder = tempfile.TemporaryDirectory(prefix="qmatmul-figures-")
        self.started = []
        self.kernel_times = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            process.stop()
        self.folder.cleanup()

    def path(self, name: str) -> str:
        return os.path.join(self.folder.name, name)

    def program(self, name: str) -> str:
        path = os.path.join(self.bin, name)
        if not os.access(path, os.X_OK):
            raise NotAvailable(f"{path} is not built: cmake --build --preset release --target {name}")
        return path

    def _start(self, words) -> ServerProcess:
        try:
            process = ServerProcess(words, self.path(f"log-{len(self.started)}.txt"))
        except NotStarted as why:
            raise NotAvailable(str(why)) from why
        self.started.append(process)
        return process

    def server(self, *flags: str, unix: bool = False, under=()) -> ServerProcess:
        """A qmatmul-server; `under` are words that run it (callgrind). With `unix` it has a `socket` too."""
        socket = f"unix:{self.path(f'socket-{len(self.started)}')}"
        listen = f"127.0.0.1:0,{socket}" if unix else "127.0.0.1:0"
        # One calibration for all: a server that measured anew could choose another kernel.
        server = self._start([*under, self.program("qmatmul-server"), "--listen", listen, "--http-listen",
                              "127.0.0.1:0", "--grace-ms", "0", "--log-level", "error", "--calibration-file",
                              self.path("calibration.json"), *flags])
        server.socket = socket
        return server

    def has_option(self, name: str) -> bool:
        told = subprocess.run([self.program("qmatmul-server"), "--help"], capture_output=True, text=True, check=True)
        return re.search(rf"^  {re.escape(name)} ", told.stdout, re.M) is not None

    def need_option(self, name: str) -> None:
        if not self.has_option(name):
            raise NotAvailable(f"this qmatmul-server has no option {name}")

    def echo(self) -> ServerProcess:
        return self._start([self.program("echo_server")])

    def _json_lines(self, words, timeout: float) -> list:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0 and "UNIMPLEMENTED" in done.stderr:
            raise NotAvailable(f"the server says: {done.stderr.strip()[:300]}")
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}: {done.stderr.strip()[:500]}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def bench_words(self, address: str, *options) -> list:
        return [self.program("qmatmul"), "bench", "--server", address, "--json", *map(str, options)]

    def bench(self, address: str, *options, timeout: float = 300) -> dict:
        """One run of `qmatmul bench`; a failed call is the figure's failure unless it says otherwise."""
        line, = self._json_lines(self.bench_words(address, *options), timeout)
        return line

    def probe(self, address: str, call: str, load, seconds: float) -> dict:
        line, = self._json_lines([self.program("load_probe"), address, call, str(load), str(seconds)], 300)
        return line

    def register(self, process: ServerProcess, weight: str, k: int, n: int) -> str:
        """A random int8 weight [k, n] on that server; the same name and shape are the same numbers on each."""
        path = self.path(f"{weight}-{k}x{n}.npy")
        if not os.path.exists(path):
            write_noise(path, k, n)
        done = subprocess.run([self.program("qmatmul"), "register", weight, path, "--layout", "KN", "--server",
                               process.address], capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise RuntimeError(f"register {weight}: {done.stderr.strip()[:300]}")
        return weight

    def kernel_us(self, m: int, k: int, n: int, threads: int, output: str = "INT32", fresh: bool = False) -> float:
        """Microseconds of the product in kernels_bench: of wall time for a team, of CPU time for one thread."""
        key = (m, k, n, threads, output)
        if fresh or key not in self.kernel_times:
            line, = self._json_lines([self.program("kernels_bench"), "--shapes", f"{m},{k},{n}", "--threads",
                                      str(threads), "--output", output, "--seconds", "0.5" if self.quick else "1.5",
                                      "--json"], 300)
            self.kernel_times[key] = 2e-3 * m * k * n / line["gops"]
        return self.kernel_times[key]

    def rounds(self) -> int:
        return 2 if self.quick else 7

    def seconds(self) -> float:
        """Of one slice of one side."""
        return 0.5 if self.quick else 2.0


def server_profile(machine: Machine, run) -> dict:
    """Where the CPU time of the servers went while `run` ran: shares by library, and the greatest by function."""
    if not shutil.which("perf"):
        raise NotAvailable("perf is not installed: apt-get install linux-perf")
    data = machine.path("perf.data")
    perf = subprocess.Popen(["perf", "record", "-a", "-e", "cpu-clock", "-F", "499", "-o", data], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
    try:
        run()
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait(60)
    pids = {str(one.process.pid) for one in machine.started if one.name == "qmatmul-server"}
    told = subprocess.run(["perf", "script", "-i", data, "-F", "pid,ip,sym,dso"], capture_output=True, text=True,
                          check=True, errors="replace").stdout
    samples = [match.groups() for line in told.splitlines()
               if (match := re.match(r"\s*(\d+)\s+[0-9a-f]+ (.*) \((.*)\)$", line)) and match[1] in pids]
    return {"samples": len(samples), "library": _shares([os.path.basename(library) for _, _, library in samples], 6),
            "function": _shares([function[:80] for _, function, _ in samples], 15)}


def _shares(names, count: int) -> dict:
    return {name: f"{100 * seen / len(names):.1f} %" for name, seen in collections.Counter(names).most_common(count)}


def write_noise(path: str, k: int, n: int) -> None:
    """An int8 [k, n] array in numpy's format; the bytes repeat after 16 MiB, which no kernel notices."""
    header = repr({"descr": "|i1", "fortran_order": False, "shape": (k, n)})
    header += " " * (-(len(header) + 11) % 64) + "\n"
    block = os.urandom(min(k * n, 16 << 20))
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        for at in range(0, k * n, len(block)):
            file.write(block[:k * n - at])


def interleaved(machine: Machine, **sides) -> dict:
    """Each side's values, measured by turns so that a slow moment of the machine hits all alike."""
    values = {name: [] for name in sides}
    for _ in range(machine.rounds()):
        for name, measure in sides.items():
            values[name].append(measure())
    return values


def ratio(values: dict, above: str, below: str) -> float:
    """The median of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(values[above], values[below]))


def clean(run: dict) -> dict:
    """The run, if every call of it was answered."""
    if run.get("failed"):
        raise RuntimeError(f"{run['failed']} of {run.get('sent', run['failed'])} calls failed: {run.get('errors')}")
    return run
