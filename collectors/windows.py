"""Windows by event time: one pane a model, version and tumbling window; a sliding window is a sum of panes.

A pane is a monoid (profile, latencies, outcomes), so the order in which rows come makes no difference. A pane closes
when the model's watermark passes its end. Rows behind the watermark amend their closed pane as far back as
`amend_seconds`; rows older than that are late: counted, not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.drift.bins import Counts
from collectors.panes import LATENCY_EDGES, NO_SLICES, Pane, Slicing, latency_counts, merge_panes, same_layout
from collectors.profiles import EVENTS, ProfileBatch, Source
from observability.profile import Profile

NANOSECONDS = 1_000_000_000

Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """How event time is cut, in seconds."""

    window_seconds: float = 60.0
    allowed_lateness_seconds: float = 10.0
    """The watermark stays this far behind the latest event."""
    quiet_seconds: float = 10.0
    """A model from which nothing came for this long has its watermark moved on by the wall clock."""
    future_seconds: float = 300.0
    """Rows further ahead of the wall clock than this are counted as late: a wrong clock must not close every window."""
    amend_seconds: float = 3600.0
    """A closed window is amended by late rows until its end is this far behind the closed time; 0: never."""

    def __post_init__(self) -> None:
        others = (self.allowed_lateness_seconds, self.quiet_seconds, self.future_seconds, self.amend_seconds)
        if self.window_seconds <= 0 or min(others) < 0:
            raise ValueError(f"window_seconds must be positive and no other time negative: {self}")


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a batch: rows measured, and of these the ones that amended closed windows; rows that came too
    late or too far ahead to be measured. By (model, version)."""

    measured: Mapping[Key, int]
    amended: Mapping[Key, int]
    late: Mapping[Key, int]


@dataclass(frozen=True, slots=True)
class ModelTime:
    """How far a model's event time had come: the latest event believed and the end of the last closed window."""

    latest: float
    closed_until: float


@dataclass(slots=True)
class _Time:
    latest: float
    arrived_at: float
    closed_until: float
    amendable_from: float = -np.inf
    """Windows that end at or before this are not amended: they were cut otherwise, or are not known any more."""


