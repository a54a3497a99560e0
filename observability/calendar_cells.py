"""The datetime column of a profile: counts over the hours of a week and over the reference's times, and the range."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from observability.blocks import BLOCK, buffer_view, chunks, valid_rows
from observability.cells import Counts, Floats, Kind, ProfileError, count_of, counts_of
from observability.numeric import NumericColumn

HOURS = 168
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# 1 January 1970 was a Thursday.
_THURSDAY = 72


@dataclass(frozen=True, slots=True, eq=False)
class DatetimeColumn:
    """Counts of times by the hour of the week in UTC (cell 0 is Monday from 00:00), with the earliest and latest.

    Times without a zone are taken as UTC, dates as their midnight. `minimum` and `maximum` are nanoseconds since
    1970, None without a value. `span` counts the same times over bins of the reference's, in seconds since 1970; None
    where there is no reference, and in profiles of former versions.
    """

    counts: Counts
    missing: int = 0
    minimum: int | None = None
    maximum: int | None = None
    span: NumericColumn | None = None

    @staticmethod
    def layout(values: pa.ChunkedArray | None = None) -> DatetimeColumn:
        counts = np.zeros(HOURS, np.int64)
        if values is None:
            return DatetimeColumn(counts)
        seconds = [_present(chunk)[0] for chunk in chunks(values)]
        return DatetimeColumn(counts, span=NumericColumn.layout(pa.chunked_array(seconds, pa.float64())))

    def __post_init__(self) -> None:
        self.counts.setflags(write=False)

    @property
    def kind(self) -> Kind:
        return "datetime"

    @property
    def count(self) -> int:
        """Values that are not null."""
        return int(self.counts.sum())

    @property
    def rows(self) -> int:
        return self.count + self.missing

    @property
    def labels(self) -> tuple[str, ...]:
        """What the cells of `counts` are: "Monday 00:00" and so on."""
        return tuple(f"{day} {hour:02d}:00" for day in DAYS for hour in range(24))

    def empty(self) -> DatetimeColumn:
        return DatetimeColumn(np.zeros(HOURS, np.int64), span=None if self.span is None else self.span.empty())

    def updated(self, values: pa.ChunkedArray | pa.Array) -> DatetimeColumn:
        """This column with `values` (timestamps or dates; texts in ISO 8601) added."""
        total = self
        for chunk in chunks(values):
            for start in range(0, len(chunk), BLOCK):
                total = total._with(chunk.slice(start, BLOCK))
        return total

    def without_values(self, rows: int) -> DatetimeColumn:
        return replace(self, missing=self.missing + rows)

    def _with(self, part: pa.Array) -> DatetimeColumn:
        seconds, hours, low, high = _present(part)
        counts = np.bincount(hours, minlength=HOURS).astype(np.int64)
        span = None if self.span is None else self.span.empty().updated(seconds)
        return self + DatetimeColumn(counts, len(part) - len(seconds), low, high, span)

    def __add__(self, other: DatetimeColumn) -> DatetimeColumn:
        lows = [column.minimum for column in (self, other) if column.minimum is not None]
        highs = [column.maximum for column in (self, other) if column.maximum is not None]
        return DatetimeColumn(
            self.counts + other.counts,
            self.missing + other.missing,
            min(lows, default=None),
            max(highs, default=None),
            None if self.span is None or other.span is None else self.span + other.span,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DatetimeColumn) and self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "counts": self.counts.tolist(),
            "missing": self.missing,
            "minimum": self.minimum,
            "maximum": self.maximum,
            **({} if self.span is None else {"span": self.span.to_json()}),
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> DatetimeColumn:
        counts = counts_of(value["counts"])
        if len(counts) != HOURS:
            raise ProfileError(f"a datetime column has {HOURS} counts, there are {len(counts)}")
        low, high = value["minimum"], value["maximum"]
        if not all(bound is None or type(bound) is int for bound in (low, high)):
            raise ProfileError("the range of a datetime column is whole nanoseconds or null")
        span = NumericColumn.from_json(value["span"]) if "span" in value else None
        if span is not None and span.rows != int(counts.sum()):
            raise ProfileError(f"a datetime column has {int(counts.sum())} times by the hour and {span.rows} by value")
        return DatetimeColumn(counts, count_of(value["missing"]), low, high, span)


def _present(part: pa.Array) -> tuple[pa.Array, Counts, int | None, int | None]:
    """The times that are not null: in seconds since 1970, their hours of the week, the first and last nanosecond."""
    times, per_second, valid = _instants(part)
    present = times if valid is None else times[valid]
    seconds: Floats = present / per_second
    if not len(present):
        return pa.array(seconds), np.zeros(0, np.int64), None, None
    hours = (present // (3_600 * per_second) + _THURSDAY) % HOURS
    to_nanoseconds = 1_000_000_000 // per_second
    return pa.array(seconds), hours, int(present.min()) * to_nanoseconds, int(present.max()) * to_nanoseconds


def _instants(part: pa.Array) -> tuple[NDArray[np.int64], int, NDArray[np.bool_] | None]:
    """The times as whole numbers since 1970, how many of them make a second, and which are not null."""
    kind = part.type
    if pa.types.is_dictionary(kind):
        return _instants(part.dictionary_decode())
    valid = valid_rows(part, 0, len(part)) if part.null_count else None
    if pa.types.is_timestamp(kind):
        return buffer_view(part, np.int64), _PER_SECOND[kind.unit], valid
    if pa.types.is_date32(kind):
        return buffer_view(part, np.int32).astype(np.int64) * 86_400, 1, valid
    if pa.types.is_date64(kind):
        return buffer_view(part, np.int64), 1_000, valid
    if pa.types.is_null(kind):
        return np.zeros(len(part), np.int64), 1, np.zeros(len(part), np.bool_)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        raise pa.ArrowInvalid("numbers have no unit of time: cast them to a timestamp first")
    return _instants(part.cast(pa.timestamp("us", "UTC") if _zoned(part) else pa.timestamp("us")))


def _zoned(part: pa.Array) -> bool:
    """Whether texts name a time zone, by the first that is not null."""
    present = part.drop_null()
    text = str(present[0].as_py()) if len(present) else ""
    return text.endswith("Z") or "+" in text[10:] or "-" in text[10:]
