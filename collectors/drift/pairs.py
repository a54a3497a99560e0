"""One column of both tables, counted and measured, and what both its profiles say: what a verdict is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from collectors.drift.cells import Cells
from collectors.drift.column_scores import Scores, cells_scores_each, infinite_rows
from collectors.drift.comparison import Sides
from collectors.drift.methods import named_verdict
from collectors.drift.moved_times import told_times
from collectors.drift.number_block import NumberBlock, number_blocks
from collectors.drift.verdict import Verdict
from observability.columns import CategoricalColumn, Column, DatetimeColumn, missing_rows

ORDERED = ("numeric", "text", "embedding")
# From this share on of new values a verdict says so.
MANY_NEW = 0.5
EXACT_INTEGERS = 2**53
ROUNDED = "integers beyond 2^53 are compared as floating-point numbers, which round them"
# Columns of so many rows, of which this share have a value of their own, are taken for identifiers.
MANY_ROWS, MOSTLY_DISTINCT = 50, 0.9


@dataclass(frozen=True, slots=True)
class ColumnPair:
    """What both sides of a column have, and what has been computed of it."""

    kind: str
    cells: Sides[Column]
    missing: Sides[int]
    rows: Sides[int]
    infinite: Sides[int]
    scores: Scores
    distinct: Sides[int] | None = None
    verdict: Verdict | None = None
    """The verdict of a method other than "auto"."""
    notes: tuple[str, ...] = field(default=())
    all_cells: Cells | None = None
    """All categories, where there are more than a profile keeps."""
    counted: Sides[int] | None = None

    @property
    def count(self) -> Sides[int]:
        """Values that the statistics are of."""
        return self.counted or Sides(self.cells.reference.count, self.cells.current.count)


@dataclass(frozen=True, slots=True)
class Asked:
    """The method that exact columns are judged with, unless it is "auto"."""

    method: str = "auto"
    threshold: float | None = None
    alpha: float | None = None


def profile_pairs(columns: Mapping[str, Sides[Column]], asked: Asked) -> Pairs:
    """Every column from both its profiles; the numeric ones are measured together, when one is asked for."""
    blocks, others = number_blocks(columns)
    pairs = {name: _of_cells(cells) for name, cells in others.items()}
    compared = [name for name, pair in pairs.items() if comparable(pair.count)]
    measured = cells_scores_each([(others[name].reference, others[name].current) for name in compared])
    for name, scores in zip(compared, measured, strict=True):
        pairs[name] = _judged(with_found(pairs[name], scores=scores), asked)
    return Pairs(tuple(columns), blocks, pairs, asked)


@dataclass(frozen=True, slots=True)
class Pairs:
    """All columns of two tables, in their order: numeric ones as blocks, to be measured later, and the others."""

    names: Sequence[str]
    blocks: Sequence[NumberBlock]
    others: Mapping[str, ColumnPair]
    asked: Asked
    notes: Mapping[str, str] = field(default_factory=dict)
    """What there is to say of columns in the blocks."""


def _judged(pair: ColumnPair, asked: Asked) -> ColumnPair:
    """A pair that has been measured, with the verdict of a method that is named."""
    if asked.method in ("auto", "evidently"):
        return pair
    counts = Sides(pair.cells.reference.counts, pair.cells.current.counts)
    verdict = named_verdict(
        asked.method,
        pair.scores,
        counts,
        ordered=pair.kind in ORDERED,
        threshold=asked.threshold,
        alpha=asked.alpha,
    )
    return with_found(pair, verdict=verdict)


def newcomers(new: int, rows: int, identifier: bool) -> tuple[str, ...]:
    """What there is to say about values that the reference lacks."""
    if identifier:
        return ("nearly every value occurs once: an identifier?",)
    if new == rows > 0:
        return ("every value is new",)
    return (f"{new / rows:.0%} of the values are new",) if rows and new >= MANY_NEW * rows else ()


def _of_cells(cells: Sides[Column]) -> ColumnPair:
    """A column that has been counted, not yet measured."""
    before, now = cells.reference, cells.current
    count = Sides(before.count, now.count)
    missing = Sides(missing_rows(before), missing_rows(now))
    infinite = Sides(infinite_rows(before), infinite_rows(now))
    rows = Sides(before.rows, now.rows)
    return ColumnPair(before.kind, cells, missing, rows, infinite, {}, notes=_outside(cells), counted=count)


def _outside(cells: Sides[Column]) -> tuple[str, ...]:
    """What there is to say about values outside the reference's list, and about times that moved."""
    before, now = cells.reference, cells.current
    if isinstance(before, DatetimeColumn) and isinstance(now, DatetimeColumn):
        return told_times(before, now)
    if not isinstance(before, CategoricalColumn) or not isinstance(now, CategoricalColumn):
        return ()
    if not before.truncated:
        return newcomers(now.unseen, now.count, False)
    rows, listed = before.count + now.count, int(before.counts[:-2].sum() + now.counts[:-2].sum())
    sample = [*before.strangers.values(), *now.strangers.values()]
    few = listed <= max((1 - MOSTLY_DISTINCT) * rows, len(before.categories) / MOSTLY_DISTINCT)
    identifier = few and MOSTLY_DISTINCT * sum(sample) <= len(sample) and rows >= MANY_ROWS
    unseen = 1 - listed / rows if rows else 0.0
    if unseen > MANY_NEW and not identifier:
        return (
            f"{unseen:.0%} of the values are none of the {len(before.categories)} categories that a profile lists: of "
            "those it sees only what becomes frequent, rows would tell more",
        )
    return newcomers(0, now.count, identifier)


def with_found(pair: ColumnPair, *, scores: Scores | None = None, verdict: Verdict | None = None) -> ColumnPair:
    return replace(
        pair,
        scores=pair.scores if scores is None else scores,
        verdict=pair.verdict if verdict is None else verdict,
    )


def comparable(count: Sides[int]) -> bool:
    return count.reference > 0 and count.current > 0
