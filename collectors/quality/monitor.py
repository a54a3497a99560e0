"""The quality monitor: every accepted row against its schema, counted and kept aside; volume, age and duplicates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from collectors.pane_rows import joined
from collectors.quality.aside import KeptRow
from collectors.quality.duplicates import RecentRows, row_hashes
from collectors.quality.schema import Schema, SchemaEdit, SchemaError
from collectors.quality.violations import Violation, check
from collectors.quality.volume import Volume
from observability.events import FEATURE
from observability.profile import Profile

NANOSECONDS = 1_000_000_000
# Rows of one broken rule that are kept aside of one batch; all are counted.
KEPT_OF_A_BATCH = 20
MAX_VALUE = 200
# A check costs about the same for 10 and for 1,000 rows.
CHECKED_ROWS = 2_048
# Without an age limit in the schema, data is stale after so many usual gaps.
STALE_WINDOWS = 10

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Observed:
    """What a batch of one version showed: broken rules with their numbers of rows, by (column, rule)."""

    model: str
    version: str
    counts: Mapping[tuple[str, str], int]


@dataclass(slots=True)
class QualityMonitor:
    """The state of quality over all versions. `keep` is given the rows to keep aside. Not thread-safe."""

    window_seconds: float
    keep: Callable[[Sequence[KeptRow]], object]
    edits: dict[str, SchemaEdit] = field(default_factory=dict)
    _inferred: dict[Key, Schema] = field(default_factory=dict)
    _recent: dict[Key, RecentRows] = field(default_factory=dict)
    _volumes: dict[str, Volume] = field(default_factory=dict)
    _waiting: dict[Key, list[pa.Table]] = field(default_factory=dict)

    def set_reference(
        self, model: str, version: str, reference: Profile, elsewhere: Collection[str] = frozenset()
    ) -> None:
        """Infers the version's schema from its reference. Columns that come `elsewhere` need not be in its rows."""
        schema = Schema.inferred(reference)
        columns = {
            name: replace(rules, required=False) if name in elsewhere else rules
            for name, rules in schema.columns.items()
        }
        self._inferred[model, version] = replace(schema, columns=columns)

    def edit(self, model: str, edit: SchemaEdit) -> None:
        """Changes the schema of all versions of a model. SchemaError, and no change, when a part of it fits none."""
        known = [schema for (name, _), schema in self._inferred.items() if name == model] or [Schema()]
        unfit = [schema.edited(edit).not_applied for schema in known]
        for column, why in unfit[-1].items():
            if all(column in others for others in unfit):
                raise SchemaError(why)
        self.edits[model] = edit

    def schema(self, model: str, version: str) -> Schema:
        """The rules in force for a version: inferred, then edited. Without a reference, what the edit alone says."""
        inferred = self._inferred.get((model, version), Schema())
        edit = self.edits.get(model)
        return inferred.edited(edit) if edit is not None else inferred

    def observe(self, model: str, version: str, events: pa.Table, until: float = math.inf) -> Observed | None:
        """Takes in a version's rows; what they break is told once enough of them wait, or by `checked`.

        Rows later than `until` (unix seconds) come of a wrong clock: they are checked, but do not make the data young.
        """
        if not events.num_rows:
            return None
        times = events.column("time").cast(pa.int64()).to_numpy() / NANOSECONDS
        if len(believed := times[times <= until]):
            self._volume(model).row_at(float(believed.max()))
        waiting = self._waiting.setdefault((model, version), [])
        waiting.append(events)
        if sum(table.num_rows for table in waiting) < CHECKED_ROWS:
            return None
        return self._check(model, version, self._waiting.pop((model, version)))

    def told(self, model: str, time: float) -> None:
        """Says that rows up to an event time came otherwise than as events."""
        self._volume(model).row_at(time)

    def checked(self) -> list[Observed]:
        """Checks the rows that wait. Nothing is dropped or changed by what is found."""
        waiting, self._waiting = self._waiting, {}
        return [self._check(model, version, tables) for (model, version), tables in waiting.items()]

    def _check(self, model: str, version: str, waiting: list[pa.Table]) -> Observed:
        counts: Counter[tuple[str, str]] = Counter()
        schema = self.schema(model, version)
        for events in _joined(waiting, schema):
            features = [name for name in events.schema.names if name.startswith(FEATURE)]
            if features:
                self._recent.setdefault((model, version), RecentRows()).add(row_hashes(events, features))
            found = check(events, schema)
            kept = [row for violation in found for row in _kept(model, version, events, violation)]
            if kept:
                self.keep(kept)
            counts.update({(item.column, item.rule): len(item.rows) for item in found})
        return Observed(model, version, counts)

    def closed(self, model: str, end: float, rows: int) -> None:
        """Says that a window of a version closed with so many rows."""
        self._volume(model).closed(end, rows, self.window_seconds)

    def duplicated_ratio(self, model: str, version: str) -> float:
        """Share of the version's latest rows whose features repeat another row's."""
        recent = self._recent.get((model, version))
        return recent.duplicated_ratio() if recent else 0.0

    def volume_ratio(self, model: str, now: float = -math.inf) -> float:
        """Rows of the model's last window against what is expected; NaN while nothing can be expected."""
        return self._volume(model).ratio(self._own(model).rows_per_second, now)

    def age(self, model: str, now: float) -> float:
        """Seconds since the latest row; NaN before the first."""
        return self._volume(model).age(now)

    def age_limit(self, model: str) -> float:
        """Age in seconds at which the model's data is stale."""
        limit = self._own(model).max_age_seconds
        return limit if limit is not None else STALE_WINDOWS * self.window_seconds

    def models(self) -> list[str]:
        """Models that rows have come of."""
        return [model for model, volume in self._volumes.items() if math.isfinite(volume.latest)]

    def _own(self, model: str) -> SchemaEdit:
        return self.edits.get(model) or SchemaEdit()

    def _volume(self, model: str) -> Volume:
        return self._volumes.setdefault(model, Volume())


def _joined(tables: list[pa.Table], schema: Schema) -> list[pa.Table]:
    """The tables as few as they can be without a change of what they break: those of the same columns and types.

    A value is unique in its batch, so that batches stay apart where one has to be.
    """
    if any(rules.unique for rules in schema.columns.values()):
        return tables
    return [table.combine_chunks() for table in joined(tables, lambda table: frozenset(table.schema.names))]


def _kept(model: str, version: str, events: pa.Table, violation: Violation) -> list[KeptRow]:
    chosen = events.take(pa.array(violation.rows[:KEPT_OF_A_BATCH]))
    ids = chosen.column("id").to_pylist()
    times = chosen.column("time").cast(pa.int64()).to_pylist()
    held = violation.column in events.schema.names
    values = chosen.column(violation.column).to_pylist() if held else [None] * len(ids)
    return [
        KeptRow(model, version, id_, time / NANOSECONDS, violation.column, violation.rule, _text(value))
        for id_, time, value in zip(ids, times, values, strict=True)
    ]


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:MAX_VALUE]
