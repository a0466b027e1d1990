"""The programs under test and those that drive them: started, asked and stopped. Nothing outlives Server.stop."""
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(ROOT, "build", "release", "bin")
START_S_MAX = 20
STOP_S_MAX = 40


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has now: all are held until the last is found, so that they differ."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def run(*command: str, stdin: bytes = b"", timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(command, input=stdin, capture_output=True, timeout=timeout)


class Server:
    """A qmatmul-server of its own on free loopback ports."""

    def __init__(self, log_path: str):
        self.port, self.http_port = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.log_path = log_path
        with open(log_path, "wb") as log:
            self.process = subprocess.Popen(
                [os.path.join(BIN, "qmatmul-server"), "--listen", self.address, "--http-listen",
                 f"127.0.0.1:{self.http_port}"], stdout=log, stderr=log)
        done = run(os.path.join(BIN, "qmatmul"), "health", "--server", self.address, "--wait", str(START_S_MAX))
        if done.returncode != 0:
            self.stop()
            raise AssertionError(f"the server did not come up in {START_S_MAX} s: {self.log()[-2000:]}")

    def log(self) -> str:
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def qmatmul(self, *words: str) -> subprocess.CompletedProcess:
        return run(os.path.join(BIN, "qmatmul"), *words, "--server", self.address)

    def metrics(self) -> dict[str, float]:
        """Each sample by its name, labels and all."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=10) as page:
            return parse_metrics(page.read().decode())

    def stop(self) -> int:
        """SIGTERM, then the exit status; a server that does not go in time is killed and gives -9."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def parse_metrics(text: str) -> dict[str, float]:
    samples = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            samples[name] = float(value)
    return samples


def total(samples: dict[str, float], name: str, label: str = "") -> float:
    """Sum over the labels of one metric; with `label`, over those that have it."""
    return sum(value for key, value in samples.items() if re.fullmatch(name + r"(\{.*\})?", key) and label in key)


def wait_for(what: str, ask, seconds: float):
    """The first true answer of `ask`, asked until then; its exceptions count as no answer."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            answer = ask()
            if answer:
                return answer
            last = answer
        except (OSError, AssertionError, subprocess.SubprocessError, json.JSONDecodeError) as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {seconds} s; last: {last}")


def run_checks(checks, *arguments) -> int:
    """Runs each check in turn, prints the verdicts and the closing line; a failed one does not stop the rest."""
    failed = 0
    for check in checks:
        started = time.monotonic()
        try:
            check(*arguments)
            verdict = "ok  "
        except Exception as error:  # whatever it is, it is this check's verdict
            failed += 1
            verdict = "FAIL"
            print(f"     {type(error).__name__}: {error}")
        print(f"{verdict} {check.__doc__.splitlines()[0]}  ({time.monotonic() - started:.1f} s)", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0
