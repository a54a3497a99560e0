"""The middle of a fleet: who is there, who leads, one change of policy at a time, one page of metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observability import names
from observability.metrics import Metrics
from serving.errors import ServingError
from serving.fleet.channel import Channel, ChannelClosed, RemoteError
from serving.fleet.exposition import Dump, Totals, dump
from serving.fleet.options import FleetOptions

_log = logging.getLogger(__name__)
# A version is loaded, warmed and verified in this time on every replica, or the change does not happen.
_PREPARE_SECONDS = 600.0
# A switch of what is loaded already, with the batches that still run.
_COMMIT_SECONDS = 30.0
_SNAPSHOT_SECONDS = 2.0
_ANNOUNCE_SECONDS = 5.0
_WATCH_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Member:
    """A replica. `generations` are the policies in force in it, by model."""

    number: int
    path: Path
    channel: Channel
    up: bool = False
    generations: Mapping[str, int] = field(default_factory=dict)
    unready: str | None = None
    families: list[Dump] = field(default_factory=list)
    rows: int = 0
    asked: bool = False


@dataclass(slots=True, eq=False)
class Gate:
    """A front. `reaches` are the replicas that it sends requests to."""

    number: int
    channel: Channel
    listening: bool = False
    reaches: frozenset[int] = frozenset()
    families: list[Dump] = field(default_factory=list)


class Hub:
    """Runs in the supervisor. `kill` ends the process of a replica; whoever starts processes brings it back."""

    def __init__(self, options: FleetOptions, metrics: Metrics, kill: Callable[[int], None]) -> None:
        self._options = options
        self._metrics = metrics
        self._kill = kill
        self.replicas: dict[int, Member] = {}
        self.fronts: dict[int, Gate] = {}
        self.leader: int | None = None
        self.draining = False
        self._departed = Totals()
        # Held while a policy changes and while a replica joins: both see a fleet that stands still.
        self._change = asyncio.Lock()
        self._changing: Member | None = None
        # Held by the replica that settles what is served, when no other one is there.
        self._turn = asyncio.Lock()
        self._settling: Member | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- replicas --------------------------------------------------------------------------------------------------
    async def from_replica(self, member: Member, op: str, args: Mapping[str, Any]) -> Any:
        """What a replica asks."""
        if op == "enter":
            return await self._enter(member)
        if op == "joined":
            return await self._joined(member)
        if op == "leaving":
            return await self._leaving(member)
        if op == "prepare":
            return await self._prepare(member, args["policy"])
        if op == "commit":
            return await self._commit(member, args["policy"], args["move"])
        if op == "repeat":
            return await self._repeat(member, args["deed"], args["model"], args["versions"])
        if op == "abort":
            return self._abort(member, args["policy"])
        if op == "ended":
            return self._took(member, args)
        raise ServingError(f"the supervisor does not know {op!r}")

    async def _enter(self, member: Member) -> dict[str, int] | None:
        """What a starting replica must be able to serve; None when it comes first and decides that by itself."""
        await self._turn.acquire()
        if member.channel.closed.is_set():
            self._turn.release()
            return None
        if self._up():
            self._turn.release()
            return self._served()
        self._settling = member
        return None

    async def _joined(self, member: Member) -> None:
        async with self._change:
            models = sorted(self._served())
            await member.channel.call("sync", timeout=_PREPARE_SECONDS, models=models)
            await self._look(member)
            member.up = True
            self._end_turn(member)
            self._elect()
            await self._announce()
        _log.info("replica %d takes requests", member.number, extra={"models": sorted(member.generations)})

    def _end_turn(self, member: Member) -> None:
        if self._settling is member:
            self._settling = None
            self._turn.release()

    async def _leaving(self, member: Member) -> None:
        """Somebody ends one replica: it goes when another one takes requests, or none does for a long time."""
        limit = time.monotonic() + _PREPARE_SECONDS
        several = self._options.replicas > 1
        while several and not self.draining and not self._others(member) and time.monotonic() < limit:
            await asyncio.sleep(0.05)
        await self._down(member)

    async def _down(self, member: Member) -> None:
        """No requests and no lead for this replica from here on."""
        member.up = False
        if self.leader == member.number:
            self.leader = None
            member.channel.notify("lead", leading=False)
        await self._announce()
        if self.leader is None:
            self._later(self._succeed())

    async def replica_gone(self, member: Member) -> None:
        """The process ended, however it did."""
        if self.replicas.get(member.number) is member:
            del self.replicas[member.number]
        self._departed.add(member.families, gauges=False)
        member.families = []
        self._end_turn(member)
        if self._changing is member:
            self._release(member)
        await self._down(member)

    async def _succeed(self) -> None:
        """A new leader, once all have what is stored: the last one may have ended between storing and switching."""
        async with self._change:
            if self.draining or self.leader is not None:
                return
            await self._sync(self._up())
            self._elect()
            await self._announce()

    async def _sync(self, members: Iterable[Member]) -> None:
        models = sorted(self._served())
        await self._each(members, "sync", _PREPARE_SECONDS, models=models)

    async def _each(self, members: Iterable[Member], op: str, timeout: float, **args: Any) -> None:
        """Asks all of them at once; who fails is taken out of the traffic and started again."""
        asked = list(members)
        calls = (member.channel.call(op, timeout=timeout, **args) for member in asked)
        for member, result in zip(asked, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(result, BaseException) and not member.channel.closed.is_set():
                _log.error("replica %d is started again, it cannot %s: %s", member.number, op, _said(result))
                await self._down(member)
                self._kill(member.number)

    def _elect(self) -> None:
        up = self._up()
        if self.leader is None and up:
            leader = min(up, key=lambda member: member.number)
            self.leader = leader.number
            leader.channel.notify("lead", leading=True)
            _log.info("replica %d leads", leader.number)

    def _up(self) -> list[Member]:
        return [member for member in self.replicas.values() if member.up]

    def _served(self) -> dict[str, int]:
        """The models that some replica serves, with their newest generation."""
        served: dict[str, int] = {}
        for member in self._up():
            for model, generation in member.generations.items():
                served[model] = max(generation, served.get(model, 0))
        return served

    # --- changes of policy -----------------------------------------------------------------------------------------
    def _others(self, member: Member) -> list[Member]:
        return [other for other in self._up() if other is not member]

    async def _prepare(self, member: Member, policy: Mapping[str, Any]) -> None:
        """Every other replica loads and verifies what the policy names, or nothing changes."""
        await self._change.acquire()
        self._changing = member
        if member.number != self.leader or member.channel.closed.is_set():
            self._release(member)
            raise RemoteError("this replica does not lead; ask again", 503)
        others = self._others(member)
        calls = (other.channel.call("prepare", timeout=_PREPARE_SECONDS, policy=policy) for other in others)
        for other, result in zip(others, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(result, BaseException) and not isinstance(result, ChannelClosed):
                self._abort(member, policy)
                raise RemoteError(
                    f"replica {other.number} cannot take the change, so nothing was changed: {_said(result)}", 409
                )

    def _abort(self, member: Member, policy: Mapping[str, Any]) -> None:
        for other in self._others(member):
            other.channel.notify("abort", policy=policy)
        self._release(member)

    async def _commit(self, member: Member, policy: Mapping[str, Any], move: bool) -> None:
        """Every other replica switches; one that does not is taken out before the change is called done."""
        if self._changing is not member:
            raise RemoteError("this replica does not lead any more", 503)
        try:
            await self._each(self._others(member), "commit", _COMMIT_SECONDS, policy=policy, move=move)
            for other in self._up():
                other.generations = {**other.generations, policy["model"]: policy["generation"]}
        finally:
            self._release(member)

    async def _repeat(self, member: Member, deed: str, model: str, versions: list[int] | None) -> None:
        """Every other replica loads or unloads what the leader has."""
        others = self._others(member)
        calls = (o.channel.call(deed, timeout=_PREPARE_SECONDS, model=model, versions=versions) for o in others)
        for other, result in zip(others, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(result, BaseException) and not isinstance(result, ChannelClosed):
                raise RemoteError(f"replica {other.number} cannot {deed} {model!r}: {_said(result)}", 409)

    def _release(self, member: Member) -> None:
        if self._changing is member:
            self._changing = None
            self._change.release()

    # --- fronts ----------------------------------------------------------------------------------------------------
    async def from_front(self, gate: Gate, op: str, args: Mapping[str, Any]) -> Any:
        """What a front asks."""
        if op == "enter":
            return self._who()
        if op == "listening":
            gate.listening = True
            await self._tell(gate)
            self._cover()
            return None
        if op == "leaving":
            gate.listening = False
            self._cover()
            return None
        if op == "ready":
            return self.unready()
        if op == "page":
            return await self.page(args["accept"])
        if op == "ended":
            return self._took(gate, args)
        raise ServingError(f"the supervisor does not know {op!r}")

    def front_gone(self, gate: Gate) -> None:
        """The process ended, however it did."""
        if self.fronts.get(gate.number) is gate:
            del self.fronts[gate.number]
        self._departed.add(gate.families, gauges=False)
        gate.families = []
        gate.listening = False
        self._cover()

    def _cover(self) -> None:
        """One front accepts for those that are away, so that a connection never waits for a restart."""
        there = sorted(number for number, gate in self.fronts.items() if gate.listening)
        if self.draining or not there:
            return
        away = sorted(set(range(self._options.front_count)) - set(there))
        for number in there:
            self.fronts[number].channel.notify("cover", fronts=away if number == there[0] else [])

    async def _announce(self) -> None:
        """Tells the fronts who is there; returns when they have taken it up."""
        await asyncio.gather(*(self._tell(gate) for gate in list(self.fronts.values()) if gate.listening))

    def _who(self) -> dict[str, Any]:
        return {
            "paths": {str(member.number): str(member.path) for member in self._up()},
            "leader": self.leader,
            "models": sorted(self._served()),
        }

    async def _tell(self, gate: Gate) -> None:
        try:
            reached = await gate.channel.call("replicas", timeout=_ANNOUNCE_SECONDS, **self._who())
        except (ServingError, TimeoutError) as error:
            _log.warning("front %d did not hear who is there: %s", gate.number, _said(error))
        else:
            gate.reaches = frozenset(reached)

    # --- what all together are -------------------------------------------------------------------------------------
    def unready(self) -> str | None:
        """Why the server is not ready; None when it is."""
        if self.draining:
            return "the server is draining"
        up, need = self._up(), self._options.min_ready
        if len(up) < need:
            return f"{len(up)} replicas of at least {need} are ready"
        away = sorted(set(range(self._options.front_count)) - {n for n, gate in self.fronts.items() if gate.listening})
        if away:
            return f"fronts {', '.join(map(str, away))} do not listen yet"
        for model in self._served():
            ready = sum(model in member.generations for member in up)
            if ready < need:
                return f"model {model!r} is ready in {ready} replicas of at least {need}"
        deaf = sorted(number for number, gate in self.fronts.items() if not gate.reaches)
        if deaf:
            return f"fronts {', '.join(map(str, deaf))} reach no replica yet"
        return next((member.unready for member in up if member.number == self.leader), None)

    async def page(self, accept: str | None) -> tuple[bytes, str]:
        """The metrics of all processes, and of those that have ended, as one page."""
        await self._collect()
        for number in range(self._options.replicas):
            member = self.replicas.get(number)
            self._metrics[names.REPLICA_UP].labels(str(number)).set(member is not None and member.up)
            self._metrics[names.REPLICA_QUEUE_ROWS].labels(str(number)).set(member.rows if member else 0)
            self._metrics[names.REPLICA_RESTARTS].labels(str(number)).inc(0)
        for number in range(self._options.front_count):
            gate = self.fronts.get(number)
            self._metrics[names.FRONT_UP].labels(str(number)).set(gate is not None and gate.listening)
            self._metrics[names.FRONT_RESTARTS].labels(str(number)).inc(0)
        totals = Totals().add(dump(self._metrics.registry)).add(self._departed.dump())
        for families in (one.families for group in (self.replicas, self.fronts) for one in group.values()):
            totals.add(families)
        return totals.page(accept)

    async def _collect(self) -> None:
        everyone: list[Member | Gate] = [*self._up(), *self.fronts.values()]
        await asyncio.gather(*(self._ask_metrics(one) for one in everyone))

    async def _ask_metrics(self, one: Member | Gate) -> None:
        try:
            self._took(one, await one.channel.call("snapshot", timeout=_SNAPSHOT_SECONDS))
        except (ServingError, TimeoutError) as error:
            # What it said last stands for it: a sum that forgets somebody would go backwards.
            _log.debug("no metrics from %s: %s", type(one).__name__, error)

    def _took(self, one: Member | Gate, said: Mapping[str, Any]) -> None:
        one.families = said["families"]
        if isinstance(one, Member):
            one.rows = said["rows"]

    # --- watch -----------------------------------------------------------------------------------------------------
    async def watch(self) -> None:
        """Looks after the replicas, until cancelled: the hung are killed, the stale brought up to what is stored."""
        turn = 0
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            turn += 1
            for member in self._up():
                if not member.asked:
                    member.asked = True
                    self._later(self._watch(member))
            if turn % 2 == 0:
                self._later(self._collect())

    async def _watch(self, member: Member) -> None:
        try:
            await self._look(member, timeout=self._options.hang_limit)
            served = self._served()
            if member.up and any(served.get(m, g) > g for m, g in member.generations.items()):
                async with self._change:
                    if member.up and member.number != self.leader:
                        await self._sync([member])
                        await self._look(member)
        except TimeoutError:
            _log.error("replica %d gave no sign of life for %g s: killed", member.number, self._options.hang_limit)
            await self._down(member)
            self._kill(member.number)
        except ServingError as error:
            _log.debug("replica %d went while it was looked at: %s", member.number, error)
        finally:
            member.asked = False

    async def _look(self, member: Member, timeout: float | None = None) -> None:
        status = await member.channel.call("status", timeout=timeout)
        member.generations, member.unready = status["generations"], status["unready"]

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _said(error: BaseException) -> str:
    return "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
