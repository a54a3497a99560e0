"""What an alarm is about: which cells of a column moved, in which direction, and what they were before."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from collectors.drift.bins import Counts, equal_mass_groups
from collectors.drift.cells import CUT_SHARE
from collectors.drift.null import ordered_test
from observability.columns import (
    CategoricalColumn,
    Column,
    EmbeddingColumn,
    NumericColumn,
    TextColumn,
    as_reference,
    missing_ratio,
    rebinned,
)

MOST_MOVED = 5
BINS = 10


@dataclass(frozen=True, slots=True)
class Moved:
    """A range or category, and its share of the values before and now."""

    label: str
    before: float
    now: float

    @property
    def change(self) -> float:
        return self.now - self.before


@dataclass(frozen=True, slots=True)
class Explanation:
    """What moved in one column; means, medians and deviations are None for columns without an order."""

    rows: int
    missing_before: float
    missing_now: float
    moved: tuple[Moved, ...] = ()
    """The ranges or categories whose shares changed most, the largest change first."""
    mean_before: float | None = None
    mean_now: float | None = None
    median_before: float | None = None
    median_now: float | None = None
    deviation_before: float | None = None
    deviation_now: float | None = None
    out_of_range: float | None = None
    """Share of the window's values outside everything the reference has."""
    strangers: dict[str, int] = field(default_factory=dict)
    """Categories that the reference does not list, with their rows in the window (a bounded sample)."""
    part: str | None = None
    """Of a text or embedding column: the part that this is about."""

    @property
    def shift(self) -> float | None:
        """Change of the mean in the reference's standard deviations; None without an order or a spread."""
        if self.mean_before is None or self.mean_now is None or not self.deviation_before:
            return None
        return (self.mean_now - self.mean_before) / self.deviation_before

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        said = []
        if self.median_before is not None and self.median_now is not None:
            of = f"{self.part}: " if self.part else ""
            said.append(f"{of}median {self.median_before:.4g} → {self.median_now:.4g}")
            if self.mean_before is not None and self.mean_now is not None:
                by = f" ({self.shift:+.2g} sd)" if self.shift is not None else ""
                said.append(f"mean {self.mean_before:.4g} → {self.mean_now:.4g}{by}")
        said += [f"{one.label} {one.before:.1%} → {one.now:.1%}" for one in self.moved[:3]]
        if self.missing_before != self.missing_now:
            said.append(f"missing {self.missing_before:.1%} → {self.missing_now:.1%}")
        return "; ".join(said) or "no values on a side"


def explain(reference: Column, window: Column, most: int = MOST_MOVED) -> Explanation:
    """What moved between two columns of one layout; a side without values explains only what is missing.

    ProfileError when the columns have different layouts that cannot be brought together.
    """
    reference = as_reference(reference)
    window = rebinned(window, reference, CUT_SHARE)
    if isinstance(reference, TextColumn) and isinstance(window, TextColumn):
        return _text(reference, window, most)
    if isinstance(reference, EmbeddingColumn) and isinstance(window, EmbeddingColumn):
        return _numeric(_with_bins(reference.norm), _with_bins(window.norm), most, "norm")
    if isinstance(reference, NumericColumn) and isinstance(window, NumericColumn):
        return _numeric(reference, window, most)
    strangers = window.strangers if isinstance(window, CategoricalColumn) else {}
    return Explanation(
        window.rows,
        missing_ratio(reference),
        missing_ratio(window),
        _moved(_labels(reference), reference.counts, window.counts, most),
        strangers=dict(sorted(strangers.items(), key=lambda pair: (-pair[1], pair[0]))[:most]),
    )


def _text(reference: TextColumn, window: TextColumn, most: int) -> Explanation:
    pairs = {name: (_with_bins(part), _with_bins(window.parts[name])) for name, part in reference.parts.items()}
    scores = {
        name: float(ordered_test(before.counts[None], now.counts[None])[0][0]) for name, (before, now) in pairs.items()
    }
    name = max(scores, key=lambda part: scores[part])
    return _numeric(*pairs[name], most, name)


def _numeric(reference: NumericColumn, window: NumericColumn, most: int, part: str | None = None) -> Explanation:
    missing = [missing_ratio(column) for column in (reference, window)]
    if not reference.count or not window.count:
        return Explanation(window.rows, missing[0], missing[1], part=part)
    # The tails are ranges of their own, so that new extremes are named.
    inner = equal_mass_groups(reference.counts[1:-1], BINS) + 1
    starts = np.concatenate([[0], inner, [len(reference.counts) - 1]])
    ends = [reference.edges[start - 1] for start in [*inner, len(reference.edges)]]
    labels = [
        f"below {ends[0]:.4g}",
        *(f"{low:.4g} … {high:.4g}" for low, high in itertools.pairwise(ends)),
        f"above {ends[-1]:.4g}",
    ]
    before, now = np.add.reduceat(reference.counts, starts), np.add.reduceat(window.counts, starts)
    return Explanation(
        window.rows,
        missing[0],
        missing[1],
        _moved(labels, before, now, most),
        reference.mean,
        window.mean,
        _median(reference, reference.edges),
        _median(window, reference.edges),
        math.sqrt(max(reference.variance, 0.0)),
        math.sqrt(max(window.variance, 0.0)),
        _share(window.out_of_range, window.rows),
        part=part,
    )


def _with_bins(part: Column) -> NumericColumn:
    if not isinstance(part, NumericColumn):
        raise TypeError(f"a {part.kind} part without bins")
    return part


def _median(column: NumericColumn, edges: np.typing.NDArray[np.float64]) -> float:
    """The median, its cell's rows spread evenly; the tails reach to the extremes."""
    below = np.cumsum(column.counts)
    half = below[-1] / 2
    cell = int(np.searchsorted(below, half))
    low = column.minimum if cell == 0 else max(float(edges[cell - 1]), column.minimum)
    high = column.maximum if cell == len(edges) else min(float(edges[cell]), column.maximum)
    inside = float(half - (below[cell] - column.counts[cell])) / float(column.counts[cell])
    return low + (high - low) * inside


def _moved(labels: list[str], before: Counts, now: Counts, most: int) -> tuple[Moved, ...]:
    if not before.sum() or not now.sum():
        return ()
    was, is_now = before / before.sum(), now / now.sum()
    order = np.argsort(-np.abs(is_now - was), kind="stable")[:most]
    return tuple(Moved(labels[at], float(was[at]), float(is_now[at])) for at in order if was[at] != is_now[at])


def _labels(column: Column) -> list[str]:
    labels = getattr(column, "labels", None)
    return list(labels) if labels is not None else [str(cell) for cell in range(len(column.counts))]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
