"""What a comparison of two tables found, column by column, and its JSON."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import repeat
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

import msgspec

from collectors.drift.bins import Counts
from observability.columns import Column

T = TypeVar("T")
Mode = Literal["exact", "profile"]


@dataclass(frozen=True, slots=True)
class Sides(Generic[T]):
    """One thing of both tables."""

    reference: T
    current: T

    def to_json(self) -> dict[str, T]:
        return {"reference": self.reference, "current": self.current}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnComparison:
    """One column of both tables. A statistic that is not defined for the column is None, and absent in the JSON."""

    type: str
    """`numeric`, `categorical`, `boolean`, `datetime`, `text`, `embedding`, or `unknown`."""
    missing: Sides[int]
    """Rows without a value: null, and NaN in a numeric column."""
    missing_share: Sides[float]
    infinite: Sides[int] | None = None
    distinct: Sides[int] | None = None
    """Distinct values, where they were counted (categories in exact mode)."""
    psi: float | None = None
    js_distance: float | None = None
    hellinger: float | None = None
    total_variation: float | None = None
    ks: float | None = None
    ks_pvalue: float | None = None
    ks_error: float | None = None
    """In profile mode: the exact statistic is between `ks` and `ks + ks_error`."""
    cramer_von_mises: float | None = None
    """Mean squared difference of the two distribution functions."""
    wasserstein: float | None = None
    """In the column's own unit."""
    wasserstein_normed: float | None = None
    """In standard deviations of the reference, at least 0.001 of the unit."""
    wasserstein_error: float | None = None
    """In profile mode: how far `wasserstein` can be from the exact one."""
    chi2_pvalue: float | None = None
    method: str | None = None
    """The method that gave `score`."""
    score: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    missing_changed: bool = False
    drifted: bool = False
    reason: str = ""
    cells: Sides[Column] | None = field(default=None, compare=False)
    """Both sides' counts over the reference's bins or categories: what a histogram is drawn from."""

    @classmethod
    def of_many(cls, number: int, **values: Sequence[Any]) -> list[ColumnComparison]:
        """As many comparisons, of a sequence a field: a quarter of the time of so many calls. Other fields are default.

        The fields of a frozen dataclass are set one by one, by Python; here one call sets a field of all of them.
        """
        found = [object.__new__(cls) for _ in range(number)]
        for item in fields(cls):
            each = values.get(item.name) or repeat(item.default, number)
            deque(map(getattr(cls, item.name).__set__, found, each), maxlen=0)
        return found

    @property
    def judged(self) -> bool:
        """Whether there was something to judge: a score, or a finding without one."""
        return self.score is not None or self.drifted

    @property
    def severity(self) -> float:
        """Orders columns worst first: drifted before others, then how far the score is beyond its threshold."""
        beyond = 0.0
        if self.score is not None and self.threshold is not None:
            ratio = (self.threshold, self.score) if self.score == self.p_value else (self.score, self.threshold)
            beyond = min(ratio[0] / max(ratio[1], 1e-300), 1e12)
        change = abs(self.missing_share.current - self.missing_share.reference)
        return (1e15 if self.drifted else 0.0) + beyond + change

    def to_json(self) -> dict[str, Any]:
        """What is defined, with numbers that JSON has."""
        found = {
            name: value
            for name, value in zip(_TOLD, _values_of(self), strict=True)
            if value is not None and not (isinstance(value, float) and not math.isfinite(value))
        }
        for name in _OF_BOTH:
            if name in found:
                found[name] = found[name].to_json()
        return found


_TOLD = tuple(item.name for item in fields(ColumnComparison) if item.name != "cells")
_OF_BOTH = ("missing", "missing_share", "infinite", "distinct")
# A thousand columns have 26,000 values: one call fetches those of a column.
_values_of = attrgetter(*_TOLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the current table against the reference: the rows of one value of `--by`, or of one window of time."""

    label: str
    comparison: Comparison
    start: str | None = None
    end: str | None = None

    def to_json(self) -> dict[str, Any]:
        times = {"start": self.start, "end": self.end} if self.start is not None else {}
        return {"value": self.label, **times, **self.comparison.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two tables, compared."""

    rows: Sides[int]
    columns: Mapping[str, ColumnComparison]
    """In the order of the reference's columns."""
    drifted_share: float
    """Drifted columns, of those that could be judged."""
    drifted: bool
    seconds: float
    mode: Mode
    method: str
    only_in_reference: tuple[str, ...] = ()
    only_in_current: tuple[str, ...] = ()
    by: str | None = None
    values: tuple[Part, ...] = ()
    """With `by`: a comparison for each of its values that both tables have, worst first."""
    values_only_in: Sides[tuple[str, ...]] = Sides((), ())
    """With `by`: the values that only one table has."""
    time: str | None = None
    windows: tuple[Part, ...] = ()
    """With `window`: each window of the current table against the reference, in order of time."""
    since: Mapping[str, str] = field(default_factory=dict)
    """With `window`: for each column that drifts in the last window, the start of that run of drifted windows."""

    @property
    def alarms(self) -> bool:
        """Whether the tables drifted, or a part of the current one did."""
        return self.drifted or any(part.comparison.drifted for part in (*self.values, *self.windows))

    @property
    def worst_first(self) -> list[tuple[str, ColumnComparison]]:
        return sorted(self.columns.items(), key=lambda item: -item[1].severity)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: `rows`, `columns`, `drifted_share`, `drifted`, `seconds`, and what else there is."""
        found: dict[str, Any] = {
            "rows": self.rows.to_json(),
            "columns": {name: column.to_json() for name, column in self.columns.items()},
            "drifted_share": self.drifted_share,
            "drifted": self.drifted,
            "seconds": self.seconds,
            "mode": self.mode,
            "method": self.method,
        }
        if self.only_in_reference:
            found["only_in_reference"] = list(self.only_in_reference)
        if self.only_in_current:
            found["only_in_current"] = list(self.only_in_current)
        if self.by is not None:
            found |= {"by": self.by, "values": [part.to_json() for part in self.values]}
            found["values_only_in_reference"] = list(self.values_only_in.reference)
            found["values_only_in_current"] = list(self.values_only_in.current)
        if self.time is not None:
            found |= {
                "time": self.time,
                "windows": [part.to_json() for part in self.windows],
                "since": dict(self.since),
            }
        return found

    def json_text(self, indent: int = 0) -> bytes:
        """`to_json` as UTF-8 text, over several lines where an indent is given."""
        text = msgspec.json.encode(self.to_json(), enc_hook=_as_python)
        return msgspec.json.format(text, indent=indent) if indent else text


def _as_python(value: Any) -> Any:
    """A numpy number as Python's own."""
    return value.item()


def share_of(missing: int, rows: int) -> float:
    """`missing` of `rows`; 0 without rows."""
    return missing / rows if rows else 0.0


__all__ = ["ColumnComparison", "Comparison", "Counts", "Mode", "Part", "Sides", "share_of"]
