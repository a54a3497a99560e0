"""Windows by event time: one pane a model, version and tumbling window; a sliding window is a sum of panes.

A pane is a monoid (profile, latencies, outcomes), so the order in which rows come within the lateness makes no
difference. A pane closes when the model's watermark passes its end; rows behind it are late: counted, not measured.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.drift.bins import Counts
from observability import names
from observability.columns import ProfileError
from observability.profile import Profile

logger = logging.getLogger(__name__)

# Cells about 5 % wide from 10 µs to 1000 s: a quantile is read to that precision, and panes add up.
LATENCY_EDGES = np.geomspace(1e-5, 1e3, 370)
# Rows wait in a pane until this many are there: one pass over a profile costs about the same for 10 and 1,000 rows.
FOLD_ROWS = 4_096
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

    def __post_init__(self) -> None:
        if self.window_seconds <= 0 or min(self.allowed_lateness_seconds, self.quiet_seconds, self.future_seconds) < 0:
            raise ValueError(f"window_seconds must be positive and no other time negative: {self}")


@dataclass(slots=True)
class Pane:
    """What is known of one version's rows in [start, end), unix seconds. Without a reference `profile` is None."""

    model: str
    version: str
    start: float
    end: float
    rows: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    latencies: Counts = field(default_factory=lambda: np.zeros(len(LATENCY_EDGES) + 1, np.int64))
    profile: Profile | None = None
    _waiting: list[pa.Table] = field(default_factory=list)
    _waiting_rows: int = 0

    def add(self, table: pa.Table, reference: Profile | None) -> None:
        """Adds rows; they are profiled when enough of them wait, or at `folded`."""
        self.rows += table.num_rows
        for outcome, count in _value_counts(table.column("outcome")):
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        self.latencies += latency_counts(table.column("latency_seconds"))
        if reference is None:
            return
        if self.profile is None:
            self.profile = reference.empty()
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= FOLD_ROWS:
            self.folded()

    def folded(self) -> Pane:
        """This pane with every row in its profile."""
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        if self.profile is None or not waiting:
            return self
        try:
            self.profile = self.profile.updated(pa.concat_tables(waiting, promote_options="default"))
        except (pa.ArrowException, ProfileError):
            self._fold_singly(self.profile, waiting)
        return self

    def _fold_singly(self, profile: Profile, waiting: list[pa.Table]) -> None:
        """Batches whose types do not go together; one that does not fit the reference is left out of the profile."""
        for table in waiting:
            try:
                profile = profile.updated(table)
            except (pa.ArrowException, ProfileError) as error:
                logger.warning("rows of %s version %s do not fit its reference: %s", self.model, self.version, error)
        self.profile = profile

    def faults(self) -> int:
        """Rows whose outcome is the version's fault."""
        return sum(self.outcomes.get(outcome, 0) for outcome in names.FAULTS)

    def to_json(self) -> bytes:
        """The closed pane as JSON."""
        self.folded()
        stored = _StoredPane(
            rows=self.rows,
            outcomes=self.outcomes,
            latencies=self.latencies.tolist(),
            profile=self.profile.to_json().decode() if self.profile else None,
        )
        return msgspec.json.encode(stored)

    @staticmethod
    def from_json(model: str, version: str, start: float, end: float, body: bytes) -> Pane:
        """The pane that `to_json` wrote."""
        stored = msgspec.json.decode(body, type=_StoredPane)
        profile = Profile.from_json(stored.profile.encode()) if stored.profile else None
        latencies = np.array(stored.latencies, np.int64)
        return Pane(model, version, start, end, stored.rows, stored.outcomes, latencies, profile)


class _StoredPane(msgspec.Struct):
    rows: int
    outcomes: dict[str, int]
    latencies: list[int]
    profile: str | None


def merge_panes(panes: Iterable[Pane]) -> Pane:
    """The sliding window over panes of one version, at least one. Panes of another reference's layout are left out."""
    first, *others = sorted((pane.folded() for pane in panes), key=lambda pane: pane.end, reverse=True)
    total = Pane(first.model, first.version, first.start, first.end, profile=first.profile)
    for pane in (first, *others):
        total.start = min(total.start, pane.start)
        total.rows += pane.rows
        total.latencies = total.latencies + pane.latencies
        for outcome, count in pane.outcomes.items():
            total.outcomes[outcome] = total.outcomes.get(outcome, 0) + count
    for pane in others:
        if total.profile is not None and pane.profile is not None and same_layout(total.profile, pane.profile):
            total.profile = total.profile + pane.profile
    return total


def same_layout(left: Profile, right: Profile) -> bool:
    """Whether two profiles may be added and compared cell by cell."""
    try:
        left.empty() + right.empty()
    except ProfileError:
        return False
    return True


