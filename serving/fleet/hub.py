"""The middle of a fleet: who is there, who leads, one change of policy at a time, one page of metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from observability.metrics import Metrics
from serving.callers import Caller
from serving.errors import ServingError
from serving.fleet.changes import PREPARE_SECONDS, Changes, said
from serving.fleet.members import Gate, Member, Roster
from serving.fleet.options import FleetOptions
from serving.fleet.overview import Overview
from serving.fleet.shares import TURN_SECONDS, RateShares

_log = logging.getLogger(__name__)
_ANNOUNCE_SECONDS = 5.0
_WATCH_SECONDS = 1.0


class Hub:
    """Runs in the supervisor. `kill` ends the process of a replica; whoever starts processes brings it back."""

    def __init__(
        self, options: FleetOptions, metrics: Metrics, kill: Callable[[int], None], callers: Sequence[Caller] = ()
    ) -> None:
        self._options = options
        self._metrics = metrics
        self._kill = kill
        self.roster = Roster()
        self.replicas = self.roster.replicas
        self.fronts = self.roster.fronts
        self.changes = Changes(self.roster, self._each)
        self.overview = Overview(options, metrics, self.roster)
        self._shares = RateShares(callers)
        self.draining = False
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
            return await self.changes.prepare(
                member, args["policy"], args.get("change", 0), urgent=args.get("urgent", False)
            )
        if op == "commit":
            return await self.changes.commit(member, args["policy"], args["move"])
        if op == "repeat":
            return await self.changes.repeat(member, args["deed"], args["model"], args["versions"])
        if op == "abort":
            return self.changes.abort(member, args["policy"], args.get("change", 0))
        if op == "views":
            return await self.overview.views(self.roster.others(member))
        if op == "counts":
            return await self.overview.counts(args["families"])
        if op == "ended":
            return self.overview.took(member, args)
        raise ServingError(f"the supervisor does not know {op!r}")

    async def _enter(self, member: Member) -> dict[str, int] | None:
        """What a starting replica must be able to serve; None when it comes first and decides that by itself."""
        await self._turn.acquire()
        if member.channel.closed.is_set():
            self._turn.release()
            return None
        if self.roster.up():
            self._turn.release()
            return self.roster.served()
        self._settling = member
        return None

    async def _joined(self, member: Member) -> None:
        async with self.changes.lock:
            models = sorted(self.roster.served())
            await member.channel.call("sync", timeout=PREPARE_SECONDS, models=models)
            await self._look(member)
            await self._shares.turn([*self.roster.up(), member])
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
        limit = time.monotonic() + PREPARE_SECONDS
        several = self._options.replicas > 1
        while several and not self.draining and not self.roster.others(member) and time.monotonic() < limit:
            await asyncio.sleep(0.05)
        await self._down(member)

    async def _down(self, member: Member) -> None:
        """No requests and no lead for this replica from here on."""
        member.up = False
        if self.roster.leader == member.number:
            self.roster.leader = None
            member.channel.notify("lead", leading=False)
        await self._announce()
        if self.roster.leader is None:
            self._later(self._succeed())

    async def replica_gone(self, member: Member) -> None:
        """The process ended, however it did."""
        if self.replicas.get(member.number) is member:
            del self.replicas[member.number]
        self.overview.gone(member)
        self._shares.gone(member.number)
        self._end_turn(member)
        self.changes.release(member)
        await self._down(member)

    async def _succeed(self) -> None:
        """A new leader, once all have what is stored: the last one may have ended between storing and switching."""
        async with self.changes.lock:
            if self.draining or self.roster.leader is not None:
                return
            await self._sync(self.roster.up())
            self._elect()
            await self._announce()

    async def _sync(self, members: Iterable[Member]) -> None:
        models = sorted(self.roster.served())
        await self._each(members, "sync", PREPARE_SECONDS, models=models)

    async def _each(self, members: Iterable[Member], op: str, timeout: float, **args: Any) -> None:
        """Asks all of them at once; who fails is taken out of the traffic and started again."""
        asked = list(members)
        calls = (member.channel.call(op, timeout=timeout, **args) for member in asked)
        for member, result in zip(asked, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(result, BaseException) and not member.channel.closed.is_set():
                _log.error("replica %d is started again, it cannot %s: %s", member.number, op, said(result))
                await self._down(member)
                self._kill(member.number)

    def _elect(self) -> None:
        up = self.roster.up()
        if self.roster.leader is None and up:
            leader = min(up, key=lambda member: member.number)
            self.roster.leader = leader.number
            leader.channel.notify("lead", leading=True)
            _log.info("replica %d leads", leader.number)

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
            return await self.overview.page(args["accept"])
        if op == "load":
            return await self.overview.load(self.unready(), self.draining)
        if op == "ended":
            return self.overview.took(gate, args)
        raise ServingError(f"the supervisor does not know {op!r}")

    def front_gone(self, gate: Gate) -> None:
        """The process ended, however it did."""
        if self.fronts.get(gate.number) is gate:
            del self.fronts[gate.number]
        self.overview.gone(gate)
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
            "paths": {str(member.number): str(member.path) for member in self.roster.up()},
            "leader": self.roster.leader,
            "models": sorted(self.roster.served()),
        }

    async def _tell(self, gate: Gate) -> None:
        try:
            reached = await gate.channel.call("replicas", timeout=_ANNOUNCE_SECONDS, **self._who())
        except (ServingError, TimeoutError) as error:
            _log.warning("front %d did not hear who is there: %s", gate.number, said(error))
        else:
            gate.reaches = frozenset(reached)

    # --- what all together are -------------------------------------------------------------------------------------
    def unready(self) -> str | None:
        """Why the server is not ready; None when it is."""
        if self.draining:
            return "the server is draining"
        up, need = self.roster.up(), self._options.min_ready
        if len(up) < need:
            return f"{len(up)} replicas of at least {need} are ready"
        away = sorted(set(range(self._options.front_count)) - {n for n, gate in self.fronts.items() if gate.listening})
        if away:
            return f"fronts {', '.join(map(str, away))} do not listen yet"
        for model in self.roster.served():
            ready = sum(model in member.generations for member in up)
            if ready < need:
                return f"model {model!r} is ready in {ready} replicas of at least {need}"
        deaf = sorted(number for number, gate in self.fronts.items() if not gate.reaches)
        if deaf:
            return f"fronts {', '.join(map(str, deaf))} reach no replica yet"
        return next((member.unready for member in up if member.number == self.roster.leader), None)

    # --- watch -----------------------------------------------------------------------------------------------------
    async def watch(self) -> None:
        """Looks after the replicas, until cancelled: the hung are killed, the stale brought up to what is stored."""
        turn = 0
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            turn += 1
            for member in self.roster.up():
                if not member.asked:
                    member.asked = True
                    self._later(self._watch(member))
            if turn % 2 == 0:
                self._later(self.overview.collect())

    async def share(self) -> None:
        """Divides callers' rates between the replicas again and again, until cancelled."""
        while True:
            await asyncio.sleep(TURN_SECONDS)
            await self._shares.turn(self.roster.up())

    async def _watch(self, member: Member) -> None:
        try:
            await self._look(member, timeout=self._options.hang_limit)
            served = self.roster.served()
            if member.up and any(served.get(m, g) > g for m, g in member.generations.items()):
                async with self.changes.lock:
                    if member.up and member.number != self.roster.leader:
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
