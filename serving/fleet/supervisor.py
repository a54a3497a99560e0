"""The supervisor: opens the port, starts fronts and replicas, starts again what dies, and ends all of it in order."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process, create_subprocess_exec
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observability import names
from observability.metrics import Metrics
from serving.fleet.channel import Channel
from serving.fleet.hub import Hub
from serving.fleet.members import Gate, Member
from serving.fleet.orders import Kind, Orders, send_orders
from serving.stopping import Stopping
from serving.transport.certificates import tls_context

if TYPE_CHECKING:
    from serving.server import ServingConfig

_log = logging.getLogger(__name__)
_BACKLOG = 2048
FIRST_RESTART_SECONDS = 0.1
MAX_RESTART_SECONDS = 15.0
# A process that lived this long is not one that dies again and again.
STEADY_SECONDS = 60.0
# Beyond the grace period, for what a process does after its last answer.
_END_SECONDS = 10.0


class Fleet:
    """All processes of one server. `start` returns when the port is open, `drain` when all have ended."""

    def __init__(self, config: ServingConfig, log_level: str = "INFO") -> None:
        self._config = config
        self._log_level = log_level
        self._metrics = Metrics()
        self.hub = Hub(config.fleet, self._metrics, self._kill, config.callers)
        self.port = config.port
        self.grpc_port = config.grpc_port
        self._listeners: list[socket.socket] = []
        self._grpc_port_held: socket.socket | None = None
        self._folder = Path()
        self._processes: dict[tuple[Kind, int], Process] = {}
        self._keepers: dict[tuple[Kind, int], asyncio.Task[None]] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._draining: set[Kind] = set()

    async def start(self) -> None:
        """Opens the port and starts the processes.

        Raises OSError when a port is taken or the certificate cannot be used, ImportError for gRPC without grpcio.
        """
        config, fleet = self._config, self._config.fleet
        # What no front could do is said here, once, instead of by each of them again and again.
        tls_context(config.ssl_certfile, config.ssl_keyfile)
        if config.grpc_port is not None:
            if importlib.util.find_spec("grpc") is None:
                raise ImportError("the gRPC port needs grpcio: pip install 'trimtab[grpc]'")
            self._grpc_port_held = hold_port(config.host, config.grpc_port)
            self.grpc_port = self._grpc_port_held.getsockname()[1]
            self._config = replace(config, grpc_port=self.grpc_port)
        self._listeners = open_listeners(config.host, config.port, fleet.front_count)
        self.port = self._listeners[0].getsockname()[1]
        # Only this user may enter the folder: whoever reaches a replica's socket is taken for a front.
        self._folder = Path(tempfile.mkdtemp(prefix="trimtab-"))
        loop = asyncio.get_running_loop()
        self._watching = [loop.create_task(self.hub.watch()), loop.create_task(self.hub.share())]
        for number in range(fleet.front_count):
            self._keepers["front", number] = loop.create_task(self._keep("front", number))
        for number in range(fleet.replicas):
            self._keepers["replica", number] = loop.create_task(self._keep("replica", number))

    async def ready(self) -> None:
        """Returns when the server is ready."""
        while self.hub.unready() is not None:
            await asyncio.sleep(0.02)
        _log.info("serving on %s:%d", self._config.host, self.port)

    def pid(self, kind: Kind, number: int) -> int | None:
        """The process id of a front or a replica, while it runs."""
        process = self._processes.get((kind, number))
        return None if process is None else process.pid

    async def drain(self) -> None:
        """Not ready, no new connections, every request answered, then the replicas' telemetry sent; all ended."""
        self.hub.draining = True
        self._draining |= {"front", "replica"}
        # The fronts have these sockets too, and the last of them to let go takes what has connected till then.
        for listener in self._listeners:
            listener.close()
        for gate in self.hub.fronts.values():
            gate.channel.notify("drain")
        await self._ended("front")
        for member in self.hub.replicas.values():
            member.channel.notify("drain")
        await self._ended("replica")
        for task in self._watching:
            task.cancel()
        if self._grpc_port_held is not None:
            self._grpc_port_held.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """Ends all processes at once, whatever they are about; `drain`, which is under way, then returns."""
        for process in self._processes.values():
            process.kill()

    async def _ended(self, kind: Kind) -> None:
        keepers = [keeper for (kept, _), keeper in self._keepers.items() if kept == kind]
        if keepers:
            _, late = await asyncio.wait(keepers, timeout=self._config.drain_timeout + _END_SECONDS)
            for (kept, number), keeper in self._keepers.items():
                if keeper in late and (process := self._processes.get((kept, number))) is not None:
                    _log.error("%s %d did not end in time: killed", kept, number)
                    process.kill()
            await asyncio.gather(*keepers, return_exceptions=True)

    def _kill(self, number: int) -> None:
        process = self._processes.get(("replica", number))
        if process is not None:
            process.kill()

    # --- one process -----------------------------------------------------------------------------------------------
    async def _keep(self, kind: Kind, number: int) -> None:
        """Starts the process, and starts it again when it ends, ever later when it does so again and again."""
        failures = incarnation = 0
        restarts = self._metrics[names.FRONT_RESTARTS if kind == "front" else names.REPLICA_RESTARTS]
        while kind not in self._draining:
            began = time.monotonic()
            status = await self._live(kind, number, incarnation)
            if kind in self._draining:
                return
            incarnation += 1
            failures = 0 if status == 0 or time.monotonic() - began > STEADY_SECONDS else failures + 1
            delay = min(MAX_RESTART_SECONDS, FIRST_RESTART_SECONDS * 2.0**failures)
            level = logging.INFO if status == 0 else logging.ERROR
            _log.log(level, "%s %d ended with %d; started again in %.1f s", kind, number, status, delay)
            restarts.labels(str(number)).inc()
            await asyncio.sleep(delay)

    async def _live(self, kind: Kind, number: int, incarnation: int) -> int:
        """One life of a process; its exit status."""
        ours, theirs = socket.socketpair()
        path = self._folder / f"{kind}-{number}-{incarnation}.sock"
        listeners = tuple(listener.fileno() for listener in self._listeners) if kind == "front" else ()
        orders = Orders(kind, number, self._config, self._log_level, path, listeners)
        with theirs:
            process = await create_subprocess_exec(
                sys.executable, "-P", "-m", "serving.fleet", kind, str(number), str(theirs.fileno()),
                pass_fds=(theirs.fileno(), *listeners), stdin=DEVNULL, env=_environment(),
            )  # fmt: skip
        self._processes[kind, number] = process
        send_orders(ours, orders)
        ours.setblocking(False)
        try:
            if kind == "replica":
                await self._replica(number, path, ours)
            else:
                await self._front(number, ours)
        finally:
            # Its channel is closed: what does not end by itself now never will.
            try:
                async with asyncio.timeout(_END_SECONDS):
                    status = await process.wait()
            except TimeoutError:
                process.kill()
                status = await process.wait()
            self._processes.pop((kind, number), None)
            path.unlink(missing_ok=True)
        return status

    async def _replica(self, number: int, path: Path, sock: socket.socket) -> None:
        channel = Channel(lambda op, args: self.hub.from_replica(member, op, args))
        member = Member(number, path, channel)
        self.hub.replicas[number] = member
        try:
            await channel.run(sock)
        finally:
            await self.hub.replica_gone(member)

    async def _front(self, number: int, sock: socket.socket) -> None:
        channel = Channel(lambda op, args: self.hub.from_front(gate, op, args))
        gate = Gate(number, channel)
        self.hub.fronts[number] = gate
        try:
            await channel.run(sock)
        finally:
            self.hub.front_gone(gate)


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` listening sockets on one port, among which the kernel spreads the connections. Raises OSError."""
    family, kind, protocol, address = _free_address(host, port)
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            listener = socket.socket(family, kind, protocol)
            opened.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if count > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
    except OSError:
        for listener in opened:
            listener.close()
        raise
    return opened


def hold_port(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for listeners that share it (SO_REUSEPORT), and takes no connections itself.

    Raises OSError when the port is taken.
    """
    family, kind, protocol, address = _free_address(host, port)
    held = socket.socket(family, kind, protocol)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError:
        held.close()
        raise
    return held


def _free_address(host: str, port: int) -> tuple[int, int, int, Any]:
    """Family, kind and protocol of a socket there, and the address, with a port that nobody has."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # Sharing a port is a matter of our sockets only: another server that shares it too must not go unseen.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return family, kind, protocol, probe.getsockname()


def _environment() -> dict[str, str]:
    """The environment of a process: it imports what this one can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}


async def run_fleet(
    config: ServingConfig, log_level: str = "INFO", started: Callable[[Any], None] | None = None
) -> None:
    """Serves until it is told to stop, then drains; Ctrl-C during that ends it at once.

    `started` is called with the Fleet once it is ready.
    """
    stopping = Stopping()
    loop = asyncio.get_running_loop()
    fleet = Fleet(config, log_level)
    await fleet.start()
    readying = loop.create_task(fleet.ready())
    asked = loop.create_task(stopping.asked.wait())
    await asyncio.wait([readying, asked], return_when=asyncio.FIRST_COMPLETED)
    if readying.done() and started is not None:
        started(fleet)
    readying.cancel()
    await asked
    draining = loop.create_task(fleet.drain())
    hurried = loop.create_task(stopping.hurried.wait())
    await asyncio.wait([draining, hurried], return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        fleet.kill()
    await draining
    hurried.cancel()
    _log.info("ended in a hurry" if stopping.hurried.is_set() else "drained; goodbye")
