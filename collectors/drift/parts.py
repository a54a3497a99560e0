"""The current table in parts: by the values of a column, or by windows of time, each against the reference.

A slice can drift while the whole does not, and a window says since when. The level of the calibrated method is divided
by the number of parts: with nothing changed, any of them alarms as often as one table alone would.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collectors.drift.bins import Floats
from collectors.drift.comparison import Comparison, Part, Sides
from collectors.drift.kinds import kind_of
from collectors.drift.plan import Plan
from collectors.drift.profiling import conformed
from collectors.drift.source import InputError, Source
from observability import durations
from observability.blocks import finite_numbers
from observability.profile import Profile

# More parts than this are no overview, and each costs a profile.
MOST_PARTS = 10_000
# Floating-point numbers with more different values than this are no groups: they are split into tenths.
MOST_NUMBERS, TENTHS = 100, 10
# From so many parts on they are compared by their profiles, unless the mode is given.
MANY_PARTS = 50
MISSING = "(missing)"
_DAY = 86_400_000_000
# 1970-01-05 was a Monday: windows of whole weeks begin on Mondays.
_MONDAY = 4 * _DAY
Split = Callable[[pa.ChunkedArray], pa.Array]


def by_value(source: Source, column: str, side: str, ranges: Floats | None = None) -> Split:
    """Splits rows by the values of a column, or by the `ranges` between ascending numbers that they lie in.

    InputError when the table lacks the column, or it cannot be split by.
    """
    kind = kind_of(source.schema.field(column).type) if column in source.columns else None
    if column not in source.columns:
        raise InputError(f"there is no column {column!r} in {side} to split by: there are {', '.join(source.columns)}")
    if kind in (None, "embedding"):
        raise InputError(f"a column of type {source.schema.field(column).type} cannot be split by")
    if ranges is not None:
        return lambda values: _ranged(_single(values), ranges)
    return lambda values: pc.fill_null(_single(values).cast(pa.string()), MISSING)


def ranges_of(sources: Sequence[Source], column: str) -> Floats | None:
    """The tenths of the first source's values, where a column of floating-point numbers has too many to split by."""
    values = [_numbers(source, column) for source in sources if _is_float(source, column)]
    if len(values) < len(sources) or max(map(_distinct, values), default=0) <= MOST_NUMBERS:
        return None
    finite = next((some for some in values if len(some)), values[0])
    return np.unique(np.quantile(finite, np.arange(1, TENTHS) / TENTHS, method="higher"))


def several(source: Source, column: str, most: int) -> bool:
    """Whether there are more than `most` parts: different values, or tenths of floating-point numbers."""
    if _is_float(source, column) and most >= TENTHS and ranges_of([source], column) is not None:
        return False
    return len(source.read([column]).column(column).unique()) > most


def _is_float(source: Source, column: str) -> bool:
    return column in source.columns and bool(pa.types.is_floating(source.schema.field(column).type))


def _numbers(source: Source, column: str) -> Floats:
    return finite_numbers(source.read([column]).column(column))


def _distinct(values: Floats) -> int:
    # A sample tells, unless it is about as many.
    few = len(np.unique(values[: 10 * MOST_NUMBERS]))
    return few if few > MOST_NUMBERS else len(np.unique(values))


def _ranged(values: pa.Array, bounds: Floats) -> pa.Array:
    numbers = np.asarray(values.cast(pa.float64()).fill_null(math.nan).to_numpy(zero_copy_only=False))
    words = [f"{bound:.6g}" for bound in bounds]
    labels = [f"below {words[0]}", *map("{} to {}".format, words[:-1], words[1:]), f"{words[-1]} and above", MISSING]
    places = np.where(np.isnan(numbers), len(labels) - 1, np.searchsorted(bounds, numbers, side="right"))
    return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32)), pa.array(labels)).cast(pa.string())


@dataclass(frozen=True, slots=True)
class Windows:
    """Splits rows into windows of time; rows without a time have no window."""

    width: int
    """Microseconds."""

    def __call__(self, values: pa.ChunkedArray) -> pa.Array:
        moments = microseconds(values)
        offset = _MONDAY if self.width % (7 * _DAY) == 0 else 0
        number = np.floor_divide(moments.fill_null(0).to_numpy(zero_copy_only=False) - offset, self.width)
        return pa.array(number, mask=np.asarray(moments.is_null()))

    def start(self, number: int) -> str:
        offset = _MONDAY if self.width % (7 * _DAY) == 0 else 0
        return _iso(number * self.width + offset)

    def end(self, number: int) -> str:
        return self.start(number + 1)


def by_time(source: Source, column: str, width_ms: int) -> Windows:
    """Splits rows by windows of a column of times. InputError when the current table lacks it, or it holds no times."""
    if column not in source.columns:
        raise InputError(
            f"there is no column {column!r} in the current table to take times from: "
            f"there are {', '.join(source.columns)}"
        )
    return Windows(width_ms * 1000)