def latency_counts(column: pa.ChunkedArray) -> Counts:
    """Latencies (seconds) counted in the cells of `LATENCY_EDGES`, with open tails; null and NaN are left out."""
    values = column.drop_null().to_numpy()
    values = values[~np.isnan(values)]
    return np.bincount(np.searchsorted(LATENCY_EDGES, values, side="right"), minlength=len(LATENCY_EDGES) + 1)


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a batch: rows measured and rows late, by (model, version)."""

    measured: Mapping[Key, int]
    late: Mapping[Key, int]


@dataclass(slots=True)
class _ModelTime:
    """How far a model's event time has come."""

    latest: float
    arrived_at: float
    closed_until: float


class Windows:
    """The open panes of all models. Pure but for its own state: time comes in as `now`, unix seconds."""

    def __init__(self, settings: WindowSettings | None = None) -> None:
        self.settings = settings or WindowSettings()
        self._references: dict[Key, Profile] = {}
        self._panes: dict[tuple[str, str, int], Pane] = {}
        self._times: dict[str, _ModelTime] = {}

    def set_reference(self, model: str, version: str, profile: Profile) -> None:
        """Sets the reference; panes that were opened under another are counted from here on against this one."""
        old = self._references.get((model, version))
        self._references[model, version] = profile
        if old is not None and same_layout(old, profile):
            return
        for pane in self.open_panes(model, version):
            pane.folded().profile = None

    def reference(self, model: str, version: str) -> Profile | None:
        return self._references.get((model, version))

    def references(self) -> list[Key]:
        return list(self._references)

    def restore(self, model: str, closed_until: float, now: float) -> None:
        """Says that windows up to `closed_until` were closed before a restart."""
        self._times[model] = _ModelTime(closed_until, now, closed_until)

    def open_panes(self, model: str | None = None, version: str | None = None) -> list[Pane]:
        """Open panes in order of time."""
        chosen = [
            pane
            for pane in self._panes.values()
            if (model is None or pane.model == model) and (version is None or pane.version == version)
        ]
        return sorted(chosen, key=lambda pane: (pane.start, pane.model, pane.version))

    def add(self, table: pa.Table, now: float) -> Added:
        """Adds a batch of events, of any models, versions and times."""
        measured: dict[Key, int] = {}
        late: dict[Key, int] = {}
        for model, version, part in by_version(table):
            key = (model, version)
            count = self._add_version(key, part, now)
            measured[key] = count
            if count < part.num_rows:
                late[key] = part.num_rows - count
        return Added(measured, late)

    def watermark(self, model: str, now: float) -> float | None:
        """Event time up to which rows are complete; it never goes back. None before the first row."""
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
            whole = self._number(round(watermark * NANOSECONDS)) * self.settings.window_seconds
            time.closed_until = max(time.closed_until, whole)
            ended = [key for key, pane in self._panes.items() if key[0] == model and pane.end <= time.closed_until]
            closed += [self._panes.pop(key).folded() for key in ended]
        return sorted(closed, key=lambda pane: (pane.start, pane.model, pane.version))

    def _add_version(self, key: Key, part: pa.Table, now: float) -> int:
        """Adds one version's rows to their panes; returns how many were in time."""
        times = part.column("time").cast(pa.int64()).to_numpy()
        limit = round((now + self.settings.future_seconds) * NANOSECONDS)
        believed = times[times <= limit]
        if not len(believed):
            return 0
        model_time = self._times.get(key[0])
        if model_time is None:
            model_time = self._times[key[0]] = _ModelTime(-np.inf, now, -np.inf)
        model_time.latest = max(model_time.latest, float(believed.max()) / NANOSECONDS)
        model_time.arrived_at = max(model_time.arrived_at, now)
        numbers = self._numbers(times)
        in_time = 0
        for number in np.unique(numbers):
            end = (int(number) + 1) * self.settings.window_seconds
            if end <= model_time.closed_until:
                continue
            chosen = (numbers == number) & (times <= limit)
            rows = int(chosen.sum())
            if rows:
                self._pane(key, int(number)).add(
                    part if rows == part.num_rows else part.filter(pa.array(chosen)), self._references.get(key)
                )
                in_time += rows
        return in_time

    def _pane(self, key: Key, number: int) -> Pane:
        pane = self._panes.get((*key, number))
        if pane is None:
            seconds = self.settings.window_seconds
            pane = self._panes[(*key, number)] = Pane(*key, number * seconds, (number + 1) * seconds)
        return pane

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


def _split(table: pa.Table, column: str) -> list[tuple[str, pa.Table]]:
    values = table.column(column).unique().to_pylist()
    if len(values) == 1:
        return [(values[0], table)]
    return [(value, table.filter(pc.equal(table.column(column), value))) for value in values]


def _value_counts(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    return [(item["values"], item["counts"]) for item in pc.value_counts(column).to_pylist()]
