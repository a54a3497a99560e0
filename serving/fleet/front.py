"""A front process: it accepts connections, reads HTTP, holds the limits, and relays what it reads to the replicas."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from observability.metrics import Metrics
from serving.errors import ServingError
from serving.fleet.app import RelayApp
from serving.fleet.channel import Channel, first_of
from serving.fleet.exposition import dump
from serving.fleet.relay import TICK_SECONDS, Relay
from serving.grpc.service import GrpcServer
from serving.http import Server
from serving.server import ServingConfig
from serving.telemetry.signals import connections_dropped
from serving.transport.certificates import grpc_credentials, tls_context
from serving.transport.gateway import Gateway
from serving.transport.listening import stop_accepting, stop_listening

_log = logging.getLogger(__name__)
_BACKLOG = 2048
_LINGER_SECONDS = 0.5
_LINGER_TURNS = 20


class FrontProcess:
    """One front. All fronts have all listening sockets, one of them their own; they cover for one that has died."""

    def __init__(
        self, config: ServingConfig, number: int, listeners: Sequence[socket.socket], channel: Channel
    ) -> None:
        self._config = config
        self._number = number
        self._listeners = listeners
        self._channel = channel
        self._metrics = Metrics()
        self._tls = tls_context(config.ssl_certfile, config.ssl_keyfile)
        self._accepting: dict[int, asyncio.Server] = {}
        self._closing = False
        self.relay = Relay(config.fleet, self._metrics)
        app = RelayApp(self.relay, self._unready, self._away, self._page, self._load, time.perf_counter)
        self.http = Server(self.relay, app, config.limits, connections_dropped(self._metrics))
        self._gateway = Gateway(self.relay)
        self._gateway.app = app
        self._grpc: GrpcServer | None = None

    async def handle(self, op: str, args: Mapping[str, Any]) -> Any:
        """What the supervisor asks."""
        if op == "replicas":
            return await self._update(args)
        if op == "cover":
            await self._accept({self._number, *args["fronts"]})
            return None
        if op == "view":
            in_flight = self.http.active() + self._gateway.active
            return {"connections": len(self.http.connections), "in_flight_requests": in_flight}
        if op == "snapshot":
            return self.snapshot()
        raise ServingError(f"a front does not know {op!r}")

    async def _update(self, who: Mapping[str, Any]) -> list[int]:
        paths = {int(number): path for number, path in who["paths"].items()}
        return await self.relay.update(paths, who["leader"], who["models"])

    def snapshot(self) -> dict[str, Any]:
        """Its metrics, now."""
        self.relay.observe()
        return {"families": dump(self._metrics.registry)}

    async def _accept(self, fronts: set[int]) -> None:
        """Accepts from exactly these fronts' sockets."""
        if self._closing:
            return
        loop = asyncio.get_running_loop()
        for number in fronts - set(self._accepting):
            listener = self._listeners[number].dup()
            self._accepting[number] = await loop.create_server(
                self.http.connection, sock=listener, backlog=_BACKLOG, ssl=self._tls
            )
        for number in set(self._accepting) - fronts:
            await stop_accepting(self._accepting.pop(number))

    def _away(self) -> str | None:
        return "the server is draining" if self._closing else None

    async def _unready(self) -> str | None:
        if self._closing:
            return self._away()
        reason: str | None = await self._channel.call("ready", timeout=5.0)
        if reason is None and not self.relay.balancer.full():
            return f"front {self._number} reaches no replica"
        return reason

    async def _page(self, accept: str) -> tuple[bytes, str]:
        body, content_type = await self._channel.call("page", timeout=30.0, accept=accept)
        return body, content_type

    async def _load(self) -> dict[str, Any]:
        report: dict[str, Any] = await self._channel.call("load", timeout=5.0)
        return report

    async def start(self) -> None:
        """Connects to the replicas that are there and accepts connections; without replicas these get 503."""
        await self._update(await self._channel.call("enter"))
        await self._accept({self._number})
        await self._open_grpc()
        await self._channel.call("listening")

    async def _open_grpc(self) -> None:
        """All fronts listen on gRPC's port, and the kernel spreads its connections over those that live."""
        config = self._config
        if config.grpc_port is not None:
            self._grpc = GrpcServer(self._gateway, max_message_bytes=config.limits.body_bytes)
            credentials = grpc_credentials(config.ssl_certfile, config.ssl_keyfile)
            await self._grpc.start(config.host, config.grpc_port, credentials, shared=True)

    async def sweep(self) -> None:
        """Keeps watch over slow clients and replicas, until cancelled."""
        swept = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.relay.tick()
            if time.monotonic() - swept >= 1.0:
                swept = time.monotonic()
                self.http.sweep(swept)

    async def drain(self, notice: float, *, everywhere: bool) -> None:
        """Not ready for `notice` seconds, then no new connections, then every request is answered.

        `everywhere` says that all fronts end, so that nobody is left who would take a connection.
        """
        self._closing = True
        self.http.begin_close()
        await asyncio.sleep(notice)
        await stop_listening(
            list(self._accepting.values()), self._listeners, self.http.connection, notice, everywhere=everywhere,
            tls=self._tls,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        # A connection that has just come or was just answered may have a request on the way: it gets a moment.
        lingering = time.monotonic() + max(notice, _LINGER_SECONDS)
        limit = time.monotonic() + self._config.drain_timeout
        calls = loop.create_task(self._grpc.stop(self._config.drain_timeout)) if self._grpc is not None else None
        # A process that the machine kept from working for that moment has not read what came meanwhile: turns of the
        # loop count, too.
        turns = 0
        while (now := time.monotonic()) < limit and (
            self.http.active() or (self.http.connections and (now < lingering or turns < _LINGER_TURNS))
        ):
            turns += 1
            await asyncio.sleep(0.005)
        if calls is not None:
            await calls
        # What was written last has a turn of the loop to leave before the connections close.
        await asyncio.sleep(0)
        self.http.abort()
        self.relay.close()


async def run_front(
    config: ServingConfig, number: int, listeners: Sequence[socket.socket], sock: socket.socket, stop: asyncio.Event
) -> None:
    """Serves until the supervisor says drain or goes away, or until `stop`."""
    over = asyncio.Event()

    async def handle(op: str, args: Mapping[str, Any]) -> Any:
        if op == "drain":
            over.set()
            return None
        return await front.handle(op, args)

    channel = Channel(handle)
    front = FrontProcess(config, number, listeners, channel)
    loop = asyncio.get_running_loop()
    reading = loop.create_task(channel.run(sock))
    await channel.opened.wait()
    await front.start()
    sweeping = loop.create_task(front.sweep())
    await first_of(over, stop, channel.closed)
    leaves = stop.is_set() and not over.is_set() and not channel.closed.is_set()
    if leaves:
        # Somebody ends this one front: the others take its connections from here.
        await channel.call("leaving")
    # Without a supervisor nobody waits to be told.
    await front.drain(0.0 if channel.closed.is_set() else config.drain_notice, everywhere=not leaves)
    sweeping.cancel()
    if not channel.closed.is_set():
        await channel.call("ended", **front.snapshot())
    channel.close()
    await reading