def tables_of_parts(source: Source, split_by: str, split: Split, names: Sequence[str]) -> dict[object, pa.Table]:
    """The rows of each part, read into memory once."""
    table = source.read(list(dict.fromkeys([*names, split_by])))
    return dict(_parts(table, split(_chunked(table, split_by)), names))


def profiles_of_parts(
    source: Source,
    split_by: str,
    split: Split,
    layout: Profile,
    plan: Plan,
    progress: Callable[[int], None],
) -> dict[object, Profile]:
    """The profile of each part in an empty layout, in one pass over the rows."""
    found: dict[object, Profile] = {}
    names, done = plan.compared, 0
    for batch in source.scan(list(dict.fromkeys([*names, split_by]))):
        table = pa.Table.from_batches([batch])
        for key, rows in _parts(table, split(_chunked(table, split_by)), names):
            found[key] = found.get(key, layout).updated(conformed(rows, plan))
            if len(found) > MOST_PARTS:
                raise InputError(
                    f"column {split_by!r} splits {source.name} into more than {MOST_PARTS:,} parts: "
                    "take a longer window, or a column with fewer values"
                )
        done += table.num_rows
        progress(done)
    return found


def duration_ms(text: str) -> int:
    """A length of time as PromQL writes it, such as `15m`, `1d` or `1h30m`, in ms. InputError when it is none."""
    try:
        found = durations.duration_ms(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not a length of time: give one like 15m, 6h, 1d or 1w") from error
    if not found:
        raise InputError(f"a window of {text} is empty: give a length of time like 15m, 6h, 1d or 1w")
    return found


def since_when(windows: Sequence[Part]) -> dict[str, str]:
    """For each column that drifts in the last window, the start of the unbroken run of windows that it drifts in."""
    found: dict[str, str] = {}
    if not windows:
        return found
    for name, column in windows[-1].comparison.columns.items():
        if not column.drifted:
            continue
        first = windows[-1]
        for window in reversed(windows):
            if not window.comparison.columns[name].drifted:
                break
            first = window
        found[name] = str(first.start)
    return found


def worst_first(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts ordered by the share of drifted columns, then by how far the worst column is beyond its threshold."""

    def badness(comparison: Comparison) -> tuple[bool, float, float]:
        worst = max((column.severity for column in comparison.columns.values()), default=0.0)
        return comparison.drifted, comparison.drifted_share, worst

    return tuple(sorted(parts, key=lambda part: badness(part.comparison), reverse=True))


def sided(
    keys: Sequence[object], reference: Mapping[object, Profile], current: Mapping[object, Profile], layout: Profile
) -> Iterator[tuple[object, Sides[Profile]]]:
    """Each part's profiles; a part that one side lacks is empty there."""
    for key in keys:
        yield key, Sides(reference.get(key, layout), current.get(key, layout))


def microseconds(values: pa.ChunkedArray) -> pa.Array:
    """Times as microseconds since 1970 (UTC): timestamps, dates, ISO 8601 text, or unix seconds, ms, µs or ns."""
    column = _single(values)
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            column = column.cast(pa.timestamp("us", "UTC") if _has_zone(column) else pa.timestamp("us"))
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _from_unix(column)
        if pa.types.is_null(kind):
            return pa.nulls(len(column), pa.int64())
        zone = column.type.tz if pa.types.is_timestamp(column.type) else None
        return column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())
    except pa.ArrowException as error:
        raise InputError(f"a column of type {kind} has no times to make windows from: {error}") from error


def _from_unix(column: pa.Array) -> pa.Array:
    numbers = column.cast(pa.float64())
    numbers = pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))
    largest = pc.max(pc.abs(numbers)).as_py() or 0.0
    # Seconds until the year 5138, then milliseconds, microseconds, nanoseconds.
    factor = next((f for limit, f in ((1e11, 1e6), (1e14, 1e3), (1e17, 1.0)) if largest < limit), 1e-3)
    return pc.floor(pc.multiply(numbers, factor)).cast(pa.int64(), safe=False)


def _has_zone(column: pa.Array) -> bool:
    present = column.drop_null()
    return len(present) > 0 and re.search(r"([zZ]|[+-]\d\d:?\d\d)$", str(present[0])) is not None


def _parts(table: pa.Table, keys: pa.Array, names: Sequence[str]) -> Iterator[tuple[object, pa.Table]]:
    """The rows of each key, in the order of the keys' first rows; rows without a key are left out."""
    encoded = keys.dictionary_encode()
    codes: npt.NDArray[np.int64] = np.asarray(encoded.indices.fill_null(-1), np.int64)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
    rows = table.select(list(names)).take(pa.array(order))
    for code, key in enumerate(encoded.dictionary.to_pylist()):
        yield key, rows.slice(int(starts[code]), int(starts[code + 1] - starts[code]))


def _chunked(table: pa.Table, name: str) -> pa.ChunkedArray:
    return table.column(name)


def _single(values: pa.ChunkedArray) -> pa.Array:
    return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()


def _iso(moment: int) -> str:
    return datetime.fromtimestamp(moment / 1e6, UTC).isoformat().replace("+00:00", "Z")
