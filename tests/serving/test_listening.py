"""The end of a listener: whoever could connect is answered, all others are turned away before they send anything."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import Counter

import pytest

from serving.transport import listening
from tests.serving.conftest import Start

BODY = json.dumps({
    "inputs": [
        {"name": "amount", "datatype": "FP32", "shape": [1], "data": [2.0]},
        {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["AA"]},
    ]
}).encode()  # fmt: skip
REQUEST = (
    b"POST /v2/models/fares/infer HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    % len(BODY)
) + BODY


class Callers:
    """Threads that connect, ask once, and hang up, again and again until nobody listens."""

    def __init__(self, port: int, count: int = 4) -> None:
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._port = port
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _call(self) -> None:
        while (outcome := self._once()) != "turned away":
            with self._lock:
                self.seen[outcome] += 1

    def _once(self) -> str:
        try:
            connection = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        except ConnectionError:
            return "turned away"
        connected = time.monotonic()
        with connection:
            asked = time.monotonic()
            try:
                connection.sendall(REQUEST)
                answer = connection.recv(65536)
            except ConnectionError:
                answer = b""
            if answer.startswith(b"HTTP/1.1 200 "):
                return "answered"
            # Whom the machine kept from sending for longer than a server waits that ends.
            return "late" if asked - connected > 0.2 else f"lost: {answer[:40]!r}"

    async def answered(self, count: int) -> None:
        while self.seen["answered"] < count:
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        for thread in self._threads:
            await asyncio.to_thread(thread.join)


async def test_nobody_who_could_connect_is_lost_when_a_server_ends(start: Start) -> None:
    service = await start()
    callers = Callers(service.port)
    await callers.answered(50)

    await service.drain()
    await callers.end()

    assert set(callers.seen) <= {"answered", "late"}, callers.seen


async def test_a_socket_that_turns_away_keeps_those_who_were_there_before() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=8)
    address = listener.getsockname()
    waiting = [socket.create_connection(address) for _ in range(3)]
    assert listening.turn_away(listener)
    with socket.socket() as late:
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.connect(address)

    taken = await listening.last_connections([listener], 0.1, everywhere=True)

    assert len(taken) == 3
    for client, connection in zip(waiting, taken, strict=True):
        client.sendall(b"x")
        assert await asyncio.get_running_loop().sock_recv(connection, 1) == b"x"
        client.close()
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_who_was_accepted_in_the_turn_before_the_end_is_served() -> None:
    made: list[asyncio.BaseTransport] = []

    class Kept(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(transport)

    server = await asyncio.get_running_loop().create_server(Kept, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()):
        # The loop has accepted it and made nothing of it yet.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not made

        await listening.stop_accepting(server)

        assert len(made) == 1
        made[0].close()
