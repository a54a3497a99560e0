"""One pane: what is known of one version's rows in one tumbling window, whole and by slice; panes add up."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.drift.bins import Counts
from collectors.pane_rows import added, by_value, joined, texts_of
from collectors.profiles import EVENTS, Source, merged_into
from observability import names
from observability.columns import CategoricalColumn, Column, ProfileError
from observability.profile import Profile

logger = logging.getLogger(__name__)

# Cells about 5 % wide from 10 µs to 1000 s: a quantile is read to that precision, and panes add up.
LATENCY_EDGES = np.geomspace(1e-5, 1e3, 370)
# Rows wait in a pane until this many are there: one pass over a profile costs about the same for 10 and 1,000 rows.
FOLD_ROWS = 4_096
# The same for slices, each of which gets only its part of the rows.
SLICE_FOLD_ROWS = 32_768
MISSING, OTHER = "missing", "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slicing:
    """By which columns a pane is also kept in parts: text or boolean ones, and at most `values` values of each."""

    columns: tuple[str, ...] = ()
    values: int = 20
    """The reference's most frequent values; without the column in the reference, the first in the alphabet. The rest
    of the rows are pooled as `other`, and rows without a value are the slice `missing`."""

    def __post_init__(self) -> None:
        if self.values < 1:
            raise ValueError(f"slices need at least one value a column, not {self.values}")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"a column is sliced by twice: {', '.join(self.columns)}")


NO_SLICES = Slicing()


@dataclass(slots=True)
class Pane:
    """What is known of one version's rows in [start, end), unix seconds. Without a reference `profile` is None.

    `slices` has the same by slice column and value. `revision` counts how often the pane was amended after it closed.
    """

    model: str
    version: str
    start: float
    end: float
    rows: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    latencies: Counts = field(default_factory=lambda: np.zeros(len(LATENCY_EDGES) + 1, np.int64))
    profile: Profile | None = None
    slices: dict[str, dict[str, Pane]] = field(default_factory=dict)
    revision: int = 0
    _slicing: Slicing = NO_SLICES
    _reference: Profile | None = None
    _source: Source = EVENTS
    _waiting: list[pa.Table] = field(default_factory=list)
    _waiting_rows: int = 0
    _unsliced: list[pa.Table] = field(default_factory=list)
    _unsliced_rows: int = 0

    def add(
        self, table: pa.Table, reference: Profile | None, slicing: Slicing = NO_SLICES, source: Source = EVENTS
    ) -> None:
        """Adds rows; they are profiled when enough of them wait, or at `folded`: the columns that `source` has not."""
        self.rows += table.num_rows
        for outcome, count in _value_counts(table.column("outcome")):
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        self.latencies += latency_counts(table.column("latency_seconds"))
        if reference is None and not slicing.columns:
            return
        if self.profile is None and reference is not None:
            self.profile = reference.empty()
        self._reference, self._slicing, self._source = reference, slicing, source
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= FOLD_ROWS:
            self._fold_profile()
        if self._unsliced_rows >= SLICE_FOLD_ROWS:
            self._fold_slices()

    def add_profile(self, posted: Profile, reference: Profile) -> None:
        """Adds what a sender counted itself; what is not in the layout of this pane is left out of it."""
        if self.profile is None:
            self.profile = reference.empty()
        try:
            self.profile = merged_into(self.profile, posted)
        except (KeyError, ProfileError) as error:
            logger.warning("a profile of %s version %s does not fit its window: %s", self.model, self.version, error)

    @property
    def seen(self) -> int:
        """Rows that are known of: those of the events, or those that profiles tell of where they are more."""
        profile = self.folded().profile
        return max(self.rows, profile.rows if profile else 0)

    def folded(self) -> Pane:
        """This pane with every row in its profile and its slices."""
        self._fold_profile()
        self._fold_slices()
        return self

    def without_profile(self) -> None:
        """Forgets the profiles: what comes from here on is counted against another reference."""
        self.folded()
        self.profile = None
        for part in self.parts():
            part.profile = None

    def parts(self) -> Iterator[Pane]:
        """The panes of all slices."""
        for values in self.slices.values():
            yield from values.values()

    def copy(self) -> Pane:
        """A pane of the same rows, to which adding leaves this one as it is."""
        self.folded()
        slices = {
            column: {value: part.copy() for value, part in parts.items()} for column, parts in self.slices.items()
        }
        return Pane(
            self.model,
            self.version,
            self.start,
            self.end,
            self.rows,
            dict(self.outcomes),
            self.latencies.copy(),
            self.profile,
            slices,
            self.revision,
        )

    def absorb(self, other: Pane) -> None:
        """Adds the rows of another pane of the same version, whose profile counts if it has this one's layout."""
        other.folded()
        self.start, self.end = min(self.start, other.start), max(self.end, other.end)
        self.rows += other.rows
        self.latencies = self.latencies + other.latencies
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        if self.profile is not None and other.profile is not None and same_layout(self.profile, other.profile):
            self.profile = self.profile + other.profile
        for column, values in other.slices.items():
            own = self.slices.setdefault(column, {})
            for value, part in values.items():
                if value in own:
                    own[value].absorb(part)
                else:
                    own[value] = part.copy()

    def faults(self) -> int:
        """Rows whose outcome is the version's fault."""
        return sum(self.outcomes.get(outcome, 0) for outcome in names.FAULTS)

    def to_json(self) -> bytes:
        """The closed pane as JSON."""
        return msgspec.json.encode(self._stored())

    @staticmethod
    def from_json(model: str, version: str, start: float, end: float, body: bytes) -> Pane:
        """The pane that `to_json` wrote."""
        return _restored(model, version, start, end, msgspec.json.decode(body, type=_StoredPane))

    def _stored(self) -> _StoredPane:
        self.folded()
        return _StoredPane(
            rows=self.rows,
            outcomes=self.outcomes,
            latencies=self.latencies.tolist(),
            profile=self.profile.to_json().decode() if self.profile else None,
            slices={
                column: {value: part._stored() for value, part in parts.items()}
                for column, parts in self.slices.items()
            },
            revision=self.revision,
        )

    def _fold_profile(self) -> None:
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        for table in self._joined(waiting) if self.profile is not None else ():
            self._profile(table)
        if self._slicing.columns:
            self._unsliced += waiting
            self._unsliced_rows += sum(table.num_rows for table in waiting)

    def _joined(self, tables: list[pa.Table]) -> list[pa.Table]:
        """The tables as few as they can be; those alike in the columns that a column's absence means something of."""
        telling = self._source.columns | frozenset(self._slicing.columns)
        return joined(tables, lambda table: frozenset(table.schema.names) & telling)

    def _profile(self, table: pa.Table) -> None:
        """Adds rows to the profile. A column of another type has no value in them; the other columns do."""
        assert self.profile is not None
        self.profile, strange = added(self.profile, table, self._source)
        if strange:
            what = ", ".join(strange)
            logger.warning("%s version %s: no value of %s is of its reference's kind", self.model, self.version, what)

    def _fold_slices(self) -> None:
        unsliced, self._unsliced, self._unsliced_rows = self._unsliced, [], 0
        for table in self._joined(unsliced):
            for column in self._slicing.columns:
                self._fold_column(column, table)

    def _fold_column(self, column: str, table: pa.Table) -> None:
        """Adds rows to the slices of a column. Rows that come without it lack a value where the reference knows it."""
        reference = self._reference.columns.get(column) if self._reference else None
        if column not in table.schema.names and (reference is None or column in self._source.columns):
            return
        # All numeric columns together cost a hundred times each by itself: that is kept of whole windows.
        plain = replace(self._reference, joint=None) if self._reference and self._reference.joint else self._reference
        parts = self.slices.setdefault(column, {})
        values = texts_of(table, column)
        frequent = frequent_values(reference, self._slicing.values)
        known = self._first_values(parts, values) if frequent is None else frequent
        for value, rows in by_value(table, values, known, MISSING, OTHER):
            part = parts.get(value)
            if part is None:
                part = parts[value] = Pane(self.model, self.version, self.start, self.end)
            # No profile is divided by slices: what the events do carry is counted in them.
            part.add(rows, plain, source=Source(self._source.columns - set(rows.schema.names)))
            part.folded()
        if frequent is None:
            self._pool(parts, known)

    def _first_values(self, parts: dict[str, Pane], values: pa.Array) -> frozenset[str]:
        """The first in the alphabet of the values so far: which those are does not depend on the order of rows."""
        found = {*parts, *values.unique().drop_null().to_pylist()} - {MISSING, OTHER}
        return frozenset(sorted(found)[: self._slicing.values])

    def _pool(self, parts: dict[str, Pane], known: frozenset[str]) -> None:
        """Adds up the slices of values that are not `known` any more."""
        for value in sorted(parts.keys() - known - {MISSING, OTHER}):
            part = parts.pop(value)
            if OTHER in parts:
                parts[OTHER].absorb(part)
            else:
                parts[OTHER] = part


