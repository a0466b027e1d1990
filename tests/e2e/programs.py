"""The programs under test and those that drive them: started, asked and stopped. Nothing outlives Server.stop."""
import json
import os
import socket
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(ROOT, "build", "release", "bin")
sys.path.insert(0, os.path.join(ROOT, "tests", "support"))
from server_process import ServerProcess  # noqa: E402


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has now: all are held until the last is found, so that they differ."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def run(*command: str, stdin: bytes = b"", timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(command, input=stdin, capture_output=True, timeout=timeout)


class Server(ServerProcess):
    """A qmatmul-server of its own on free loopback ports."""

    def __init__(self, log_path: str):
        super().__init__([os.path.join(BIN, "qmatmul-server"), "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"],
                         log_path)

    def qmatmul(self, *words: str) -> subprocess.CompletedProcess:
        return run(os.path.join(BIN, "qmatmul"), *words, "--server", self.address)


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
