"""A qmatmul-server on free loopback ports, for the quickstart and the tests."""
from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Sequence, Union

import qmatmul

START_S_MAX = 30.0  # a sanitized build on a busy machine takes some of it
STOP_S_MAX = 60.0


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago: bound together, so that they differ, and let go."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class ServerProcess:
    """Starts the server; `target` is where it serves gRPC, `http` where /metrics is. Its output goes to `log`."""

    def __init__(self, binary: Union[str, os.PathLike], log: Path, arguments: Sequence[str] = ()) -> None:
        rpc, http = free_ports(2)
        self.target, self.http, self.log = f"127.0.0.1:{rpc}", f"127.0.0.1:{http}", log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(binary), "--listen", self.target, "--http-listen", self.http, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for the caller, who stops the server in order
            )

    def wait_until_serving(self) -> None:
        """Returns once health says SERVING. RuntimeError, with the log's end, when the server ends or takes too long."""
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                # A new connection each time: one that was refused would back off for seconds.
                with qmatmul.Client(self.target) as client:
                    if client.health(timeout_s=1) == "SERVING":
                        return
            except qmatmul.QmatmulError:
                pass
            time.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the server is not serving on {self.target} (exit status {self.process.poll()}):\n{tail}")

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Ends the server and returns its exit status; one that does not end is killed."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
