"""Callers' rates over several replicas: each replica has a share of a caller's bucket, as large as what it is asked.

The sum of all shares is never over 1: a share shrinks, and what it held beyond that is handed back, before another
grows. So all replicas together never admit more than the one bucket of the settings would, and the request that each
may give on credit. What they admit less than that: where demand moves from one replica to another, what exceeds the
old share until the next turn, and `_KEPT` of the rate, which waits at replicas that are asked nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from serving.callers import Caller
from serving.errors import ServingError

_log = logging.getLogger(__name__)
TURN_SECONDS = 0.5
_ANSWER_SECONDS = 5.0
# Of the whole, divided among all replicas whatever they are asked: a first request should not be the one refused.
_KEPT = 0.01
# A share is changed when it is off by more than this.
_WORTH_WHILE = 0.01
# Weight of the last turn in what a replica is asked; the rest is what it was asked before.
_MEMORY = 0.5


class Asked(Protocol):
    """The channel of a replica."""

    async def call(self, op: str, timeout: float | None = None, **args: Any) -> Any: ...


class Holder(Protocol):
    """A replica that has shares."""

    number: int

    @property
    def channel(self) -> Asked: ...


def divided(demands: Sequence[float], whole: float) -> list[float]:
    """Shares of `whole`, which add up to 1: max-min fair by demand, what nobody demands in equal parts.

    Everybody has at least `_KEPT` divided by their number.
    """
    count = len(demands)
    free, given = whole * (1.0 - _KEPT), [0.0] * count
    asking = sorted(range(count), key=lambda place: demands[place])
    for rank, place in enumerate(asking):
        given[place] = min(demands[place], free / (count - rank))
        free -= given[place]
    return [(part + free / count) / whole + _KEPT / count for part in given]


class RateShares:
    """Who has which share of each caller's rate. Without callers that have a rate, `turn` does nothing."""

    def __init__(self, callers: Sequence[Caller]) -> None:
        self._rates = {caller.name: caller.rows_per_second for caller in callers if caller.rows_per_second is not None}
        # What each replica may have, by caller; and rows a turn that it was asked.
        self._granted: dict[str, dict[int, float]] = {name: {} for name in self._rates}
        self._demand: dict[str, dict[int, float]] = {name: {} for name in self._rates}
        # Rows that shares had at hand when they shrank, for those that grow.
        self._freed: dict[str, float] = dict.fromkeys(self._rates, -1.0)
        # Replicas that may not have heard of their shares.
        self._unsure: set[int] = set()
        self._lock = asyncio.Lock()

    def gone(self, number: int) -> None:
        """The replica's process ended: what it had is free, and what it had at hand is lost."""
        for granted in self._granted.values():
            granted.pop(number, None)
        for demand in self._demand.values():
            demand.pop(number, None)
        self._unsure.discard(number)

    async def turn(self, members: Sequence[Holder]) -> None:
        """Asks what was asked, and hands out the shares that follow. `members`: all that take or will take requests."""
        if not self._rates or not members:
            return
        async with self._lock:
            await self._ask(members)
            wanted = {
                name: dict(
                    zip(
                        (member.number for member in members),
                        divided([self._demand[name].get(m.number, 0.0) for m in members], rate * TURN_SECONDS),
                        strict=True,
                    )
                )
                for name, rate in self._rates.items()
            }
            await self._shrink(members, wanted)
            await self._grow(members, wanted)

    async def _ask(self, members: Sequence[Holder]) -> None:
        said = await self._each(members, "demand", {member.number: {} for member in members})
        for number, rows in said.items():
            for name in self._rates:
                known = self._demand[name].get(number, 0.0)
                self._demand[name][number] = known + _MEMORY * (rows.get(name, 0) - known)

    async def _shrink(self, members: Sequence[Holder], wanted: Mapping[str, Mapping[int, float]]) -> None:
        orders: dict[int, dict[str, list[float]]] = defaultdict(dict)
        for name, shares in wanted.items():
            for number, share in shares.items():
                if share < self._granted[name].get(number, 0.0) * (1.0 - _WORTH_WHILE):
                    orders[number][name] = [share, 0.0]
        for number, freed in (
            await self._each(members, "share", {n: {"shares": o} for n, o in orders.items()})
        ).items():
            for name, (share, _) in orders[number].items():
                self._granted[name][number] = share
                self._freed[name] += freed.get(name, 0.0)

    async def _grow(self, members: Sequence[Holder], wanted: Mapping[str, Mapping[int, float]]) -> None:
        orders: dict[int, dict[str, list[float]]] = defaultdict(dict)
        for name, shares in wanted.items():
            granted = self._granted[name]
            missing = {number: share - granted.get(number, 0.0) for number, share in shares.items()}
            missing = {number: more for number, more in missing.items() if more > _WORTH_WHILE * shares[number]}
            for number in self._unsure & granted.keys():
                orders[number][name] = [granted[number], 0.0]
            if not missing:
                continue
            room = max(0.0, 1.0 - sum(granted.values()))
            part = min(1.0, room / sum(missing.values()))
            rows, self._freed[name] = self._freed[name], 0.0
            for number, more in missing.items():
                granted[number] = granted.get(number, 0.0) + part * more
                # The very first shares come with all that they hold; later ones with what others gave back.
                at_hand = -1.0 if rows < 0 else rows * more / sum(missing.values())
                orders[number][name] = [granted[number], at_hand]
        heard = await self._each(members, "share", {number: {"shares": order} for number, order in orders.items()})
        self._unsure = (self._unsure | orders.keys()) - heard.keys()

    async def _each(
        self, members: Sequence[Holder], op: str, args: Mapping[int, Mapping[str, Any]]
    ) -> dict[int, dict[str, float]]:
        """The answers of those that are asked and answer, by number."""
        asked = [member for member in members if member.number in args]
        calls = (member.channel.call(op, timeout=_ANSWER_SECONDS, **args[member.number]) for member in asked)
        found: dict[int, dict[str, float]] = {}
        for member, answer in zip(asked, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(answer, (ServingError, TimeoutError)):
                # What it had it may still have: nobody gets it until its process is gone.
                _log.debug("replica %d did not hear of its shares: %s", member.number, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found[member.number] = answer
        return found
