"""A small asynchronous client for much traffic from one process: JSON over pooled connections, at low cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `status` is 0 and `error` says why when nothing did; `outputs` maps a name to its flat values."""

    status: int
    outputs: Mapping[str, list[float]] = field(default_factory=dict)
    version: str | None = None
    arm: str | None = None
    seconds: float = 0.0
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the model answered."""
        return self.status == 200


class QuickClient:
    """Requests to one server, each sent once. At most `max_connections` are open, more wait. Close it with `aclose`."""

    def __init__(self, url: str, *, max_connections: int = 64, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"the URL {url!r} is not usable: give http://host:port")
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout = timeout
        self._free = asyncio.Semaphore(max_connections)
        self._idle: list[_Connection] = []
        self._heads: dict[tuple[str, int | None], bytes] = {}

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Sequence[Any]],
        *,
        id: str = "",
        attributes: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        deadline: float | None = None,
        version: int | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Answer:
        """One inference request; never raises for what the server or the network does. `deadline` is in seconds."""
        start = time.perf_counter()
        body = encode(inputs, id=id, attributes=attributes, deadline=deadline, parameters=parameters)
        request = self._head(model, version) + b"content-length: %d\r\n" % len(body)
        if traceparent is not None:
            request += b"traceparent: %b\r\n" % traceparent.encode("latin-1")
        try:
            async with asyncio.timeout(self._timeout), self._free:
                reply = await self._exchange(request + b"\r\n" + body)
        except TimeoutError:
            return Answer(0, seconds=time.perf_counter() - start, error=f"no answer within {self._timeout:g} s")
        except OSError as error:
            return Answer(0, seconds=time.perf_counter() - start, error=f"{type(error).__name__}: {error}")
        return _answer(reply, time.perf_counter() - start)

    async def aclose(self) -> None:
        """Closes the connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def __aenter__(self) -> QuickClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _head(self, model: str, version: int | None) -> bytes:
        key = (model, version)
        if key not in self._heads:
            named = "" if version is None else f"/versions/{version}"
            text = (
                f"POST /v2/models/{model}{named}/infer HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
                "content-type: application/json\r\n"
            )
            self._heads[key] = text.encode("latin-1")
        return self._heads[key]

    async def _exchange(self, request: bytes) -> _Reply:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                try:
                    return await self._over(connection, request)
                except _Stale:
                    # The server closed the idle connection as we wrote; it has read nothing of this request.
                    continue
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        return await self._over(connection, request)

    async def _over(self, connection: _Connection, request: bytes) -> _Reply:
        try:
            reply = await connection.exchange(request)
        except BaseException:
            connection.close()
            raise
        if connection.usable:
            self._idle.append(connection)
        return reply


def encode(
    inputs: Mapping[str, Sequence[Any]],
    *,
    id: str = "",
    attributes: Mapping[str, Any] | None = None,
    deadline: float | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> bytes:
    """The JSON body of a request; an input's datatype follows from its values."""
    sent: dict[str, Any] = dict(parameters or {})
    if attributes is not None:
        sent["attributes"] = attributes
    if deadline is not None:
        sent["timeout"] = max(1, round(deadline * 1e6))
    body: dict[str, Any] = {
        "inputs": [
            {"name": name, "datatype": _datatype(values), "shape": [len(values), 1], "data": values}
            for name, values in inputs.items()
        ]
    }
    if id:
        body["id"] = id
    if sent:
        body["parameters"] = sent
    return msgspec.json.encode(body)


def _datatype(values: Sequence[Any]) -> str:
    kinds = set(map(type, values))
    if str in kinds:
        return "BYTES"
    if kinds == {bool}:
        return "BOOL"
    return "INT64" if kinds == {int} else "FP32"


class _Stale(OSError):
    """The connection ended before the first byte of an answer."""


@dataclass(slots=True)
class _Reply:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._waiter: asyncio.Future[_Reply] | None = None
        self._used = False
        self.usable = True
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._started = False

    async def exchange(self, request: bytes) -> _Reply:
        self._begin()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._waiter
        finally:
            self._waiter, self._used = None, True

    def close(self) -> None:
        self.usable = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._waiter is not None and not self._waiter.done():
            kind = _Stale if self._used and not self._started else ConnectionResetError
            self._waiter.set_exception(kind("the server closed the connection before it answered"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(ConnectionError(f"the answer is not HTTP: {error}"))
            self.close()

    def on_message_begin(self) -> None:
        self._started = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.usable = self.usable and bool(self._parser.should_keep_alive())
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(_Reply(self._parser.get_status_code(), self._headers, b"".join(self._body)))
        if not self.usable:
            self._transport.close()


class _Tensor(msgspec.Struct):
    name: str
    data: list[float] = []


class _Body(msgspec.Struct):
    outputs: list[_Tensor] = []
    error: str | None = None


_decode = msgspec.json.Decoder(_Body).decode


def _answer(reply: _Reply, seconds: float) -> Answer:
    version, arm = reply.headers.get(b"x-trimtab-version"), reply.headers.get(b"x-trimtab-arm")
    try:
        body = _decode(reply.body)
    except msgspec.DecodeError as error:
        body = _Body(error=f"the answer is not V2 JSON: {error}")
    return Answer(
        reply.status,
        {tensor.name: tensor.data for tensor in body.outputs},
        None if version is None else version.decode("latin-1"),
        None if arm is None else arm.decode("latin-1"),
        seconds,
        body.error,
    )