class _StoredPane(msgspec.Struct):
    rows: int
    outcomes: dict[str, int]
    latencies: list[int]
    profile: str | None
    slices: dict[str, dict[str, _StoredPane]] = {}
    revision: int = 0


def _restored(model: str, version: str, start: float, end: float, stored: _StoredPane) -> Pane:
    slices = {
        column: {value: _restored(model, version, start, end, part) for value, part in parts.items()}
        for column, parts in stored.slices.items()
    }
    profile = Profile.from_json(stored.profile.encode()) if stored.profile else None
    latencies = np.array(stored.latencies, np.int64)
    return Pane(model, version, start, end, stored.rows, stored.outcomes, latencies, profile, slices, stored.revision)


def merge_panes(panes: Iterable[Pane]) -> Pane:
    """The sliding window over panes of one version, at least one. Panes of another reference's layout are left out."""
    first, *others = sorted((pane.folded() for pane in panes), key=lambda pane: pane.end, reverse=True)
    total = first.copy()
    for pane in others:
        total.absorb(pane)
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


def frequent_values(column: Column | None, most: int) -> frozenset[str] | None:
    """The values of a reference's column to slice by: its `most` most frequent. None when it says nothing of them."""
    if column is None:
        return None
    if column.kind == "boolean":
        return frozenset(("true", "false"))
    if not isinstance(column, CategoricalColumn):
        return None
    counts = column.counts[: len(column.categories)]
    order = np.argsort(-counts, kind="stable")[:most]
    return frozenset(str(column.categories[position]) for position in order)


def _value_counts(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    return [(item["values"], item["counts"]) for item in pc.value_counts(column).to_pylist()]
