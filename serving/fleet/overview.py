"""What all processes of a fleet are together: one page of metrics, one load report, one set of counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from observability import names
from observability.metrics import Metrics
from serving.errors import ServingError
from serving.fleet.exposition import Dump, Totals, dump
from serving.fleet.members import Gate, Member, Roster
from serving.fleet.options import FleetOptions

_log = logging.getLogger(__name__)
_ANSWER_SECONDS = 2.0


class Overview:
    """Asks the processes, and adds up what they say; who does not answer in two seconds stands with what it said last,
    in counts, and is left out of what is about this moment.
    """

    def __init__(self, options: FleetOptions, metrics: Metrics, roster: Roster) -> None:
        self._options = options
        self._metrics = metrics
        self._roster = roster
        self._departed = Totals()

    async def page(self, accept: str | None) -> tuple[bytes, str]:
        """The metrics of all processes, and of those that have ended, as one page."""
        await self.collect()
        roster = self._roster
        for number in range(self._options.replicas):
            member = roster.replicas.get(number)
            self._metrics[names.REPLICA_UP].labels(str(number)).set(member is not None and member.up)
            self._metrics[names.REPLICA_QUEUE_ROWS].labels(str(number)).set(member.rows if member else 0)
            self._metrics[names.REPLICA_RESTARTS].labels(str(number)).inc(0)
        for number in range(self._options.front_count):
            gate = roster.fronts.get(number)
            self._metrics[names.FRONT_UP].labels(str(number)).set(gate is not None and gate.listening)
            self._metrics[names.FRONT_RESTARTS].labels(str(number)).inc(0)
        return self._totals().add(dump(self._metrics.registry)).page(accept)

    async def counts(self, families: Collection[str]) -> list[Dump]:
        """These families, added up over all processes since the server began."""
        await self.collect()
        return [family for family in self._totals().dump() if family[0] in families]

    def _totals(self) -> Totals:
        totals = Totals().add(self._departed.dump())
        for families in (
            one.families for group in (self._roster.replicas, self._roster.fronts) for one in group.values()
        ):
            totals.add(families)
        return totals

    async def collect(self) -> None:
        """Asks every process for its metrics."""
        everyone: list[Member | Gate] = [*self._roster.up(), *self._roster.fronts.values()]
        await asyncio.gather(*(self._ask_metrics(one) for one in everyone))

    async def _ask_metrics(self, one: Member | Gate) -> None:
        try:
            self.took(one, await one.channel.call("snapshot", timeout=_ANSWER_SECONDS))
        except (ServingError, TimeoutError) as error:
            # What it said last stands for it: a sum that forgets somebody would go backwards.
            _log.debug("no metrics from %s: %s", type(one).__name__, error)

    def took(self, one: Member | Gate, said: Mapping[str, Any]) -> None:
        """Keeps what a process says of itself."""
        one.families = said["families"]
        if isinstance(one, Member):
            one.rows = said["rows"]

    def gone(self, one: Member | Gate) -> None:
        """The process ended: what it counted stays."""
        self._departed.add(one.families, gauges=False)
        one.families = []

    async def views(self, members: Sequence[Member | Gate]) -> dict[str, Any]:
        """What each of these says of itself now, by number."""
        calls = (member.channel.call("view", timeout=_ANSWER_SECONDS) for member in members)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return {
            str(member.number): answer
            for member, answer in zip(members, answers, strict=True)
            if not isinstance(answer, BaseException)
        }

    async def load(self, unready: str | None, draining: bool) -> dict[str, Any]:
        """The load report of the fleet."""
        replicas, fronts = await asyncio.gather(
            self.views(self._roster.up()), self.views(list(self._roster.fronts.values()))
        )
        state = "draining" if draining else "ready" if unready is None else "starting"
        return merged_load(state, {number: view["load"] for number, view in replicas.items()}, fronts)


def merged_load(
    state: str, replicas: Mapping[str, Mapping[str, Any]], fronts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """One load report of the replicas' reports: rows, bytes and limits add, of times the longest counts.

    Utilization is the mean, so that 1 means the same as of one process. Connections and requests in flight are the
    fronts': what a replica has in flight is among them.
    """
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for report in replicas.values():
        for lane in report["models"]:
            known = models.get((lane["model"], lane["version"]))
            if known is None:
                models[lane["model"], lane["version"]] = dict(lane) | {"replicas": 1}
                continue
            for name in ("queue_rows", "queue_limit_rows", "queue_bytes"):
                known[name] += lane[name]
            for name in ("oldest_seconds", "estimated_wait_seconds", "max_batch_rows", "busy"):
                known[name] = max(known[name], lane[name])
            known["replicas"] += 1
    reports = list(replicas.values())
    return {
        "state": state,
        "utilization": round(sum(r["utilization"] for r in reports) / len(reports), 4) if reports else 0.0,
        "in_flight_requests": sum(front["in_flight_requests"] for front in fronts.values()),
        "connections": sum(front["connections"] for front in fronts.values()),
        "queue_rows": sum(r["queue_rows"] for r in reports),
        "queue_bytes": sum(r["queue_bytes"] for r in reports),
        "oldest_seconds": max((r["oldest_seconds"] for r in reports), default=0.0),
        "estimated_wait_seconds": max((r["estimated_wait_seconds"] for r in reports), default=0.0),
        "models": [models[key] for key in sorted(models, key=lambda key: (key[0], int(key[1])))],
        "replicas": {
            number: {name: value for name, value in report.items() if name not in ("models", "connections")}
            for number, report in replicas.items()
        },
        "fronts": dict(fronts),
    }  # fmt: skip
