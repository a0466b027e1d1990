"""The synchronous client: one object a server, one method an RPC."""
from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import (
    Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Type, Union, overload,
)

import grpc
import numpy as np
from google.protobuf.message_factory import GetMessageClass

from . import dtypes, errors, messages, records, split, stream
from .messages import OutputLike
from .request import ChainStep, Prepared, Request
from .retry import Repeatable, RetryOptions, RetryPolicy, call_with_retries
from .throttle import OverloadThrottle
from .v1 import qmatmul_pb2 as pb
from .weights import CHUNK_BYTES_MAX, PlainWeight, plain_weight

MESSAGE_BYTES_MAX = 64 << 20  # the server's default limit, on both sides
PARTS_AT_ONCE = 2  # of a call that is sent in parts: one computes while another travels

Progress = Callable[[int, int], None]


class Client:
    """A connection to one server. Thread-safe; use it as a context manager, or close() it.

    Args:
      target: "host:port", "unix:/path", or any other gRPC target.
      timeout_s: the deadline of each call in seconds, unless the call says otherwise.
      credentials: channel credentials for TLS; None: plain text.
      metadata: pairs sent with every call, for example (("authorization", "Bearer ..."),).
      message_bytes_max: the largest message either way, -1: no limit here; the server has its own (64 MiB by default).
      retries: when UNAVAILABLE is tried again, see RetryOptions.

    Every method raises a QmatmulError (see qmatmul.errors): DeadlineExceeded when its timeout passes, Unavailable
    when the server is full, draining or not there. A full server's refusal is retried when it says after what time,
    and a lost connection where twice is as good as once (not uploads and delete_weight; health is asked for once),
    within the deadline and a budget shared by all calls of this client.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 30.0,
        credentials: Optional[grpc.ChannelCredentials] = None,
        metadata: Sequence[Tuple[str, str]] = (),
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        retries: RetryOptions = RetryOptions(),
    ) -> None:
        channel_options = [
            ("grpc.max_send_message_length", message_bytes_max),
            ("grpc.max_receive_message_length", message_bytes_max),
        ]
        if credentials is None:
            self._channel = grpc.insecure_channel(target, channel_options)
        else:
            self._channel = grpc.secure_channel(target, credentials, channel_options)
        self._timeout_s = timeout_s
        self._metadata = tuple(metadata)
        self._message_bytes_max = message_bytes_max
        self._retries = RetryPolicy(retries)
        self._throttle = OverloadThrottle(retries.sent_per_accepted)
        self._columns: Dict[str, int] = {}  # n of weights, learned when a reply did not fit; guarded by _lock
        self._lock = threading.Lock()
        self._methods = dict(_methods(self._channel))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in flight end as Cancelled."""
        self._channel.close()

    # Weights

    def register_weight(
        self,
        weight_id: str,
        data: np.ndarray,
        *,
        layout: str,
        scales: Any = None,
        bias: Any = None,
        scale_dtype: Optional[str] = None,
        dtype: str = "INT8",
        group_size: int = 0,
        replace: bool = False,
        replace_digest: str = "",
        progress: Optional[Progress] = None,
        chunk_bytes: int = CHUNK_BYTES_MAX,
        timeout_s: Optional[float] = None,
    ) -> records.Registration:
        """Registers a matrix of int8 values; uploads nothing when the server knows the content already.

        Args:
          weight_id: [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
          data: int8, [K, N] for layout "KN", [N, K] for "NK"; K <= 131,071, N <= 2^24.
          scales: None, a number, [1] or [N]; [K/G, N] for INT4, which needs them; float32, float16 or bfloat16.
          bias: None or float32 [N].
          scale_dtype: "BF16" when `scales` are bfloat16 bits in uint16.
          dtype: "INT8", or "INT4" (values of -8 to 7) or "INT2" (-1 to 1), which are packed here.
          group_size: INT4: how many values along K share a scale, dividing K; K for one scale per column.
          replace: let the name move to this content, whatever it holds.
          replace_digest: let it move only from exactly this content.
          progress: called with (bytes handed to the connection, bytes in total), the last time with both equal.
            It runs on the connection's own thread and must not block.
          chunk_bytes: size of an upload message's payload, at most 1 MiB.

        Raises: InvalidArgument, AlreadyExists (other content under that name), ResourceExhausted (memory).
        """
        weight = plain_weight(data, layout, scales, bias, scale_dtype, dtype, group_size)
        spec = weight.spec(weight_id, replace=replace, replace_digest=replace_digest)
        total = weight.bytes_total()
        try:
            reply = self._call("WeightService/RegisterWeight", _spec_only(spec), timeout_s, Repeatable.REFUSED)
            uploaded = 0
            if progress:
                progress(total, total)
        except errors.NotFound as error:
            if error.reason != "UPLOAD_NEEDED":
                raise
            upload = lambda: _upload(spec, weight, chunk_bytes, progress)  # noqa: E731
            reply = self._call("WeightService/RegisterWeight", upload, timeout_s, Repeatable.REFUSED)
            uploaded = total
        return records.Registration(
            records.from_message(records.Weight, reply.weight), reply.already_registered, uploaded
        )

    def get_weight(self, weight_id: str, *, timeout_s: Optional[float] = None) -> records.Weight:
        """What is registered under that name. Raises NotFound."""
        request = pb.GetWeightRequest(name=messages.weight_name(weight_id))
        return records.from_message(records.Weight, self._call("WeightService/GetWeight", request, timeout_s))

    def list_weights(
        self, *, page_size: int = 0, timeout_s: Optional[float] = None
    ) -> Iterator[records.Weight]:
        """All weights, ordered by name, fetched a page (0: 100, at most 1,000) at a time as they are asked for."""
        token = ""
        while True:
            request = pb.ListWeightsRequest(page_size=page_size, page_token=token)
            reply = self._call("WeightService/ListWeights", request, timeout_s)
            yield from (records.from_message(records.Weight, weight) for weight in reply.weights)
            token = reply.next_page_token
            if not token:
                return

    def delete_weight(self, weight_id: str, *, timeout_s: Optional[float] = None) -> int:
        """Unbinds the name; returns the device bytes that this frees. Raises NotFound."""
        request = pb.DeleteWeightRequest(name=messages.weight_name(weight_id))
        # A second try of a deletion that worked would be told NOT_FOUND.
        return self._call("WeightService/DeleteWeight", request, timeout_s, Repeatable.REFUSED).freed_bytes

    # Matrix multiplication

    @overload
    def matmul(
        self,
        x: Any,
        weights: str,
        *,
        out: OutputLike,
        then: Sequence[ChainStep] = (),
        dynamic: bool = False,
        scale: Any = None,
        zero_points: Any = None,
        arithmetic: Optional[str] = None,
        dtype: Optional[str] = None,
        scale_dtype: Optional[str] = None,
        device: str = "",
        kernel: str = "",
        verify: bool = False,
        timeout_s: Optional[float] = None,
    ) -> records.Result: ...

    @overload
    def matmul(
        self,
        x: Any,
        weights: Sequence[str],
        *,
        out: Union[OutputLike, Sequence[OutputLike]],
        then: Sequence[ChainStep] = (),
        dynamic: bool = False,
        scale: Any = None,
        zero_points: Any = None,
        arithmetic: Optional[str] = None,
        dtype: Optional[str] = None,
        scale_dtype: Optional[str] = None,
        device: str = "",
        kernel: str = "",
        verify: bool = False,
        timeout_s: Optional[float] = None,
    ) -> List[records.Result]: ...

    def matmul(
        self,
        x: Any,
        weights: Union[str, Sequence[str]],
        *,
        out: Union[OutputLike, Sequence[OutputLike]],
        then: Sequence[ChainStep] = (),
        dynamic: bool = False,
        scale: Any = None,
        zero_points: Any = None,
        arithmetic: Optional[str] = None,
        dtype: Optional[str] = None,
        scale_dtype: Optional[str] = None,
        device: str = "",
        kernel: str = "",
        verify: bool = False,
        timeout_s: Optional[float] = None,
    ) -> Union[records.Result, List[records.Result]]:
        """x @ weight, for one weight or for up to 16 that share K (one activation tensor travels, as for Q, K and V).

        Args:
          x: [M, K] of int8, uint8, float32, float16 or bfloat16; M = 0 is served. Float values must be finite.
          weights: one name, or several.
          out: the output type ("F32", "INT32", np.int8 ...) or an Output, for all weights or one each. With
            Output(top_k=...) the result has the greatest values of each row and, in `indices`, their columns.
          then: a chain: steps that continue on the result of one weight at the server; `out` is then "F32", or an Output
            of it (activation="RELU"), and the result is the last step's.
          dynamic: float x: the server quantizes each row to int8, scale = max|x| / 127.
          scale: activation scale, a number, [1] or [M]; quantizes float x, or gives int8 x its meaning.
          zero_points: None, a number, [1] or [M] integers within x's type (int8 for float x with scale).
          arithmetic: "W8A8", or "W8A32" (weight-only, float x). Left out it is W8A8 for integer x and wherever
            dynamic or scale is given.
          dtype: "BF16" when x holds bfloat16 bits in uint16.
          device, kernel: force one by name; "" lets the server choose. The answer is the same bytes either way.
          verify: check this answer against the weight's check vector before it is sent.

        Returns: one Result for one name, a list for a sequence of names. More rows than fit one message are sent in
          parts; the result is the same bytes.
        Raises: InvalidArgument, NotFound, OutOfRange (overflow="ERROR"), FailedPrecondition (forced kernel or
          device not here), Unimplemented, ResourceExhausted (ROW_TOO_LARGE: one row does not fit a message).
        """
        request = Request(
            x, weights, out, then, dynamic, scale, zero_points, arithmetic, dtype, scale_dtype, device, kernel, verify
        ).prepare()
        results = self._matmul(request, self._timeout_s if timeout_s is None else timeout_s)
        return results[0] if request.single else results

    def matmul_stream(
        self, requests: Iterable[Request], *, window: int = 64, timeout_s: Optional[float] = None
    ) -> Iterator[Tuple[int, stream.Outcome]]:
        """Many matmuls over one call: yields (index of the request, outcome) as they are ready, in any order.

        The outcome is what matmul returns, or the QmatmulError that it would raise: one request's error does not end
        the stream, and UNAVAILABLE is not retried. Requests are taken from the iterable, on another thread, while at
        most `window` outcomes are outstanding or not yet consumed.

        Args:
          timeout_s: the longest wait for the next outcome; None: the client's.

        Raises: DeadlineExceeded; how the stream failed as a whole; whatever the iterable raises.
        """
        method = self._methods["MatMulService/StreamMatMul"]
        return stream.run(
            lambda outgoing: method(outgoing, metadata=self._metadata),
            requests,
            window,
            self._timeout_s if timeout_s is None else timeout_s,
        )

    def _matmul(self, request: Prepared, timeout_s: float) -> List[records.Result]:
        """In one piece, or in parts where that does not fit."""
        deadline = time.monotonic() + timeout_s
        parts = split.plan(request, self._known_columns(request), self._message_bytes_max)
        if len(parts) == 1:
            try:
                return self._part(request, parts[0], deadline)
            except errors.ResourceExhausted as error:
                if not split.may_be_cut(error):
                    raise
                self._learn_columns(request, deadline)
                parts = split.plan(request, self._known_columns(request), self._message_bytes_max)
                if len(parts) == 1:
                    raise
        return self._parts(request, parts, deadline)

    def _parts(self, request: Prepared, parts: List[split.Rows], deadline: float) -> List[records.Result]:
        stop = threading.Event()  # an error that is no overflow makes the rest useless

        def part(rows: split.Rows) -> Union[List[records.Result], errors.QmatmulError, None]:
            if stop.is_set():
                return None
            try:
                return self._part(request, rows, deadline)
            except errors.QmatmulError as error:
                if not split.is_overflow(error):
                    stop.set()
                return error

        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            outcomes = list(pool.map(part, parts))
        failed = [(rows, o) for rows, o in zip(parts, outcomes) if isinstance(o, errors.QmatmulError)]
        if failed:
            raise split.join_errors(failed)
        return split.join([outcome for outcome in outcomes if isinstance(outcome, list)])

    def _part(self, request: Prepared, rows: split.Rows, deadline: float) -> List[records.Result]:
        # Balancers hash this header, so that each replica keeps its share of the weights.
        header = (("qmatmul-weight", request.route),) if request.route else ()
        left_s = max(0.0, deadline - time.monotonic())
        reply = self._call("MatMulService/MatMul", request.message(*rows), left_s, header=header, throttled=request.route)
        return [messages.result(output) for output in reply.outputs]

    def _known_columns(self, request: Prepared) -> Dict[str, int]:
        with self._lock:
            return {name: self._columns[name] for name in request.width_weights if name in self._columns}

    def _learn_columns(self, request: Prepared, deadline: float) -> None:
        """A weight that cannot be asked for stays as unknown as it was."""
        for name in request.width_weights:
            try:
                n = self.get_weight(name, timeout_s=max(0.0, deadline - time.monotonic())).n
            except errors.QmatmulError:
                continue
            with self._lock:
                if len(self._columns) >= _COLUMNS_MAX:
                    self._columns.clear()
                self._columns[name] = n

    def explain(
        self,
        weights: Union[str, Sequence[str]],
        rows: int,
        *,
        activations: Any,
        out: Union[OutputLike, Sequence[OutputLike]] = (),
        arithmetic: Optional[str] = None,
        device: str = "",
        kernel: str = "",
        timeout_s: Optional[float] = None,
    ) -> records.Explanation:
        """What would run for `rows` rows of activations of that type, and why, without running it."""
        names = messages.weight_names(weights)
        request = pb.ExplainRequest(
            weights=names,
            rows=rows,
            activations=dtypes.to_enum(dtypes.name_of(activations)),
            outputs=messages.output_specs(out, len(names)),
            options=messages.options(arithmetic, device, kernel),
        )
        return records.from_message(records.Explanation, self._call("MatMulService/Explain", request, timeout_s))

    # The server

    def devices(self, *, timeout_s: Optional[float] = None) -> List[records.Device]:
        """The devices that the server computes on."""
        reply = self._call("InfoService/ListDevices", pb.ListDevicesRequest(), timeout_s)
        return [records.from_message(records.Device, device) for device in reply.devices]

    def kernels(self, *, timeout_s: Optional[float] = None) -> List[records.Kernel]:
        """Every kernel that the server was built with, also those its machine cannot run, in order of preference."""
        reply = self._call("InfoService/ListKernels", pb.ListKernelsRequest(), timeout_s)
        return [records.from_message(records.Kernel, kernel) for kernel in reply.kernels]

    def statistics(self, *, timeout_s: Optional[float] = None) -> records.Statistics:
        """What the server did since its start."""
        reply = self._call("InfoService/GetStatistics", pb.GetStatisticsRequest(), timeout_s)
        return records.from_message(records.Statistics, reply)

    def health(self, service: str = "", *, timeout_s: Optional[float] = None) -> str:
        """"SERVING" or "NOT_SERVING" of a service, "" for the whole server. Raises NotFound for another name."""
        status = self._call(_HEALTH, service, timeout_s, Repeatable.NEVER)  # a probe asks about now
        return _HEALTH_STATES.get(status, str(status))

    def _call(
        self,
        method: str,
        request: Any,
        timeout_s: Optional[float],
        repeatable: Repeatable = Repeatable.IDEMPOTENT,
        header: Sequence[Tuple[str, str]] = (),
        throttled: str = "",
    ) -> Any:
        """Calls a method by its short name; a callable request is a stream that each attempt starts anew. `throttled` is
        the weight for which a full server is spared calls."""

        def attempt(seconds_left: float) -> Any:
            if throttled and (refusal := self._throttle.refuse(throttled, time.monotonic())):
                raise refusal
            message = request() if callable(request) else request
            seen: Optional[errors.QmatmulError] = None
            try:
                reply = self._methods[method](message, timeout=seconds_left, metadata=(*self._metadata, *header))
            except grpc.RpcError as error:
                seen = errors.from_rpc_error(error)
            if throttled:
                self._throttle.ended(throttled, seen, time.monotonic())
            if seen is not None:
                raise seen
            return reply

        return call_with_retries(
            attempt, self._timeout_s if timeout_s is None else timeout_s, self._retries, repeatable
        )


