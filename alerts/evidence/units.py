"""Units, not requests: what may count once, of a stream of served requests.

Where the router keeps a unit (a user, a session) on its arm, the unit is what chance assigned, and a user whose
requests always fail would count as many proofs. Under the hypothesis that the arms do not matter, when a unit fails
*first* does not depend on where the hash put it, so that the arm of a first failure has the probability logged with it,
on any ramp that only adds units. Requests that a client sent again (the same id) count once, and none counts that came
while the candidate was warming up. Without a unit, a request is its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Served:
    """One live request: `time` is unix seconds, `unit` None without sticky routing, `slow` the bounds it exceeded."""

    id: str
    time: float
    canary: bool
    propensity: float
    failed: bool
    unit: str | None = None
    slow: int = 0


@dataclass(frozen=True, slots=True)
class FirstTimes:
    """What of a request is news: the unit's first request, first failure, bounds that it exceeds for the first time.

    `bounds` are places in order of the bounds from the lowest: those in `range(slow_from, slow_to)`.
    """

    served: Served
    request: bool
    failure: bool
    slow_from: int
    slow_to: int


class Ledger:
    """Which units were seen, failed, and how slow each was at worst; which requests were counted.

    `remember_seconds` is how long a request's id may come again. Not thread-safe; `to_json` and `from_json` carry it
    over a restart, after which it goes on alike.
    """

    def __init__(self, warm_from: float = 0.0, remember_seconds: float = 300.0) -> None:
        self.warm_from = warm_from
        self.remember_seconds = remember_seconds
        self._units: dict[str, tuple[bool, int]] = {}
        self._ids: dict[str, float] = {}

    def take(self, requests: Iterable[Served]) -> list[FirstTimes]:
        """What is news in them, in their order; requests that are repeated or of the warm-up are left out."""
        found = []
        for served in requests:
            if served.time < self.warm_from or served.id in self._ids:
                continue
            self._ids[served.id] = served.time
            found.append(self._news(served))
        if found:
            self._forget(found[-1].served.time - self.remember_seconds)
        return found

    def to_json(self) -> str:
        """Everything, as text."""
        return json.dumps(
            {
                "warm_from": self.warm_from,
                "remember_seconds": self.remember_seconds,
                "units": {unit: [int(failed), slow] for unit, (failed, slow) in self._units.items()},
                "ids": self._ids,
            }
        )

    @staticmethod
    def from_json(text: str) -> Ledger:
        """The ledger again. ValueError when it is none."""
        try:
            body: Mapping[str, Any] = json.loads(text)
            ledger = Ledger(body["warm_from"], body["remember_seconds"])
            ledger._units = {unit: (bool(failed), int(slow)) for unit, (failed, slow) in body["units"].items()}
            ledger._ids = {str(key): float(time) for key, time in body["ids"].items()}
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is no ledger of units: {error!r}") from error
        return ledger

    def _news(self, served: Served) -> FirstTimes:
        if served.unit is None:
            return FirstTimes(served, True, served.failed, 0, served.slow)
        unit = hashlib.blake2b(served.unit.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        before = self._units.get(unit)
        failed, slow = before or (False, 0)
        self._units[unit] = failed or served.failed, max(slow, served.slow)
        return FirstTimes(served, before is None, served.failed and not failed, slow, max(slow, served.slow))

    def _forget(self, before: float) -> None:
        # Ids are in the order of their arrival: the old ones come first.
        for key in [key for key, time in zip(self._ids, self._ids.values(), strict=True) if time < before]:
            del self._ids[key]
