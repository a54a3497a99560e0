"""Series as promtool's test files describe them: `name{label="v"}` and values such as `1 2+3x5 _ stale`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from alerts.labels import Labels, labels_of
from collectors.query import QueryError, parse_selector
from collectors.store import STALE_NAN

_NUMBER = r"(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|[iI][nN][fF]|[nN][aA][nN])"
_ITEM = re.compile(
    rf"(?:(?P<gap>_)|(?P<stale>stale)|(?P<first>[+-]?{_NUMBER})(?P<step>[+-]{_NUMBER})?)(?:x(?P<times>\d+))?\Z"
)
_MAX_POINTS = 10_000_000


class SeriesError(ValueError):
    """A series or its values cannot be read."""


def series_labels(text: str) -> Labels:
    """The labels of a series, its name among them as `__name__`; raises SeriesError."""
    if not text.strip().strip("{}").strip():
        return ()
    try:
        matchers = parse_selector(text)
    except QueryError as error:
        raise SeriesError(f"cannot read the series {text!r}: {error}") from error
    for matcher in matchers:
        if matcher.op != "=":
            raise SeriesError(f"cannot read the series {text!r}: {matcher} is a condition, not a label")
    return labels_of({matcher.name: matcher.value for matcher in matchers})


def series_values(text: str) -> list[float | None]:
    """One value for each interval from the start, None for a gap; raises SeriesError.

    `a+bxn` and `a-bxn` are n + 1 points, `axn` n + 1 equal ones, `_xn` n gaps; `stale` ends the series.
    """
    if "{{" in text:
        raise SeriesError(f"native histograms are not supported: {text!r}")
    values: list[float | None] = []
    for item in text.split():
        values.extend(_points(item))
        if len(values) > _MAX_POINTS:
            raise SeriesError(f"more than {_MAX_POINTS} values in one series: {item!r}")
    return values


def _points(item: str) -> Iterator[float | None]:
    found = _ITEM.match(item)
    if found is None:
        raise SeriesError(f"cannot read the values at {item!r}; write them like 1 2+3x5 _ _x3 stale")
    times = int(found["times"] or 0)
    if times > _MAX_POINTS:
        raise SeriesError(f"more than {_MAX_POINTS} values in one series: {item!r}")
    if found["gap"]:
        yield from [None] * (times if found["times"] else 1)
        return
    value = STALE_NAN if found["stale"] else float(found["first"])
    step = float(found["step"] or 0.0)
    yield value
    for _ in range(times):
        if found["step"]:
            value += step
        yield value
