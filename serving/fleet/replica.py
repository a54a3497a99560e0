"""A replica: a whole inference core that takes its requests from the fronts, over a unix socket, instead of a port."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.artifacts.placement import of_process
from serving.errors import NotFound, ServingError
from serving.fleet import frames
from serving.fleet.channel import Channel, first_of
from serving.fleet.exposition import Dump, dump
from serving.fleet.lines import Line
from serving.fleet.peers import HubPeers, packed_view
from serving.garbage import load_torch, settle_down
from serving.routing.traffic import Policy
from serving.server import Service, ServingConfig

_log = logging.getLogger(__name__)


class CannotJoin(Exception):
    """The replica does not come to where the others are; the supervisor starts it again later."""


def inside(config: ServingConfig) -> ServingConfig:
    """What one replica makes of the server's settings: its ports and their certificate are the fronts'."""
    return replace(config, port=0, drain_notice=0.0, grpc_port=None, ssl_certfile=None, ssl_keyfile=None)


class Replica(Service):
    """A service whose listener is for fronts, and whose changes of policy are those of all replicas."""

    def __init__(self, config: ServingConfig, number: int, path: Path, channel: Channel) -> None:
        self._hub = HubPeers(channel, number, config.fleet.min_ready)
        own = replace(inside(config), device=of_process(config.device, number))
        super().__init__(own, peers=self._hub)
        if self._callers is not None:
            self._callers.share_nothing()
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
            if stable is not None and not deployment.asleep(stable):
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
        if op == "view":
            return {"load": self.edge.load.report(), **packed_view(self.generations(), self._residency.statuses())}
        if op == "demand":
            return {} if self._callers is None else self._callers.demand()
        if op == "share":
            return {} if self._callers is None else self._callers.share(args["shares"], time.perf_counter())
        if op == "status":
            return {"generations": self.generations(), "unready": self.health.unready()}
        if op == "lead":
            self._hub.leading = bool(args["leading"])
        elif op == "prepare":
            await self._control.prepare(Policy.from_json(args["policy"]))
        elif op == "commit":
            await self._control.adopt(Policy.from_json(args["policy"]), move=args["move"])
        elif op == "abort":
            await self._control.abandon(args["policy"]["model"])
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

    async def _stop_listening(self) -> None:
        assert self._listener is not None
        self._listener.close()

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
    load_torch(config.torch_threads)
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
