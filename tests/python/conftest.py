"""A real server process for the session, a client of it, and a fake server that answers what a test says."""
from __future__ import annotations

import itertools
import os
import signal
import sys
from concurrent import futures
from pathlib import Path
from typing import Any, Callable, Iterator

import grpc
import pytest
import qmatmul
from google.protobuf import any_pb2
from google.rpc import status_pb2

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy" / "minilm"))

from server_process import ServerProcess  # noqa: E402  (deploy/minilm, as the quickstart uses it)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server of QMATMUL_SERVER_BIN. It must still be alive, and stop cleanly, when the tests are through."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    process = ServerProcess(os.environ["QMATMUL_SERVER_BIN"], log)
    try:
        process.wait_until_serving()
        yield process
        assert process.process.poll() is None, f"the server died during the tests:\n{log.read_text()[-4000:]}"
    finally:
        code = process.stop(signal.SIGTERM)
    assert code == 0, f"SIGTERM ended the server with {code}:\n{log.read_text()[-4000:]}"


@pytest.fixture
def client(server: ServerProcess) -> Iterator[qmatmul.Client]:
    with qmatmul.Client(server.target) as connection:
        yield connection


_numbers = itertools.count()


@pytest.fixture
def weight_id(client: qmatmul.Client) -> Iterator[str]:
    """A name no other test uses, deleted afterwards."""
    name = f"test-{next(_numbers)}"
    yield name
    try:
        client.delete_weight(name)
    except qmatmul.NotFound:
        pass


class FakeServer:
    """Answers every unary method by `answer(method, request bytes, context)`, and StreamMatMul by
    `stream(iterator of request bytes, context)`, which yields reply bytes."""

    def __init__(self) -> None:
        self.answer: Callable[[str, bytes, grpc.ServicerContext], bytes] = lambda *_: b""
        self.stream: Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]] = lambda *_: iter(())
        self.calls: list[tuple[str, bytes]] = []
        self.headers: list[dict[str, Any]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((_Handler(self),))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        fake, method = self._fake, details.method
        fake.headers.append(dict(details.invocation_metadata))
        if method.endswith("/StreamMatMul"):
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: fake.stream(requests, context))

        def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
            fake.calls.append((method, request))
            return fake.answer(method, request, context)

        return grpc.unary_unary_rpc_method_handler(unary)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, message: str, *details: Any) -> None:
    """Ends a fake call with a status and its google.rpc details, as the service does."""
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)
