"""A front's inference handler: each request goes to a replica as it came, and the answer back to its connection."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Collection, Mapping

import msgspec

from observability import names
from observability.metrics import Metrics
from serving.fleet import frames
from serving.fleet.balance import Backend, Balancer, Reason
from serving.fleet.frames import Request, pack_head
from serving.fleet.link import Link
from serving.fleet.options import FleetOptions
from serving.transport.exchange import Exchange, error_head

_log = logging.getLogger(__name__)
TICK_SECONDS = 0.25
_FIRST_RETRY_SECONDS = 0.05
_LAST_RETRY_SECONDS = 1.0
Respond = Callable[[int, bytes, bytes], None]


class Flight:
    """A request that a replica has."""

    __slots__ = ("link", "model", "request", "respond", "retried", "sequence", "size")

    def __init__(self, request: Request, respond: Respond, model: str | None) -> None:
        self.request = request
        self.respond: Respond | None = respond
        # None for what is not inference: it goes to the leader, once.
        self.model = model
        self.size = len(request.body)
        self.retried = False
        self.link: Link | None = None
        self.sequence = 0


class Relay:
    """Knows the replicas and what each of them was asked. Everything runs on the event loop and never waits."""

    def __init__(self, options: FleetOptions, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._metrics = metrics
        self._clock = clock
        self._numbers = itertools.count(1)
        self.balancer = Balancer(options, alone=options.front_count == 1)
        self.links: dict[int, Link] = {}
        self.leader: int | None = None
        self.models: Collection[str] = ()
        self._paths: dict[int, str] = {}
        self._connecting: dict[int, asyncio.Task[None]] = {}
        self._ticked = clock()
        self._pinged = self._ticked

    # --- replicas --------------------------------------------------------------------------------------------------
    async def update(self, paths: Mapping[int, str], leader: int | None, models: Collection[str]) -> list[int]:
        """Takes up who is there (socket paths by number). Returns those that get requests, once connected."""
        self.models = frozenset(models)
        for number in list(self._paths):
            if paths.get(number) != self._paths[number]:
                self._forget(number)
        for number, path in paths.items():
            if number not in self._paths:
                self._paths[number] = path
                backend = self.balancer.add(number)
                self._connecting[number] = asyncio.get_running_loop().create_task(self._connect(backend, path))
        waiting = [task for number, task in self._connecting.items() if number in paths]
        if waiting:
            await asyncio.wait(waiting, timeout=2.0)
        self.leader = leader
        return [number for number, backend in self.balancer.backends.items() if backend.routable]

    def _forget(self, number: int) -> None:
        """A replica that is no longer there, or leaves: nothing more goes to it; what it has it may answer."""
        self._paths.pop(number)
        if (task := self._connecting.pop(number, None)) is not None:
            task.cancel()
        backend = self.balancer.backends.pop(number)
        backend.leaving = True
        if (link := self.links.pop(number, None)) is not None:
            link.close_when_empty()

    async def _connect(self, backend: Backend, path: str, *, again: bool = False) -> None:
        loop = asyncio.get_running_loop()
        delay = _FIRST_RETRY_SECONDS
        if again:
            # A process that is being killed may take connections for a moment more.
            await asyncio.sleep(delay)
        while True:
            try:
                _, link = await loop.create_unix_connection(lambda: Link(backend, self), path)
            except OSError as error:
                _log.debug("replica %d does not take connections: %s", backend.number, error)
            else:
                if not link.gone:
                    self.links[backend.number] = link
                    backend.connected = True
                    return
            await asyncio.sleep(delay)
            delay = min(_LAST_RETRY_SECONDS, 2 * delay)

    def lost(self, link: Link, why: str) -> None:
        """The connection to a replica is gone: its requests are asked of another one, or refused."""
        backend = link.backend
        backend.connected = False
        number = backend.number
        if not link.done:
            if backend.ejected is not None:
                self.balancer.probed(backend, False, self._clock())
            elif link.silent:
                self._eject(backend, "silent")
            else:
                self._count_ejection(backend, "closed")
        if self.links.get(number) is link:
            del self.links[number]
            if not backend.leaving:
                task = self._connect(backend, self._paths[number], again=True)
                self._connecting[number] = asyncio.get_running_loop().create_task(task)
        flights, link.flights = link.flights, {}
        if flights:
            _log.warning("replica %d was lost with %d requests: %s", number, len(flights), why)
        for flight in flights.values():
            self.balancer.settled(backend, flight.size)
            if flight.respond is not None:
                self._recover(flight, number, why)

    def _recover(self, flight: Flight, number: int, why: str) -> None:
        if flight.model is not None and self._options.retry_lost and not flight.retried:
            flight.retried = True
            other = self.balancer.pick(flight.size, other_than=number)
            if other is not None:
                self._send(flight, other)
                self._metrics[names.RELAY_LOST].labels("retried").inc()
                return
        self._metrics[names.RELAY_LOST].labels("refused").inc()
        if flight.model is not None:
            message = (
                f"replica {number} had this request and did not answer: {why}. Inference changes nothing: retry it"
            )
        else:
            message = (
                f"replica {number} had this call and did not answer: {why}. It may have been carried out: "
                "look, or repeat it with the same Idempotency-Key"
            )
        self._refuse(flight, 503, message)

    # --- requests --------------------------------------------------------------------------------------------------
    def infer(self, exchange: Exchange, model: str, version: str | None) -> None:
        """Takes a request; its answer follows on the exchange."""
        try:
            head = packed(exchange)
        except ValueError as error:
            exchange.respond(400, error_head(None), msgspec.json.encode({"error": f"{error}: send text"}))
            return
        request = Request(exchange.received, head, exchange.body)
        flight = exchange.handle = Flight(request, exchange.respond, model)
        backend = self.balancer.pick(flight.size)
        if backend is None:
            self._unsent(flight)
        else:
            self._send(flight, backend)

    def cancel(self, exchange: Exchange) -> None:
        """The client went away."""
        flight = exchange.handle
        if isinstance(flight, Flight):
            flight.respond = None
            # Until the replica says that it has dropped the request, it counts as one that it holds.
            if flight.link is not None and flight.sequence in flight.link.flights:
                flight.link.send(frames.frame(frames.CANCEL, flight.sequence))

    def call(self, request: Request, respond: Respond) -> None:
        """Asks the leading replica something that is not inference."""
        flight = Flight(request, respond, None)
        backend = self.balancer.backends.get(self.leader) if self.leader is not None else None
        if backend is None or not backend.connected:
            self._metrics[names.RELAY_REFUSED].labels("none").inc()
            self._refuse(flight, 503, "no replica leads now: they are starting, or one of them takes over; retry")
        else:
            self._send(flight, backend)

    def _send(self, flight: Flight, backend: Backend) -> None:
        sequence = next(self._numbers)
        link = self.links[backend.number]
        link.flights[sequence] = flight
        flight.link, flight.sequence = link, sequence
        self.balancer.sent(backend, flight.size)
        link.send(frames.request_frame(sequence, flight.request))

    def _unsent(self, flight: Flight) -> None:
        full = self.balancer.full()
        self._metrics[names.RELAY_REFUSED].labels("full" if full else "none").inc()
        if full:
            self._count(flight, "rejected")
            self._refuse(flight, 429, "every replica holds as many requests as it may; send more slowly")
        else:
            self._count(flight, "unavailable")
            self._refuse(flight, 503, "no replica takes requests now: they are starting, or failing; retry")

    def _count(self, flight: Flight, outcome: str) -> None:
        if flight.model in self.models:
            self._metrics[names.INFERENCE_REQUESTS].labels(flight.model, "none", outcome).inc()

    def _refuse(self, flight: Flight, status: int, message: str) -> None:
        respond, flight.respond = flight.respond, None
        if respond is not None:
            body = msgspec.json.encode({"error": message})
            respond(status, error_head(1.0 if status in (429, 503) else None), body)

    def answer(self, link: Link, sequence: int, payload: bytes) -> None:
        """A replica's answer goes to the connection that asked."""
        flight: Flight | None = link.flights.pop(sequence, None)
        if flight is None:
            return
        backend = link.backend
        self.balancer.settled(backend, flight.size)
        respond, flight.respond = flight.respond, None
        if respond is not None:
            status, head, body = frames.parse_answer(payload)
            if flight.model is not None:
                self.balancer.answered(backend, status >= 500, self._clock())
            respond(status, head, body)
        if backend.leaving:
            link.close_when_empty()

    # --- health ----------------------------------------------------------------------------------------------------
    def load(self, link: Link, payload: bytes) -> None:
        """A replica says how much it holds."""
        self.balancer.reported(link.backend, frames.parse_load(payload)[0])

    def probed(self, link: Link, passed: bool) -> None:
        """A replica that was ejected answers its models' examples again, or not."""
        self.balancer.probed(link.backend, passed, self._clock())
        _log.info("replica %d %s", link.backend.number, "is back" if passed else "failed its probe")

    def tick(self) -> None:
        """Pings, probes and judges; call it every `TICK_SECONDS`."""
        now = self._clock()
        late = now - self._ticked > self._options.ping_interval + TICK_SECONDS
        self._ticked = now
        pinging = now - self._pinged >= self._options.ping_interval
        if pinging:
            self._pinged = now
        for link in list(self.links.values()):
            if late:
                link.forgive(now)
            elif pinging:
                link.ask(now, self._options.ping_limit)
        for backend in self.balancer.outliers(now):
            self._eject(backend, "outlier")
        for backend in list(self.balancer.due(now)):
            # Unanswered, it is asked again; one that never answers is silent, and its connection is closed.
            backend.probe_at = now + self._options.ping_limit
            self.links[backend.number].send(frames.frame(frames.PROBE, 0))

    def _eject(self, backend: Backend, reason: Reason) -> None:
        answers, faults = backend.tally(self._clock())
        self.balancer.eject(backend, reason, self._clock())
        self._count_ejection(backend, reason)
        _log.warning(
            "replica %d is out of the traffic (%s): %d of its last %d answers failed; probed in %.1f s",
            backend.number, reason, faults, answers, backend.probe_at - self._clock(),
        )  # fmt: skip

    def _count_ejection(self, backend: Backend, reason: str) -> None:
        self._metrics[names.REPLICA_EJECTIONS].labels(str(backend.number), reason).inc()

    def observe(self) -> None:
        """Sets the gauges."""
        for number, backend in self.balancer.backends.items():
            self._metrics[names.REPLICA_IN_FLIGHT].labels(str(number)).set(backend.in_flight)

    def close(self) -> None:
        """Ends all connections."""
        for task in self._connecting.values():
            task.cancel()
        links, self.links = self.links, {}
        for link in links.values():
            link.done = True
            link.abort("this front ends")


def packed(exchange: Exchange) -> bytes:
    """The exchange's header for a frame; made once for all requests with the same header. Raises ValueError."""
    known = exchange.head
    if known is not None and known.memo is not None:
        memo: bytes = known.memo
        return memo
    pairs = exchange.headers.items() if exchange.pairs is None else exchange.pairs
    head = pack_head(exchange.method, exchange.target, b"", pairs)
    if known is not None:
        known.memo = head
    return head
