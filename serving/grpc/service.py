"""The V2 protocol over gRPC: each call becomes a call of the HTTP protocol, so that both give the same answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from serving.errors import InvalidRequest
from serving.grpc.messages import SERVICE, message, methods
from serving.grpc.routes import ROUTES, Route, model_path
from serving.grpc.transcoding import error_of, infer_answer, infer_body, streamed_answer
from serving.protocol.long_answers import whole
from serving.reading import PAUSE_SECONDS
from serving.transport.gateway import Gateway, Reply
from serving.v2 import HEADER_LENGTH

_log = logging.getLogger(__name__)
_HEALTH = "grpc.health.v1.Health"
# HealthCheckResponse with status SERVING and NOT_SERVING.
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"
_CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    405: "UNIMPLEMENTED", 409: "FAILED_PRECONDITION", 413: "RESOURCE_EXHAUSTED", 422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # fmt: skip
# Headers of HTTP's own framing, which a call's metadata must not set.
_FRAMING = frozenset({"content-length", "content-encoding", "transfer-encoding", "content-type", "accept-encoding"})
_STREAM_AHEAD = 64
# Without a call for so long, none is under way: a client that has its answer and means to send another has had the
# time for it, even on a busy machine. It is not waited for longer than the second.
_QUIET_SECONDS = 0.08
_QUIET_LIMIT_SECONDS = 0.4
_NOTICE_SECONDS = 0.01
# Bytes of an answer from which its message is made in a thread.
_LONG_ANSWER = 256 * 1024
# Space for a message's own fields beside its tensors.
_MESSAGE_OVERHEAD = 64 * 1024


class GrpcServer:
    """Serves on one port, on the running event loop. Needs the extra `grpc`."""

    def __init__(self, gateway: Gateway, *, max_message_bytes: int, max_calls: int = 4096) -> None:
        self._gateway = gateway
        self._max_message_bytes = max_message_bytes
        self._max_calls = max_calls
        self._server: Any = None
        # Calls of inference taken in; while the server stops, their answers wait until clients know.
        self._calls = 0
        self._told = asyncio.Event()
        self._told.set()

    async def start(
        self, host: str, port: int, credentials: tuple[bytes, bytes] | None = None, *, shared: bool = False
    ) -> int:
        """Listens and returns the port (0 takes a free one); `credentials` are a PEM key and its certificate chain.

        With `shared` other processes may listen there too, and the kernel spreads the connections over them.

        Raises ImportError without grpcio, OSError when the port is taken.
        """
        try:
            import grpc
        except ImportError as error:
            raise ImportError(f"the gRPC port needs grpcio: pip install 'trimtab[grpc]' ({error})") from error

        self._stopping = asyncio.Event()
        self._codes = {status: getattr(grpc.StatusCode, code) for status, code in _CODES.items()}
        self._internal = grpc.StatusCode.INTERNAL
        limit = self._max_message_bytes + _MESSAGE_OVERHEAD
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=self._max_calls,
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(shared)),
            ],
        )
        unary = grpc.unary_unary_rpc_method_handler
        handlers = {
            "ServerLive": unary(self._live),
            "ServerReady": unary(self._ready),
            "ModelReady": unary(self._model_ready),
            "ModelInfer": unary(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream),
            **{name: unary(self._routed(name, route)) for name, route in ROUTES.items()},
        }
        assert set(handlers) == set(methods())
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, handlers),
                grpc.method_handlers_generic_handler(_HEALTH, {"Check": unary(self._health)}),
            )
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, grpc.ssl_server_credentials([credentials]))
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}: {error}") from error
        await self._server.start()
        return int(bound)

    async def stop(self, grace: float) -> None:
        """Takes no more calls, and waits up to `grace` seconds for those in flight.

        grpcio drops calls that have come and that it has not handed to us when it is told to stop. So the answers are
        held until no more calls come, and sent when all connections have been told that no more may come.
        """
        if self._server is None:
            return
        self._told.clear()
        calls, limit = -1, time.monotonic() + min(grace, _QUIET_LIMIT_SECONDS)
        while calls != self._calls and time.monotonic() < limit:
            calls = self._calls
            await asyncio.sleep(_QUIET_SECONDS)
        self._stopping.set()
        stopping = asyncio.create_task(self._server.stop(grace))
        # Connections carry what is written in its order: the notice goes out before any answer that is held.
        await asyncio.sleep(_NOTICE_SECONDS)
        self._told.set()
        await stopping

    # --- calls -----------------------------------------------------------------------------------------------------
    async def _live(self, _data: bytes, context: Any) -> bytes:
        reply = await self._gateway.control(b"GET", b"/v2/health/live", _headers(context))
        return _encoded("ServerLiveResponse", live=reply.status == 200)

    async def _ready(self, _data: bytes, context: Any) -> bytes:
        reply = await self._gateway.control(b"GET", b"/v2/health/ready", _headers(context))
        return _encoded("ServerReadyResponse", ready=reply.status == 200)

    async def _model_ready(self, data: bytes, context: Any) -> bytes:
        request = await self._parsed("ModelReadyRequest", data, context)
        reply = await self._gateway.control(b"GET", model_path("/ready")(request).encode(), _headers(context))
        return _encoded("ModelReadyResponse", ready=reply.status == 200)

    async def _health(self, _data: bytes, context: Any) -> bytes:
        reply = await self._gateway.control(b"GET", b"/v2/health/ready", _headers(context))
        return _SERVING if reply.status == 200 else _NOT_SERVING

    async def _infer(self, data: bytes, context: Any) -> bytes:
        self._calls += 1
        request = await self._parsed("ModelInferRequest", data, context)
        try:
            reply = await self._asked(request, _headers(context))
        except InvalidRequest as error:
            await context.abort(self._codes[error.status], str(error))
        if not self._told.is_set():
            await self._told.wait()
        if reply.status != 200:
            await self._fail(reply, context)
        context.set_trailing_metadata(_shown(reply))
        return await _answered(reply, typed=not request.raw_input_contents)

    async def _asked(self, request: Any, headers: dict[bytes, bytes]) -> Reply:
        body, length = infer_body(request)
        headers[HEADER_LENGTH] = b"%d" % length
        return await self._gateway.infer(request.model_name, request.model_version or None, headers, body)

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answers in the order of the requests, `_STREAM_AHEAD` of them at work at once; an error does not end it."""
        headers = _headers(context)
        waiting: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        ahead = asyncio.Semaphore(_STREAM_AHEAD)

        async def read() -> None:
            try:
                async for data in requests:
                    await ahead.acquire()
                    waiting.put_nowait(asyncio.create_task(self._streamed(data, dict(headers))))
            finally:
                waiting.put_nowait(None)

        async def end() -> None:
            # An open stream would hold the server until the end of its grace.
            await self._stopping.wait()
            reader.cancel()

        reader = asyncio.create_task(read())
        ender = asyncio.create_task(end())
        try:
            while (task := await waiting.get()) is not None:
                yield await task
                ahead.release()
        finally:
            ender.cancel()
            reader.cancel()
            while not waiting.empty():
                if (task := waiting.get_nowait()) is not None:
                    task.cancel()

    async def _streamed(self, data: bytes, headers: dict[bytes, bytes]) -> bytes:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        kind = message("ModelStreamInferResponse")
        try:
            request = message("ModelInferRequest").FromString(data)
            reply = await self._asked(request, headers)
        except (InvalidRequest, DecodeError) as error:
            return bytes(kind(error_message=str(error)).SerializeToString())
        if reply.status != 200:
            failed = kind(error_message=error_of(reply))
            failed.infer_response.id = request.id
            failed.infer_response.model_name = request.model_name
            return bytes(failed.SerializeToString())
        final = "triton_enable_empty_final_response" in request.parameters
        parameters = {"triton_final_response": True} if final else None
        return await _answered(reply, typed=not request.raw_input_contents, streamed=True, parameters=parameters)

    def _routed(self, name: str, route: Route) -> Callable[[bytes, Any], Any]:
        asked, answered, _ = methods()[name]

        async def handle(data: bytes, context: Any) -> bytes:
            from google.protobuf import json_format  # type: ignore[import-untyped]

            request = await self._parsed(asked.DESCRIPTOR.name, data, context)
            content = route.body(request)
            body = b"" if content is None else msgspec.json.encode(content)
            reply = await self._gateway.control(route.method, route.target(request).encode(), _headers(context), body)
            if reply.status != 200:
                await self._fail(reply, context)
            found = msgspec.json.decode(whole(reply.body) or b"{}")
            response = json_format.ParseDict(route.fields(found), answered(), ignore_unknown_fields=True)
            return bytes(response.SerializeToString())

        return handle

    async def _parsed(self, name: str, data: bytes, context: Any) -> Any:
        from google.protobuf.message import DecodeError

        try:
            return message(name).FromString(data)
        except DecodeError as error:
            return await context.abort(self._codes[400], f"the message is no {name}: {error}")

    async def _fail(self, reply: Reply, context: Any) -> None:
        trailing = _shown(reply)
        retry = reply.headers.get(b"retry-after")
        if retry is not None:
            # What gRPC's own retry policies obey.
            trailing = (*trailing, ("retry-after", retry.decode()), ("grpc-retry-pushback-ms", f"{int(retry) * 1000}"))
        await context.abort(self._codes.get(reply.status, self._internal), error_of(reply), trailing)