# Weights whose n is remembered; beyond it all are forgotten and learned anew when they matter.
_COLUMNS_MAX = 4096

_HEALTH = "grpc.health.v1.Health/Check"
_HEALTH_STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


def _methods(channel: grpc.Channel) -> Iterator[Tuple[str, Any]]:
    """(short name, callable) of every method of the contract that this client speaks, and of health."""
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            kind = {"RegisterWeight": channel.stream_unary, "StreamMatMul": channel.stream_stream}
            yield f"{service.name}/{method.name}", kind.get(method.name, channel.unary_unary)(
                f"/{service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
    # HealthCheckRequest {string service = 1} and HealthCheckResponse {enum status = 1}, without the package
    # that has them (grpcio-health-checking): it would pin the user's grpcio and protobuf for these two fields. Any
    # message whose field 1 is a string gives the request's bytes.
    yield _HEALTH, channel.unary_unary(
        f"/{_HEALTH}",
        request_serializer=lambda service: pb.GetWeightRequest(name=service).SerializeToString(),
        response_deserializer=lambda data: data[1] if len(data) >= 2 and data[0] == 0x08 else 0,
    )


def _spec_only(spec: pb.WeightSpec) -> Callable[[], Iterator[pb.RegisterWeightRequest]]:
    return lambda: iter((pb.RegisterWeightRequest(spec=spec),))


def _upload(
    spec: pb.WeightSpec, weight: PlainWeight, chunk_bytes: int, progress: Optional[Progress]
) -> Iterator[pb.RegisterWeightRequest]:
    yield pb.RegisterWeightRequest(spec=spec)
    sent, total = 0, weight.bytes_total()
    for chunk in weight.chunks(chunk_bytes):
        yield pb.RegisterWeightRequest(chunk=chunk)
        sent += len(chunk)
        if progress:
            progress(sent, total)
