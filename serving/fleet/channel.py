"""Calls and notices between the supervisor and one of its processes, over a socket that only the two of them hold."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from serving.errors import ServingError

_log = logging.getLogger(__name__)
_LENGTH = struct.Struct("<I")
Handler = Callable[[str, Mapping[str, Any]], Awaitable[Any]]


class ChannelClosed(ServingError):
    """The process at the other end is gone (503)."""

    status = 503
    outcome = "unavailable"
    retry_after_seconds = 1.0


class RemoteError(ServingError):
    """What the other end said went wrong; `status` is the HTTP status that it would answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Channel:
    """Both ends may call; answers come in any order. `handle` runs as a task of its own for each message."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._writer: asyncio.StreamWriter | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.opened = asyncio.Event()
        self.closed = asyncio.Event()

    async def run(self, sock: socket.socket) -> None:
        """Reads until the other end closes."""
        reader, self._writer = await asyncio.open_unix_connection(sock=sock)
        self.opened.set()
        try:
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                self._received(msgspec.msgpack.decode(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.close()

    def _received(self, message: dict[str, Any]) -> None:
        if "op" in message:
            task = asyncio.get_running_loop().create_task(self._serve(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        waiting = self._waiting.pop(message["id"], None)
        if waiting is None or waiting.done():
            return
        if "error" in message:
            waiting.set_exception(RemoteError(message["error"], message["status"]))
        else:
            waiting.set_result(message["result"])

    async def _serve(self, message: dict[str, Any]) -> None:
        number = message["id"]
        try:
            answer = {"id": number, "result": await self._handle(message["op"], message["args"])}
        except ServingError as error:
            answer = {"id": number, "error": str(error), "status": error.status}
        except Exception as error:
            _log.exception("%s failed", message["op"])
            answer = {"id": number, "error": f"{type(error).__name__}: {error}", "status": 500}
        if number is not None:
            self._send(answer)

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is not None and not self.closed.is_set():
            content = msgspec.msgpack.encode(message)
            self._writer.write(_LENGTH.pack(len(content)) + content)

    async def call(self, op: str, timeout: float | None = None, **args: Any) -> Any:
        """The other end's answer. Raises RemoteError, ChannelClosed or TimeoutError."""
        if self._writer is None or self.closed.is_set():
            raise ChannelClosed("the process is not connected")
        number = next(self._numbers)
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            self._send({"id": number, "op": op, "args": args})
            async with asyncio.timeout(timeout):
                return await waiting
        finally:
            self._waiting.pop(number, None)

    def notify(self, op: str, **args: Any) -> None:
        """Says something that needs no answer."""
        self._send({"id": None, "op": op, "args": args})

    def close(self) -> None:
        """Ends the channel; calls that wait fail."""
        if self.closed.is_set():
            return
        self.closed.set()
        if self._writer is not None:
            self._writer.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(ChannelClosed("the process ended before it answered"))


async def first_of(*events: asyncio.Event) -> None:
    """Returns when one of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
