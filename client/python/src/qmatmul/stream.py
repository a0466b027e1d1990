"""StreamMatMul as an iterator: requests go out of one iterable while results come in, in any order."""
from __future__ import annotations

import queue
import threading
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple, Union

import grpc

from . import errors, messages, records
from .errors import DeadlineExceeded, Internal, QmatmulError
from .request import Request
from .v1 import qmatmul_pb2 as pb

Outcome = Union[records.Result, List[records.Result], QmatmulError]

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def run(
    open_call: Callable[[Iterator[pb.StreamMatMulRequest]], Any],
    requests: Iterable[Request],
    window: int,
    timeout_s: float,
) -> Iterator[Tuple[int, Outcome]]:
    """(index of the request, its outcome) as they come. See Client.matmul_stream."""
    exchange = _Exchange(requests, window)
    call = open_call(exchange.outgoing())
    reader = threading.Thread(target=exchange.read, args=(call,), daemon=True)
    reader.start()
    try:
        while True:
            try:
                item = exchange.incoming.get(timeout=timeout_s)
            except queue.Empty:
                raise DeadlineExceeded(
                    f"no reply came for {timeout_s} s, with {exchange.unanswered()} requests unanswered"
                ) from None
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
            exchange.room.release()
    finally:
        exchange.stopped = True
        exchange.room.release()  # the thread that waits for room may end
        call.cancel()
        reader.join()


class _Exchange:
    """What gRPC's thread (outgoing), the reader's and the caller's share. Ids on the wire are index + 1."""

    def __init__(self, requests: Iterable[Request], window: int) -> None:
        self._requests = requests
        self._lock = threading.Lock()
        self._single: Dict[int, bool] = {}  # guarded by _lock: unanswered ids
        self._failure: Exception | None = None  # of the caller's iterable
        self.room = threading.Semaphore(max(1, window))
        self.incoming: queue.Queue[Any] = queue.Queue()
        self.stopped = False

    def unanswered(self) -> int:
        with self._lock:
            return len(self._single)

    def outgoing(self) -> Iterator[pb.StreamMatMulRequest]:
        try:
            for index, request in enumerate(self._requests):
                prepared = request.prepare()
                self.room.acquire()
                if self.stopped:
                    return
                with self._lock:
                    self._single[index + 1] = prepared.single
                yield pb.StreamMatMulRequest(request_id=index + 1, request=prepared.message())
        except Exception as failure:  # gRPC would only log it
            self._failure = failure
            raise

    def read(self, call: Any) -> None:
        """Puts every outcome into `incoming`, then None, or why the stream has failed."""
        try:
            for reply in call:
                with self._lock:
                    single = self._single.pop(reply.request_id, None)
                if single is None:
                    raise Internal(
                        f"the server answered request {reply.request_id}, which is not underway", reason="REPLY_MALFORMED"
                    )
                self.incoming.put((reply.request_id - 1, _outcome(reply, single)))
            if self.unanswered():
                raise Internal(
                    f"the server ended the stream with {self.unanswered()} requests unanswered", reason="STREAM_ENDED"
                )
            self.incoming.put(None)
        except grpc.RpcError as error:
            self.incoming.put(self._failure or errors.from_rpc_error(error))
        except QmatmulError as error:
            self.incoming.put(error)


def _outcome(reply: pb.StreamMatMulResponse, single: bool) -> Outcome:
    if reply.HasField("error"):
        code = _CODES.get(reply.error.code, "UNKNOWN")
        return errors.from_status(code, reply.error.message, reply.error)
    results = [messages.result(output) for output in reply.response.outputs]
    if not single:
        return results
    if len(results) != 1:
        return Internal(f"the server sent {len(results)} outputs for one weight", reason="OUTPUT_COUNT")
    return results[0]
