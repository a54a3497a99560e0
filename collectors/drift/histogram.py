"""The distributions of both sides as a few bars to look at: equal widths for numbers, the largest categories."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collectors.drift.bins import Floats
from collectors.drift.comparison import ColumnComparison, Sides
from observability.columns import Column, DatetimeColumn, NumericColumn

# The range that is shown leaves out so much of the reference's mass on either side, at least, in the outermost bars.
TAIL = 0.005
# With more of the current table's mass than this beyond that, the range is wider.
FAR = 0.03
# Columns of at most so many bins are shown by their values: there are no others between them.
FEW = 24
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Bars:
    """Shares of both sides in the same bars."""

    labels: tuple[str, ...]
    """One a bar: a value or category, or the number that the bar begins with."""
    shares: Sides[Floats]
    ordered: bool


def bars(cells: Sides[Column], most: int) -> Bars | None:
    """At most `most` bars; None where neither side has a value that could be shown."""
    before, now = cells.reference, cells.current
    if not before.count and not now.count:
        return None
    numbers = _numeric(before), _numeric(now)
    if numbers[0] is not None and numbers[1] is not None:
        return _of_numbers(Sides(numbers[0], numbers[1]), most)
    labels = getattr(before, "labels", None)
    if labels is None or len(labels) != len(before.counts):
        return None
    if before.kind == "datetime":
        return _of_week(Sides(before, now), most)
    return _of_categories(tuple(labels), Sides(before, now), most)


def bars_of(column: ColumnComparison, most: int) -> Bars | None:
    """The bars of a compared column: of times that were judged by when they were, those of their values."""
    if column.cells is None:
        return None
    before, now = column.cells.reference, column.cells.current
    if isinstance(before, DatetimeColumn) and isinstance(now, DatetimeColumn) and column.method == "cdf_distance":
        return _of_numbers(Sides(before.span, now.span), most, _day) if before.span and now.span else None
    return bars(column.cells, most)


def sparkline(shares: Floats, highest: float) -> str:
    """A bar a character; `highest` is the share that is drawn full."""
    if not highest:
        return " " * len(shares)
    # What is there shows, however little it is.
    height = np.where(shares > 0, np.maximum(np.round(shares / highest * 8), 1), 0).astype(int)
    return "".join(_BLOCKS[min(step, 8)] for step in height)


def _numeric(column: Column) -> NumericColumn | None:
    """The ordered cells of a column: a number's own, the length of a text, the norm of an embedding."""
    found = column if isinstance(column, NumericColumn) else getattr(column, "length", getattr(column, "norm", None))
    return found if isinstance(found, NumericColumn) else None


def _of_numbers(
    pair: Sides[NumericColumn], most: int, label: Callable[[float], str] = lambda value: _number(value)
) -> Bars | None:
    edges = pair.reference.edges
    if not len(edges):
        return None
    if len(edges) <= FEW:
        held = pair.reference.counts + pair.current.counts > 0
        starts = np.concatenate([[-math.inf], edges])
        names = [label(start) if math.isfinite(start) else f"< {label(edges[0])}" for start in starts[held]]
        # The greatest value's cell is closed by the next number above.
        names = [f"> {name}" if place and name == names[place - 1] else name for place, name in enumerate(names)]
        return Bars(tuple(names), Sides(_shares(pair.reference.counts[held]), _shares(pair.current.counts[held])), True)
    low, high = _range(pair)
    if not math.isfinite(high - low) or high <= low:
        return None
    at = np.linspace(low, high, most + 1)
    found = []
    for side in (pair.reference, pair.current):
        points, cumulative = _distribution(side)
        inside = _interpolated(at, points, cumulative) if side.count else np.zeros(most + 1)
        # What lies outside the range belongs to the outermost bars.
        inside[0], inside[-1] = 0.0, 1.0 if side.count else 0.0
        found.append(np.diff(inside))
    names = [label(value) for value in at[:-1]]
    if min(pair.reference.minimum, pair.current.minimum) < low:
        names[0] = f"< {label(at[1])}"
    return Bars(tuple(names), Sides(found[0], found[1]), True)


