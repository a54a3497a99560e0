"""A replica: a whole inference core that takes its requests from the fronts, over a unix socket, instead of a port."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.errors import Conflict, NotFound, ServingError
from serving.fleet import frames
from serving.fleet.channel import Channel, RemoteError, first_of
from serving.fleet.exposition import Dump, dump
from serving.fleet.frames import FrameError, FrameReader, Request
from serving.fleet.link import FrameWriter
from serving.garbage import settle_down
from serving.routing.traffic import Policy
from serving.server import Service, ServingConfig
from serving.transport.exchange import Head, KnownExchange, error_head, run_app

_log = logging.getLogger(__name__)
_CLIENT_CLOSED = 499


class RelayedExchange(KnownExchange):
    """A request that came over a front's connection; the answer goes back the same way, with its number."""

    __slots__ = ("sequence",)

    def __init__(self, line: Line, sequence: int, head: Head, body: bytes, received: float) -> None:
        super().__init__(line, head, body, received)
        self.sequence = sequence
        self.size = len(body)


class Heads:
    """Headers of requests as the fronts packed them, read once each; bounded."""

    def __init__(self, limit: int = 1024, limit_bytes: int = 4096) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._known: dict[bytes, tuple[Head, bytes]] = {}

    def read(self, content: bytes) -> tuple[Head, bytes]:
        """The header, and the client's address. Raises FrameError."""
        found = self._known.get(content)
        if found is None:
            method, target, peer, pairs = frames.parse_head(content)
            found = Head(method, target, pairs), peer
            if len(content) <= self._limit_bytes:
                if len(self._known) >= self._limit:
                    self._known.clear()
                self._known[content] = found
        return found


class Line(asyncio.Protocol):
    """The connection of one front."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._reader = FrameReader()
        self._heads = Heads()
        self._open: dict[int, RelayedExchange] = {}
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter | None = None
        self._reporting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._writer = FrameWriter(self._transport, asyncio.get_running_loop().call_soon)  # type: ignore[arg-type]
        self._replica.lines.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._replica.lines.discard(self)
        held, self._open = self._open, {}
        for exchange in held.values():
            exchange.answer = b""
            self._replica.http.handler.cancel(exchange)

    def active(self) -> int:
        """Requests of this front that are not answered."""
        return len(self._open)

    def data_received(self, data: bytes) -> None:
        try:
            for kind, sequence, payload in self._reader.feed(data):
                if kind == frames.REQUEST:
                    self._request(sequence, frames.parse_request(payload))
                elif kind == frames.CANCEL:
                    self._cancel(sequence)
                elif kind == frames.PING:
                    self.put(frames.frame(frames.PONG, sequence))
                elif kind == frames.PROBE:
                    self._replica.spawn(self._probe())
        except FrameError as error:
            _log.error("a front does not speak frames: %s", error)
            if self._transport is not None:
                self._transport.abort()

    def _request(self, sequence: int, request: Request) -> None:
        head, peer = self._heads.read(request.head)
        exchange = RelayedExchange(self, sequence, head, request.body, request.received)
        self._open[sequence] = exchange
        if head.model:
            self._replica.http.handler.infer(exchange, head.model, head.version)
        elif not self._replica.leading and head.method not in (b"GET", b"HEAD"):
            exchange.respond(503, error_head(1.0), b'{"error": "this replica does not lead: retry"}')
        else:
            host, _, port = peer.decode().partition("\t")
            self._replica.spawn(run_app(self._replica.http.app, exchange, (host, int(port)) if port else None))

    def _cancel(self, sequence: int) -> None:
        exchange = self._open.get(sequence)
        if exchange is not None:
            self._replica.http.handler.cancel(exchange)
            # The front keeps its account of this request until it hears of it.
            exchange.respond(_CLIENT_CLOSED, b"", b"")

    async def _probe(self) -> None:
        self.put(frames.frame(frames.PROBED, 0, b"\1" if await self._replica.answers() else b"\0"))

    def respond(self, exchange: RelayedExchange, status: int, head: bytes, body: bytes) -> None:
        """Writes an answer, and how much is left, with all others of this turn of the loop."""
        if self._open.pop(exchange.sequence, None) is None:
            return
        exchange.answer = b""
        self.put(frames.answer_frame(exchange.sequence, status, head, body))
        if not self._reporting:
            self._reporting = True
            asyncio.get_running_loop().call_soon(self._report)

    def _report(self) -> None:
        self._reporting = False
        self.put(frames.load_frame(self._replica.active(), self._replica.queue_rows()))

    def put(self, frame: bytes) -> None:
        """Writes a frame."""
        if self._writer is not None:
            self._writer.put(frame)


class CannotJoin(Exception):
    """The replica does not come to where the others are; the supervisor starts it again later."""


class HubPeers:
    """The other replicas, as the control of the leading one sees them: by way of the supervisor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.leading = False

    async def prepare(self, policy: Policy) -> None:
        """Every replica has the policy's versions loaded and verified. Raises ServingError; then nothing changes."""
        try:
            await self._channel.call("prepare", policy=policy.to_json())
        except RemoteError as error:
            raise Conflict(str(error)) from error

    async def abort(self, policy: Policy) -> None:
        """What was prepared is not coming."""
        self._channel.notify("abort", policy=policy.to_json())

    async def commit(self, policy: Policy, move: bool) -> None:
        """All switch; one that cannot is taken out of the traffic and started again."""
        try:
            await self._channel.call("commit", policy=policy.to_json(), move=move)
        except (ServingError, TimeoutError) as error:
            # It is stored: whoever leads next brings the others there.
            _log.error("generation %d of %s may not be in force everywhere: %s", policy.generation, policy.model, error)

    async def repeat(self, deed: str, model: str, versions: Sequence[int] | None) -> None:
        """The others do the same, if this replica leads; what the others are told to repeat they keep to themselves."""
        if self.leading:
            kept = None if versions is None else list(versions)
            await self._channel.call("repeat", deed=deed, model=model, versions=kept)