class Windows:
    """The open and the amendable panes of all models. Pure but for its own state: time comes in as `now`, unix seconds.

    A pane that was given out is never changed afterwards: an amended one comes as a new pane.
    """

    def __init__(self, settings: WindowSettings | None = None, slicing: Slicing = NO_SLICES) -> None:
        self.settings = settings or WindowSettings()
        self.slicing = slicing
        self._references: dict[Key, Profile] = {}
        self._sources: dict[Key, Source] = {}
        self._panes: dict[tuple[str, str, int], Pane] = {}
        self._closed: dict[tuple[str, str, int], Pane] = {}
        self._amended: set[tuple[str, str, int]] = set()
        self._times: dict[str, _Time] = {}

    def set_reference(self, model: str, version: str, profile: Profile, source: Source = EVENTS) -> None:
        """Sets the reference; panes that were opened under another, or another source, are counted anew from here."""
        key = (model, version)
        old, before = self._references.get(key), self._sources.get(key, EVENTS)
        self._references[key], self._sources[key] = profile, source
        if old is not None and before == source and same_layout(old, profile):
            return
        for pane in self.open_panes(model, version):
            pane.without_profile()

    def reference(self, model: str, version: str) -> Profile | None:
        return self._references.get((model, version))

    def source(self, model: str, version: str) -> Source:
        """Which columns of a version come in profiles."""
        return self._sources.get((model, version), EVENTS)

    def references(self) -> list[Key]:
        return list(self._references)

    def times(self) -> dict[str, ModelTime]:
        """How far each model's event time has come; what `restore` takes."""
        return {model: ModelTime(time.latest, time.closed_until) for model, time in self._times.items()}

    def restore(self, times: Mapping[str, ModelTime], panes: Iterable[Pane], now: float) -> None:
        """Takes over how far the models had come before a restart, and the closed panes that may still be amended."""
        for model, time in times.items():
            self._times[model] = _Time(time.latest, now, time.closed_until)
        for pane in panes:
            own = self._times.get(pane.model)
            if own is None:
                continue
            if abs(pane.end - pane.start - self.settings.window_seconds) > 1e-6:
                own.amendable_from = max(own.amendable_from, own.closed_until)
                continue
            self._closed[pane.model, pane.version, self._number(round(pane.start * NANOSECONDS))] = pane
        for model in times:
            self._forget_settled(model)

    def open_panes(self, model: str | None = None, version: str | None = None) -> list[Pane]:
        """Open panes in order of time."""
        chosen = [
            pane
            for pane in self._panes.values()
            if (model is None or pane.model == model) and (version is None or pane.version == version)
        ]
        return sorted(chosen, key=_order)

    def add(self, table: pa.Table, now: float) -> Added:
        """Adds a batch of events, of any models, versions and times."""
        found: tuple[dict[Key, int], dict[Key, int], dict[Key, int]] = ({}, {}, {})
        for model, version, part in by_version(table):
            key = (model, version)
            in_time, amending = self._add_version(key, part, now)
            found[0][key] = in_time + amending
            if amending:
                found[1][key] = amending
            if in_time + amending < part.num_rows:
                found[2][key] = part.num_rows - in_time - amending
        return Added(*found)

    def add_profile(self, batch: ProfileBatch, now: float) -> Added:
        """Adds a profile to the window that holds its middle; without a reference there is none to add it to."""
        key, rows = (batch.model, batch.version), batch.num_rows
        reference = self._references.get(key)
        if reference is None or batch.end > now + self.settings.future_seconds:
            return Added({key: 0}, {}, {key: rows})
        time = self._arrived(batch.model, batch.end, now)
        number = self._number(round(batch.time * NANOSECONDS))
        end = (number + 1) * self.settings.window_seconds
        if end <= self._amendable_from(time):
            return Added({key: 0}, {}, {key: rows})
        closed = end <= time.closed_until
        pane = self._amendable((*key, number)) if closed else self._open((*key, number))
        pane.add_profile(batch.profile, reference)
        return Added({key: rows}, {key: rows} if closed else {}, {})

    def closed_until(self, model: str) -> float | None:
        """The end of the model's last closed window; None before there is one."""
        time = self._times.get(model)
        return time.closed_until if time is not None and np.isfinite(time.closed_until) else None

    def watermark(self, model: str, now: float) -> float | None:
        """Event time up to which windows are closed or to be closed; it never goes back. None before the first row."""
        time = self._times.get(model)
        if time is None:
            return None
        quiet = max(0.0, now - time.arrived_at - self.settings.quiet_seconds)
        return max(time.latest + quiet - self.settings.allowed_lateness_seconds, time.closed_until)

    def advance(self, now: float) -> list[Pane]:
        """Closes and returns every pane whose end the watermark has passed, in order of time."""
        closed: list[Pane] = []
        for model, time in self._times.items():
            watermark = self.watermark(model, now)
            assert watermark is not None
            if not np.isfinite(watermark):
                continue
            whole = self._number(round(watermark * NANOSECONDS)) * self.settings.window_seconds
            if whole <= time.closed_until:
                continue
            time.closed_until = whole
            ended = [key for key, pane in self._panes.items() if key[0] == model and pane.end <= time.closed_until]
            for key in ended:
                pane = self._panes.pop(key).folded()
                self._closed[key] = pane
                closed.append(pane)
            self._forget_settled(model)
        return sorted(closed, key=_order)

    def has_amended(self) -> bool:
        """Whether `amended` has panes to give."""
        return bool(self._amended)

    def amended(self) -> list[Pane]:
        """The closed panes that rows were added to since the last call, in order of time."""
        keys, self._amended = self._amended, set()
        panes = [self._closed[key].folded() for key in keys]
        for pane in panes:
            pane.revision += 1
        self._forget_settled(*{pane.model for pane in panes})
        return sorted(panes, key=_order)

    def _add_version(self, key: Key, part: pa.Table, now: float) -> tuple[int, int]:
        """Adds one version's rows to their panes; returns how many were in time, and how many amended closed ones."""
        times = part.column("time").cast(pa.int64()).to_numpy()
        limit = round((now + self.settings.future_seconds) * NANOSECONDS)
        believed = times[times <= limit]
        if not len(believed):
            return 0, 0
        time = self._arrived(key[0], float(believed.max()) / NANOSECONDS, now)
        numbers = self._numbers(times)
        in_time = amending = 0
        for number in np.unique(numbers).tolist():
            end = (number + 1) * self.settings.window_seconds
            if end <= self._amendable_from(time):
                continue
            chosen = (numbers == number) & (times <= limit)
            rows = int(chosen.sum())
            if not rows:
                continue
            rest = part if rows == part.num_rows else part.filter(pa.array(chosen))
            closed = end <= time.closed_until
            pane = self._amendable((*key, number)) if closed else self._open((*key, number))
            pane.add(rest, self._references.get(key), self.slicing, self._sources.get(key, EVENTS))
            in_time, amending = (in_time, amending + rows) if closed else (in_time + rows, amending)
        return in_time, amending

    def _arrived(self, model: str, latest: float, now: float) -> _Time:
        """The model's time, now that something of it came whose latest event time is `latest`."""
        time = self._times.get(model)
        if time is None:
            time = self._times[model] = _Time(-np.inf, now, -np.inf)
        time.latest = max(time.latest, latest)
        time.arrived_at = max(time.arrived_at, now)
        return time

    def _open(self, key: tuple[str, str, int]) -> Pane:
        pane = self._panes.get(key)
        if pane is None:
            pane = self._panes[key] = self._new(key)
        return pane

    def _amendable(self, key: tuple[str, str, int]) -> Pane:
        """The closed pane to add late rows to; the one that was given out stays as it is."""
        if key not in self._amended:
            known = self._closed.get(key)
            self._closed[key] = known.copy() if known else self._new(key)
            self._amended.add(key)
        return self._closed[key]

    def _new(self, key: tuple[str, str, int]) -> Pane:
        model, version, number = key
        seconds = self.settings.window_seconds
        return Pane(model, version, number * seconds, (number + 1) * seconds)

    def _amendable_from(self, time: _Time) -> float:
        return max(time.closed_until - self.settings.amend_seconds, time.amendable_from)

    def _forget_settled(self, *models: str) -> None:
        """Drops the closed panes that no row can amend any more."""
        limits = {model: self._amendable_from(self._times[model]) for model in models}
        settled = [
            key
            for key, pane in self._closed.items()
            if key[0] in limits and pane.end <= limits[key[0]] and key not in self._amended
        ]
        for key in settled:
            del self._closed[key]

    def _number(self, time_ns: int) -> int:
        return int(time_ns // round(self.settings.window_seconds * NANOSECONDS))

    def _numbers(self, times_ns: Counts) -> Counts:
        return times_ns // round(self.settings.window_seconds * NANOSECONDS)


def by_version(table: pa.Table) -> list[tuple[str, str, pa.Table]]:
    """The rows of each (model, version)."""
    parts = []
    for model, rows in _split(table, "model"):
        parts += [(model, version, part) for version, part in _split(rows, "version")]
    return parts


def _order(pane: Pane) -> tuple[float, str, str]:
    return pane.start, pane.model, pane.version


def _split(table: pa.Table, column: str) -> list[tuple[str, pa.Table]]:
    values = table.column(column).unique().to_pylist()
    if len(values) == 1:
        return [(values[0], table)]
    return [(value, table.filter(pc.equal(table.column(column), value))) for value in values]


__all__ = [
    "LATENCY_EDGES",
    "NANOSECONDS",
    "NO_SLICES",
    "Added",
    "Key",
    "ModelTime",
    "Pane",
    "Slicing",
    "WindowSettings",
    "Windows",
    "by_version",
    "latency_counts",
    "merge_panes",
    "same_layout",
]