def _range(pair: Sides[NumericColumn]) -> tuple[float, float]:
    """Where the bulk of the reference lies; wider, to three times that, where more of the current values lie outside.

    Whole bins are taken or left: in the outermost one a value may be absurdly far away.
    """
    column = pair.reference if pair.reference.count else pair.current
    edges = column.edges
    below = np.cumsum(column.counts)[:-1] / max(column.count, 1)
    inner = edges[(below >= TAIL) & (below <= 1 - TAIL)]
    if len(inner) < 2 or inner[-1] <= inner[0]:
        return min(_quantile(side, TAIL) for side in (pair.reference, pair.current) if side.count), max(
            _quantile(side, 1 - TAIL) for side in (pair.reference, pair.current) if side.count
        )
    low, high = float(inner[0]), float(inner[-1])
    width = high - low
    if pair.current.count:
        if _at(pair.current, low) > FAR:
            low = max(low - width, min(_quantile(pair.current, TAIL), low))
        if _at(pair.current, high) < 1 - FAR:
            high = min(high + width, max(_quantile(pair.current, 1 - TAIL), high))
    return low, high


def _of_categories(labels: tuple[str, ...], pair: Sides[Column], most: int) -> Bars:
    before, now = _shares(pair.reference.counts), _shares(pair.current.counts)
    held = np.flatnonzero((before > 0) | (now > 0))
    if len(held) <= most:
        return Bars(tuple(labels[place] for place in held), Sides(before[held], now[held]), False)
    order = held[np.argsort(-np.maximum(before[held], now[held]), kind="stable")]
    kept, rest = order[: most - 1], order[most - 1 :]
    names = (*(labels[place] for place in kept), f"{len(rest)} more")
    return Bars(
        names,
        Sides(np.append(before[kept], before[rest].sum()), np.append(now[kept], now[rest].sum())),
        False,
    )


def _of_week(pair: Sides[Column], most: int) -> Bars:
    """168 hours of a week as its days, or where there is room as quarters of days."""
    parts = 28 if most >= 28 else 7
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    names = [days[number * 7 // parts] for number in range(parts)]
    found = [_shares(side.counts.reshape(parts, -1).sum(axis=1)) for side in (pair.reference, pair.current)]
    return Bars(tuple(names), Sides(found[0], found[1]), True)


def _distribution(column: NumericColumn) -> tuple[Floats, Floats]:
    """Points and the distribution function there, from the smallest value to the largest."""
    low = min(column.minimum, float(column.edges[0]))
    high = max(column.maximum, float(column.edges[-1]))
    points = np.concatenate([[low], column.edges, [high]])
    return points, np.concatenate([[0.0], np.cumsum(column.counts)]) / max(column.count, 1)


def _quantile(column: NumericColumn, level: float) -> float:
    points, cumulative = _distribution(column)
    # Of half of it, which has a width even where the whole has none.
    return 2 * float(np.interp(level, cumulative, points / 2))


def _at(column: NumericColumn, value: float) -> float:
    return float(_interpolated(np.array([value]), *_distribution(column))[0])


def _interpolated(at: Floats, points: Floats, values: Floats) -> Floats:
    """`values` between the `points`, scaled by a power of two: of huge and of tiny numbers no slope is a float."""
    exponent = -int(np.frexp(np.abs(points).max())[1])
    return np.interp(np.ldexp(at, exponent), np.ldexp(points, exponent), values)


def _shares(counts: np.typing.NDArray[np.int64]) -> Floats:
    return counts / max(int(counts.sum()), 1)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _day(seconds: float) -> str:
    """The day that a time since 1970 is of."""
    return str(np.datetime64(round(seconds), "s").astype("datetime64[D]"))
