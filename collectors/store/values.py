"""What the store takes and gives: samples, series with their points, blocks of series, exemplars, metadata."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from collectors.store.matchers import Matcher

Times = NDArray[np.int64]
Floats = NDArray[np.float64]
# Labels are shared between answers: read them, never write to them.
Labels = Mapping[str, str]
LabelKey = tuple[tuple[str, str], ...]

STALE_BITS = 0x7FF0000000000002
"""Bits of the NaN that ends a series: Prometheus' stale marker (model/value/value.go)."""
STALE_NAN: float = struct.unpack("<d", struct.pack("<Q", STALE_BITS))[0]


def is_stale(values: Floats) -> NDArray[np.bool_]:
    """True where the value is a stale marker; an ordinary NaN is not. Any shape."""
    bits: NDArray[np.uint64] = np.ascontiguousarray(values).view(np.uint64)
    return np.equal(bits, np.uint64(STALE_BITS))


def label_key(labels: Labels) -> LabelKey:
    """The canonical form of a label set: sorted pairs; empty values are the same as absent ones."""
    return tuple(sorted(pair for pair in labels.items() if pair[1] != ""))


class Sample(NamedTuple):
    """One value of one series; the time belongs to the append it is part of."""

    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class SeriesData:
    """The points of one series: `t` int64 milliseconds, strictly rising, and `v` float64, with stale markers in it."""

    labels: Labels
    t: Times
    v: Floats


@dataclass(frozen=True, slots=True)
class Block:
    """Series that share their times: `t` int64 [n] and `v` float64 [n, len(labels)], time in rows."""

    labels: list[Labels]
    t: Times
    v: Floats


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One observation behind a series, with labels (`trace_id`) that lead to it."""

    series: Labels
    labels: Labels
    value: float
    t_ms: int


@dataclass(frozen=True, slots=True)
class MetricMetadata:
    """Type, help and unit of a metric family, as its source declared them."""

    type: str
    help: str
    unit: str = ""


@dataclass(slots=True)
class StoreCounts:
    """What happened to samples since the store was opened.

    `appended`: taken, stale markers included. `duplicates`: sent again, without effect. `out_of_order`: behind their
    series' newest; of these, `too_old` ones, further behind than the window for them, were refused, the others taken.
    `conflicting`: refused, another value for a time that has one. `limited`: refused, in appends over a limit.
    """

    appended: int = 0
    duplicates: int = 0
    conflicting: int = 0
    out_of_order: int = 0
    too_old: int = 0
    limited: int = 0
    commits: int = 0
    compacted: int = 0
    exemplars: int = 0


@dataclass(frozen=True, slots=True)
class Append:
    """Samples of one source at one time (unix ms); `replaces` says that series it no longer sends have ended."""

    target: str
    t_ms: int
    samples: Sequence[tuple[Labels, float]]
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """The series of one source in the order of its values, looked up once: see `Store.columns`."""

    target: str
    labels: list[Labels]
    ids: NDArray[np.int64]
    # The catalog's count of removals then: while it has not changed, the ids hold.
    removals: int


@dataclass(frozen=True, slots=True)
class Scrape:
    """An append as a vector: `values` float64, one for each of the columns. `replaces` is that of Append."""

    columns: Columns
    t_ms: int
    values: Floats
    replaces: bool = True

    @property
    def target(self) -> str:
        """The source."""
        return self.columns.target


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of the samples of an append; the fields are those of StoreCounts.

    `taken` includes duplicates. `refusal` says of the first refused sample what was wrong with it.
    """

    taken: int = 0
    duplicates: int = 0
    conflicting: int = 0
    out_of_order: int = 0
    too_old: int = 0
    refusal: str = ""

    def __add__(self, other: Taken) -> Taken:
        return Taken(
            self.taken + other.taken,
            self.duplicates + other.duplicates,
            self.conflicting + other.conflicting,
            self.out_of_order + other.out_of_order,
            self.too_old + other.too_old,
            self.refusal or other.refusal,
        )

    @property
    def refused(self) -> int:
        """Samples that are not in the store."""
        return self.conflicting + self.too_old


class SampleReader(Protocol):
    """The reading half of the store: all that queries, dashboards and alerts may do with it."""

    def select_blocks(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Block]: ...

    def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[SeriesData]: ...

    def series(
        self, matchers: Sequence[Matcher], start_ms: int | None = None, end_ms: int | None = None
    ) -> list[Labels]: ...

    def label_names(
        self, matchers: Sequence[Matcher] = (), start_ms: int | None = None, end_ms: int | None = None
    ) -> list[str]: ...

    def label_values(
        self, name: str, matchers: Sequence[Matcher] = (), start_ms: int | None = None, end_ms: int | None = None
    ) -> list[str]: ...

    def metadata(self) -> dict[str, MetricMetadata]: ...

    def exemplars(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Exemplar]: ...
