"""The API's calls about the server: what it scrapes, judges and is set to, and how large its store is."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

from starlette.requests import Request

from collectors.query.errors import QueryError
from collectors.query.parameters import Parameters
from collectors.query.responses import Answer
from collectors.query.rule_filters import filtered_rules
from collectors.query.series_calls import Call, InThread
from collectors.store import Labels, Matcher, SampleReader

Provider = Callable[[], Awaitable[Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The configuration in effect: its text, whether the last reading succeeded, and when (unix s) one last did."""

    text: str = ""
    loaded: bool = True
    loaded_at: float = 0.0
    external_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Spanned(Protocol):
    """A reader that says of which times it has samples."""

    def span(self) -> tuple[int, int] | None:
        """The times of the oldest and of the newest sample, unix ms; None without samples."""


_LARGEST_COUNTS = 10_000
_SUFFIXES = ("_bucket", "_count", "_sum", "_total", "_created", "_info")


class StatusCalls:
    """targets, rules, alerts and status/…"""

    def __init__(
        self,
        reader: SampleReader,
        in_thread: InThread,
        *,
        rules: Provider | None,
        alerts: Provider | None,
        targets: Provider | None,
        version: str,
        flags: Mapping[str, str],
        configuration: Callable[[], Configuration],
        clock: Callable[[], float],
    ) -> None:
        self._reader = reader
        self._in_thread = in_thread
        self._rules = rules
        self._alerts = alerts
        self._targets = targets
        self._version = version
        self._flags = flags
        self._configuration = configuration
        self._clock = clock
        self._started = clock()

    def gets(self) -> list[tuple[str, Call]]:
        """Paths for GET."""
        return [
            ("/targets", self.targets),
            ("/targets/metadata", self.target_metadata),
            ("/scrape_pools", self.scrape_pools),
            ("/rules", self.rules),
            ("/alerts", self.alerts),
            ("/alertmanagers", self.alertmanagers),
            ("/notifications", self.notifications),
            ("/status/buildinfo", self.buildinfo),
            ("/status/runtimeinfo", self.runtimeinfo),
            ("/status/flags", self.flags),
            ("/status/config", self.config),
            ("/status/tsdb", self.tsdb),
            ("/status/walreplay", self.walreplay),
        ]

    # --- what is scraped ----------------------------------------------------------------------------------------------
    async def _all_targets(self) -> Mapping[str, Any]:
        found = await self._targets() if self._targets else {}
        return {"activeTargets": [], "droppedTargets": [], **found}

    async def targets(self, parameters: Parameters, request: Request) -> Answer:
        """The targets, active or dropped (`state`), of one `scrapePool` or all."""
        found, pool = dict(await self._all_targets()), parameters.text("scrapePool", "")
        state = parameters.text("state", "").lower()
        if state not in ("", "any", "active"):
            found["activeTargets"] = []
        if state not in ("", "any", "dropped"):
            found["droppedTargets"] = []
            found.pop("droppedTargetCounts", None)
        if pool:
            found["activeTargets"] = [item for item in found["activeTargets"] if item.get("scrapePool") == pool]
            found["droppedTargets"] = [item for item in found["droppedTargets"] if item.get("scrapePool") == pool]
        return Answer(found)

    async def scrape_pools(self, parameters: Parameters, request: Request) -> Answer:
        """The names of the scrape configurations."""
        found = await self._all_targets()
        names = {item.get("scrapePool", "") for item in [*found["activeTargets"], *found["droppedTargets"]]}
        return Answer({"scrapePools": sorted(names - {""})})

    async def target_metadata(self, parameters: Parameters, request: Request) -> Answer:
        """Type, help and unit of the families of each target."""
        limit, wanted = parameters.number("limit"), parameters.text("metric", "")
        chosen = parameters.selector("match_target")
        active = (await self._all_targets())["activeTargets"]

        def look_up() -> list[dict[str, Any]]:
            found = []
            for labels in [item.get("labels", {}) for item in active]:
                if all(matcher.matches_labels(labels) for matcher in chosen):
                    found += [
                        {"target": labels, **({} if wanted else {"metric": name}), **entry}
                        for name, entry in self._families(labels)
                        if not wanted or name == wanted
                    ]
            return found if limit is None or limit < 0 else found[:limit]

        return Answer(await self._in_thread(look_up))

    def _families(self, target: Labels) -> Iterable[tuple[str, dict[str, str]]]:
        matchers = [Matcher(name, "=", target[name]) for name in ("job", "instance") if name in target]
        names = set(self._reader.label_values("__name__", matchers)) if matchers else set()
        families = names | {name.removesuffix(suffix) for name in names for suffix in _SUFFIXES}
        for name, item in sorted(self._reader.metadata().items()):
            if name in families:
                yield name, {"type": item.type, "help": item.help, "unit": item.unit}

    # --- what is judged -----------------------------------------------------------------------------------------------
    async def rules(self, parameters: Parameters, request: Request) -> Answer:
        """The rule groups, those asked for."""
        filtered_rules([], parameters)  # a wrong request is refused before anybody is asked
        groups = (await self._rules())["groups"] if self._rules else []
        return Answer({"groups": filtered_rules(groups, parameters)})

    async def alerts(self, parameters: Parameters, request: Request) -> Answer:
        """The pending and firing alerts."""
        return Answer(await self._alerts() if self._alerts else {"alerts": []})

    async def alertmanagers(self, parameters: Parameters, request: Request) -> Answer:
        """None: alerts are sent by the alerts service."""
        return Answer({"activeAlertmanagers": [], "droppedAlertmanagers": []})

    async def notifications(self, parameters: Parameters, request: Request) -> Answer:
        """None."""
        return Answer([])

    # --- what it is ---------------------------------------------------------------------------------------------------
    async def buildinfo(self, parameters: Parameters, request: Request) -> Answer:
        """The version that clients probe for."""
        return Answer(
            {
                "version": self._version,
                "revision": "",
                "branch": "",
                "buildUser": "",
                "buildDate": "",
                "goVersion": f"python{platform.python_version()}",
            }
        )

    async def runtimeinfo(self, parameters: Parameters, request: Request) -> Answer:
        """The process."""
        configuration = self._configuration()
        return Answer(
            {
                "startTime": _rfc3339(self._started),
                "CWD": os.getcwd(),
                "hostname": platform.node(),
                "serverTime": _rfc3339(self._clock()),
                "reloadConfigSuccess": configuration.loaded,
                "lastConfigTime": _rfc3339(configuration.loaded_at or self._started),
                "corruptionCount": 0,
                "goroutineCount": threading.active_count(),
                "GOMAXPROCS": os.cpu_count() or 1,
                "GOMEMLIMIT": sys.maxsize,
                "GOGC": "",
                "GODEBUG": "",
                "storageRetention": self._flags.get("storage.tsdb.retention.time", ""),
            }
        )

    async def flags(self, parameters: Parameters, request: Request) -> Answer:
        """The settings that have the name of a flag of Prometheus."""
        return Answer(self._flags)

    async def config(self, parameters: Parameters, request: Request) -> Answer:
        """The configuration's text."""
        return Answer({"yaml": self._configuration().text})

    async def walreplay(self, parameters: Parameters, request: Request) -> Answer:
        """Nothing is replayed any more when this answers."""
        return Answer({"min": 0, "max": 0, "current": 0})

    async def tsdb(self, parameters: Parameters, request: Request) -> Answer:
        """How many series there are, and which names, labels and values make them many."""
        limit = parameters.number("limit", "a positive number")
        limit = 10 if limit is None else limit
        if limit < 1:
            raise QueryError("limit must be a positive number", "bad_data")
        if limit > _LARGEST_COUNTS:
            raise QueryError(f"limit must not exceed {_LARGEST_COUNTS}", "bad_data")
        span = self._reader.span() if isinstance(self._reader, Spanned) else None
        return Answer(await self._in_thread(lambda: _sizes(self._reader.series(()), limit, span or (0, 0))))


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _sizes(series: Sequence[Labels], limit: int, span: tuple[int, int]) -> dict[str, Any]:
    pairs = Counter(pair for labels in series for pair in labels.items())
    names, values, sizes = Counter[str](), Counter[str](), Counter[str]()
    for (name, value), count in pairs.items():
        values[name] += 1
        sizes[name] += len(value.encode()) * count
        if name == "__name__":
            names[value] += count

    def most(counts: Mapping[str, int]) -> list[dict[str, Any]]:
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
        return [{"name": name, "value": value} for name, value in ranked]

    return {
        "headStats": {
            "numSeries": len(series),
            "numLabelPairs": len(pairs),
            "chunkCount": 0,
            "minTime": span[0],
            "maxTime": span[1],
        },
        "seriesCountByMetricName": most(names),
        "labelValueCountByLabelName": most(values),
        "memoryInBytesByLabelName": most(sizes),
        "seriesCountByLabelValuePair": most({f"{name}={value}": count for (name, value), count in pairs.items()}),
    }
