"""A server under test as a process: started, watched and stopped. Its CPU time and memory are the kernel's own counts."""
import glob
import os
import re
import signal
import subprocess
import time
import urllib.request

STOP_S_MAX = 60


class NotStarted(Exception):
    """The program ended before it was ready; the text is what it said."""


class ServerProcess:
    """A server of ours from its ready line to its end. `address` is the first it serves on, `http` where /metrics is."""

    def __init__(self, words, log_path: str):
        self.log_path = log_path
        self.name = os.path.basename(words[0])
        with open(log_path, "wb") as log:
            self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline()
        addresses = re.search(r"ready grpc=(\S+)", line)
        if not addresses:
            self.process.wait(STOP_S_MAX)
            raise NotStarted(f"{self.name} did not start: {self.log().strip()[-2000:] or line}")
        self.address = addresses[1].split(",")[0]
        http = re.search(r"http=(\S+)", line)
        self.http = http[1] if http else None

    def log(self) -> str:
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def cpu_s(self) -> float:
        """User and system time of all its threads so far, by the clock that Linux keeps for a process."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def thread_cpu_s(self, *names: str) -> float:
        """The same of the living threads whose names match one of these patterns; Linux counts it in hundredths."""
        ticks = 0
        for folder in glob.glob(f"/proc/{self.process.pid}/task/*"):
            with open(f"{folder}/stat", encoding="ascii", errors="replace") as stat:
                name, _, fields = stat.read().partition(" (")[2].rpartition(") ")
            if any(re.fullmatch(pattern, name) for pattern in names):
                ticks += sum(map(int, fields.split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self, field="VmRSS") -> int:
        """VmRSS now, or VmHWM: the most it ever was."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            kib, = re.findall(rf"^{field}:\s+(\d+) kB", status.read(), re.M)
        return int(kib) * 1024

    def metrics(self) -> dict[str, float]:
        """Each sample by its name, labels and all."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as page:
            return parse_metrics(page.read().decode())

    def metric(self, name: str, label: str = "") -> float:
        return total(self.metrics(), name, label)

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
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def total(samples: dict[str, float], name: str, label: str = "") -> float:
    """Sum over the labels of one metric, 0 when there is none; with `label`, over those that have it."""
    return sum(value for key, value in samples.items()
               if re.fullmatch(re.escape(name) + r"(\{.*\})?", key) and label in key)