def share_of(config: ServingConfig) -> ServingConfig:
    """What one replica makes of the server's settings: callers' rates are the server's, and it has a part of them.

    Its ports and their certificate are the fronts'.
    """
    count = config.fleet.replicas
    callers = tuple(
        replace(
            caller,
            rows_per_second=None if caller.rows_per_second is None else caller.rows_per_second / count,
            burst_rows=None if caller.burst_rows is None else max(1.0, caller.burst_rows / count),
        )
        for caller in config.callers
    )
    return replace(
        config, port=0, drain_notice=0.0, callers=callers, grpc_port=None, ssl_certfile=None, ssl_keyfile=None
    )


class Replica(Service):
    """A service whose listener is for fronts, and whose changes of policy are those of all replicas."""

    def __init__(self, config: ServingConfig, number: int, path: Path, channel: Channel) -> None:
        self._hub = HubPeers(channel)
        super().__init__(share_of(config), peers=self._hub)
        self.number = number
        self.lines: set[Line] = set()
        # Models that another replica serves: this one joins only with them.
        self.needed: Mapping[str, int] | None = None
        self._channel = channel
        self._path = path
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Joins with all its models loaded."""
        await super().start()
        await self.edge.start()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what answers by itself, later."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def leading(self) -> bool:
        """Whether this replica answers the control API."""
        return self._hub.leading

    def active(self) -> int:
        """Requests that fronts wait for."""
        return sum(line.active() for line in self.lines)

    def queue_rows(self) -> int:
        """Rows that wait for a batch, of all versions."""
        return sum(
            version.lane.queue.rows
            for deployment in self.deployments.values()
            for version in deployment.versions.values()
        )

    async def answers(self) -> bool:
        """Whether it is ready and each stable version answers its manifest's example, now."""
        if self.health.unready() is not None:
            return False
        for model, deployment in list(self.deployments.items()):
            stable = deployment.router.policy.stable
            if stable is not None:
                try:
                    await asyncio.to_thread(deployment.versions[stable].loaded.model.answer_example)
                except Exception as error:
                    _log.error("version %d of %s does not answer its example: %s", stable, model, error)
                    return False
        return True

    def generations(self) -> dict[str, int]:
        """The policies in force, by model, of those whose stable version is loaded."""
        return {name: d.router.policy.generation for name, d in self.deployments.items() if d.ready}

    def snapshot(self) -> list[Dump]:
        """Its metrics, now."""
        for deployment in self.deployments.values():
            deployment.observe()
        self.edge.observe()
        return dump(self.metrics.registry)

    async def handle(self, op: str, args: Mapping[str, Any]) -> Any:
        """What the supervisor asks. Raises ServingError."""
        if op == "snapshot":
            return {"families": self.snapshot(), "rows": self.queue_rows()}
        if op == "status":
            return {"generations": self.generations(), "unready": self.health.unready()}
        if op == "lead":
            self._hub.leading = bool(args["leading"])
        elif op == "prepare":
            await self._control.prepare(Policy.from_json(args["policy"]))
        elif op == "commit":
            await self._control.adopt(Policy.from_json(args["policy"]), move=args["move"])
        elif op == "abort":
            self._control.retire(args["policy"]["model"])
        elif op == "load":
            await self._control.load(args["model"], args["versions"], "the leading replica")
        elif op == "unload":
            with suppress(NotFound):
                for version in args["versions"] or [None]:
                    await self._control.unload(args["model"], version)
        elif op == "sync":
            for model in args["models"]:
                await self._control.follow(model)
        else:
            raise ServingError(f"a replica does not know {op!r}")
        return None

    # --- a life ----------------------------------------------------------------------------------------------------
    async def _listen(self) -> asyncio.Server:
        """Opens the socket, then waits for its turn: the first replica settles what is served, the others follow."""
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: Line(self), str(self._path))
        self.needed = await self._channel.call("enter")
        return server

    async def _restore(self, model: str) -> None:
        if self.needed is None:
            await super()._restore(model)
            return
        try:
            await self._control.follow(model)
        except ServingError as error:
            if model in self.needed:
                raise CannotJoin(f"replica {self.number} cannot load {model!r}, which others serve: {error}") from error
            raise

    def _active(self) -> int:
        return self.active()

    async def leave(self) -> None:
        """Asks the fronts to send no more, answers what they have sent, and ends."""
        self.health.state = "draining"
        for line in self.lines:
            line.put(frames.frame(frames.LEAVING, 0))
        limit = time.monotonic() + self.config.drain_timeout
        # A front closes its connection when it has all its answers: then nothing of it is under way any more.
        while self.lines and time.monotonic() < limit:
            await asyncio.sleep(0.005)
        await self.drain()