def _encoded(name: str, **fields: Any) -> bytes:
    return bytes(message(name)(**fields).SerializeToString())


async def _answered(
    reply: Reply, *, typed: bool, streamed: bool = False, parameters: dict[str, Any] | None = None
) -> bytes:
    """The message of an answer; a long one is made beside the event loop, with pauses in which that goes on."""

    def made(between: Callable[[], object]) -> bytes:
        response = infer_answer(reply, typed=typed, parameters=parameters, between=between)
        return b"".join(streamed_answer(response) if streamed else response)

    if len(reply.body) < _LONG_ANSWER:
        return made(int)
    return await asyncio.to_thread(made, lambda: time.sleep(PAUSE_SECONDS))


def _headers(context: Any) -> dict[bytes, bytes]:
    """The call's metadata as headers, and its deadline as `Request-Timeout`."""
    headers = {
        name.encode(): value.encode("latin-1") if isinstance(value, str) else value
        for name, value in context.invocation_metadata() or ()
        if name not in _FRAMING and not name.endswith("-bin")
    }
    remaining = context.time_remaining()
    if remaining is not None:
        headers[b"request-timeout"] = b"%.6f" % max(remaining, 1e-6)
    return headers


def _shown(reply: Reply) -> tuple[tuple[str, str], ...]:
    """The answer's headers that say which version answered, and how busy the server is."""
    return tuple(
        (name.decode(), value.decode("latin-1"))
        for name, value in reply.headers.items()
        if name.startswith(b"x-trimtab-") or name == b"endpoint-load-metrics"
    )