async def run_replica(config: ServingConfig, number: int, path: Path, sock: socket.socket, stop: asyncio.Event) -> None:
    """Serves until the supervisor says drain or goes away, or until `stop`. Raises CannotJoin."""
    over = asyncio.Event()
    replica: Replica | None = None

    async def handle(op: str, args: Mapping[str, Any]) -> Any:
        if op == "drain":
            over.set()
            return None
        if replica is None:
            raise ServingError("the replica is starting")
        return await replica.handle(op, args)

    channel = Channel(handle)
    loop = asyncio.get_running_loop()
    reading = loop.create_task(channel.run(sock))
    await channel.opened.wait()
    replica = Replica(config, number, path, channel)
    starting = loop.create_task(_join(replica, channel))
    ending = loop.create_task(first_of(over, stop, channel.closed))
    await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        # Told to end before it began: nothing was promised to anybody.
        starting.cancel()
        channel.close()
        return
    starting.result()
    settle_down()
    await ending
    if stop.is_set() and not over.is_set() and not channel.closed.is_set():
        # Somebody ends this one replica: the fronts send to the others from here.
        await channel.call("leaving")
    await replica.leave()
    if not channel.closed.is_set():
        await channel.call("ended", families=replica.snapshot(), rows=0)
    channel.close()
    await reading


async def _join(replica: Replica, channel: Channel) -> None:
    await replica.start()
    await channel.call("joined")
