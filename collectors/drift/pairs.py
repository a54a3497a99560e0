"""One column of both tables, counted and measured: what a verdict is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from collectors.drift.cells import Cells
from collectors.drift.column_scores import (
    Scores,
    cells_scores_each,
    counted_scores,
    infinite_rows,
    row_scores,
)
from collectors.drift.comparison import Sides
from collectors.drift.evidently_method import (
    WASSERSTEIN,
    evidently_bins,
    evidently_categorical,
    evidently_category_distances,
    evidently_numeric,
)
from collectors.drift.evidently_text import TooLittleTextError, evidently_text
from collectors.drift.exact import (
    Counted,
    Ordered,
    boolean_cells,
    categorical_cells,
    counted,
    numeric_cells,
    ordered,
)
from collectors.drift.kinds import SAMPLE, as_numbers, as_text, as_truths, is_text, named_type, without_nan
from collectors.drift.methods import named_verdict
from collectors.drift.number_block import NumberBlock, number_blocks
from collectors.drift.plan import ColumnPlan
from collectors.drift.source import InputError
from collectors.drift.verdict import Verdict
from collectors.drift.written_times import as_times
from observability.columns import CategoricalColumn, Column, ProfileError, missing_rows
from observability.profile import Profile

ORDERED = ("numeric", "text", "embedding")
# From this share on of new values a verdict says so.
MANY_NEW = 0.5
EXACT_INTEGERS = 2**53
ROUNDED = "integers beyond 2^53 are compared as floating-point numbers, which round them"
OVERFLOWN = "the reference's variance is too large for its type, so that Evidently's score of any distance is 0 or none"
BEYOND = "its values lie so far apart that their Wasserstein distance is above the largest number"
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


# A range of more than 1.8e308 has no width, which is no reason for a warning.
@np.errstate(over="ignore", invalid="ignore")
def exact_pair(column: ColumnPlan, reference: pa.ChunkedArray, current: pa.ChunkedArray, asked: Asked) -> ColumnPair:
    """A column from all its values. InputError, naming it, when they are not of its kind."""
    try:
        if column.kind == "numeric":
            return _numbers(column, reference, current, asked)
        if column.kind == "categorical":
            return _categories(column, without_nan(reference), without_nan(current), asked)
        if column.kind == "boolean":
            return _categories(column, as_truths(reference), as_truths(current), asked)
        return _profiled(column, reference, current, asked)
    except pa.ArrowException as error:
        kinds = " and ".join(dict.fromkeys(named_type(side.type) for side in (reference, current)))
        raise InputError(f"column {column.name!r} of type {kinds} cannot be read as {column.kind}: {error}") from error
    except ProfileError as error:
        raise InputError(str(error)) from error


def profile_pairs(columns: Mapping[str, Sides[Column]], asked: Asked) -> Pairs:
    """Every column from both its profiles; the numeric ones are measured together, when one is asked for."""
    blocks, others = number_blocks(columns)
    pairs = {name: _of_cells(cells) for name, cells in others.items()}
    compared = [name for name, pair in pairs.items() if _comparable(pair.count)]
    measured = cells_scores_each([(others[name].reference, others[name].current) for name in compared])
    for name, scores in zip(compared, measured, strict=True):
        pairs[name] = _judged(_with(pairs[name], scores=scores), asked)
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
    return _with(pair, verdict=verdict)


def _numbers(column: ColumnPlan, reference: pa.ChunkedArray, current: pa.ChunkedArray, asked: Asked) -> ColumnPair:
    sides = Sides(*(as_numbers(values) for values in (reference, current)))
    notes = tuple(
        f"{number} values of the {name} are not numbers, and count as missing"
        for name, (_, number) in (("reference", sides.reference), ("current table", sides.current))
        if number
    )
    values = Sides(sides.reference[0], sides.current[0])
    pair = Sides(ordered(values.reference), ordered(values.current))
    if _rounded(values.reference, pair.reference) or _rounded(values.current, pair.current):
        notes += (ROUNDED,)
    cells = numeric_cells(pair)
    rows = Sides(pair.reference.rows, pair.current.rows)
    missing = Sides(missing_rows(cells.reference), missing_rows(cells.current))
    infinite = Sides(pair.reference.infinite, pair.current.infinite)
    found = ColumnPair("numeric", Sides(cells.reference, cells.current), missing, rows, infinite, {}, notes=notes)
    if not _comparable(found.count):
        return found
    scores = row_scores(pair, cells)
    if math.isinf(scores["wasserstein"]):
        notes += (BEYOND,)
        found = replace(found, notes=notes)
    if asked.method == "evidently":
        integers = all(pa.types.is_integer(side.type) and not side.null_count for side in (reference, current))
        bins = evidently_bins(pair, integers)
        scores |= {"psi": bins.psi, "js_distance": bins.js_distance, "hellinger": bins.hellinger}
        deviation = cells.reference.variance**0.5
        kind = reference.type.to_pandas_dtype() if pa.types.is_floating(reference.type) else np.float64
        verdict = evidently_numeric(pair, scores["wasserstein"], deviation, asked.threshold, kind=kind)
        if verdict.method == WASSERSTEIN and not np.isfinite(kind(deviation**2)):
            notes += (OVERFLOWN,)
        return replace(found, scores=scores, verdict=verdict, notes=notes)
    if asked.method == "auto":
        return _with(found, scores=scores)
    counts = Sides(cells.reference.counts, cells.current.counts)
    verdict = named_verdict(
        asked.method, scores, counts, ordered=True, rows=pair, threshold=asked.threshold, alpha=asked.alpha
    )
    return _with(found, scores=scores, verdict=verdict)


def _rounded(values: pa.ChunkedArray, side: Ordered) -> bool:
    """Whether there are integers that are too large for float64 to have each of them."""
    known = side.values
    large = len(known) > 0 and max(-float(known[0]), float(known[-1])) > EXACT_INTEGERS
    return large and bool(pa.types.is_integer(values.type))


def _categories(column: ColumnPlan, reference: pa.ChunkedArray, current: pa.ChunkedArray, asked: Asked) -> ColumnPair:
    found = counted(reference, current)
    if column.kind == "categorical" and not column.given and _may_be_text(found) and is_text(reference):
        return _profiled(column, reference, current, asked, kind="text")
    cells: Sides[Column] = boolean_cells(found) if column.kind == "boolean" else categorical_cells(found)  # type: ignore[assignment]
    before, now = found.counts.reference, found.counts.current
    rows = Sides(int(before.sum()), int(now.sum()))
    # A few current rows that repeat themselves do not show among a million that do not.
    identifier = (
        _is_identifier(found.distinct.reference, rows.reference)
        and _is_identifier(len(before), rows.reference + rows.current)
        and (rows.current < MANY_ROWS or _is_identifier(found.distinct.current, rows.current))
    )
    pair = ColumnPair(
        str(column.kind),
        cells,
        found.missing,
        Sides(len(reference), len(current)),
        Sides(0, 0),
        {},
        found.distinct,
        notes=_newcomers(int(now[before == 0].sum()), rows.current, identifier),
        # Of values that occur once, none says anything about the others.
        all_cells=_all_cells(found) if getattr(cells.reference, "truncated", False) and not identifier else None,
    )
    if not _comparable(pair.count):
        return pair
    scores = counted_scores(found)
    verdict = None
    if asked.method == "evidently":
        verdict = evidently_categorical(found, asked.threshold)
        bins = evidently_category_distances(found)
        scores |= {"psi": bins.psi, "js_distance": bins.js_distance, "hellinger": bins.hellinger}
    elif asked.method != "auto":
        verdict = named_verdict(
            asked.method, scores, found.counts, ordered=False, threshold=asked.threshold, alpha=asked.alpha
        )
    return _with(pair, scores=scores, verdict=verdict)


def _is_identifier(distinct: int, rows: int) -> bool:
    return rows >= MANY_ROWS and distinct >= MOSTLY_DISTINCT * rows


def _newcomers(new: int, rows: int, identifier: bool) -> tuple[str, ...]:
    """What there is to say about values that the reference lacks."""
    if identifier:
        return ("nearly every value occurs once: an identifier?",)
    if new == rows > 0:
        return ("every value is new",)
    return (f"{new / rows:.0%} of the values are new",) if rows and new >= MANY_NEW * rows else ()


def _may_be_text(found: Counted) -> bool:
    """Whether enough values differ that it is worth a look at some: in free text half of a sample do."""
    return 2 * found.distinct.reference >= min(int(found.counts.reference.sum()), SAMPLE)


def _all_cells(found: Counted) -> Cells:
    counts, missing = found.counts, found.missing
    return Cells(counts.reference, counts.current, False, missing.reference, missing.current)


def _profiled(
    column: ColumnPlan,
    reference: pa.ChunkedArray,
    current: pa.ChunkedArray,
    asked: Asked,
    kind: str | None = None,
) -> ColumnPair:
    """Dates, texts and embeddings: compared by the cells of their profiles, in both modes."""
    chosen = kind or str(column.kind)
    name = column.name
    if chosen in ("text", "categorical"):
        reference, current = as_text(reference), as_text(current)
    if chosen == "datetime":
        reference, current = as_times(reference), as_times(current)
    first = Profile.of(pa.table({name: reference}), {name: chosen})  # type: ignore[dict-item]
    second = first.empty().updated(pa.table({name: current}))
    pair = profile_pairs({name: Sides(first.columns[name], second.columns[name])}, asked).others[name]
    if asked.method == "evidently" and chosen == "text" and _comparable(pair.count):
        try:
            return _with(pair, verdict=evidently_text(reference, current, asked.threshold))
        except TooLittleTextError as error:
            return replace(pair, notes=(*pair.notes, str(error)))
    return pair


def _of_cells(cells: Sides[Column]) -> ColumnPair:
    """A column that has been counted, not yet measured."""
    before, now = cells.reference, cells.current
    count = Sides(before.count, now.count)
    missing = Sides(missing_rows(before), missing_rows(now))
    infinite = Sides(infinite_rows(before), infinite_rows(now))
    rows = Sides(before.rows, now.rows)
    return ColumnPair(before.kind, cells, missing, rows, infinite, {}, notes=_outside(cells), counted=count)


def _outside(cells: Sides[Column]) -> tuple[str, ...]:
    """What there is to say about values outside the reference's list."""
    before, now = cells.reference, cells.current
    if not isinstance(before, CategoricalColumn) or not isinstance(now, CategoricalColumn):
        return ()
    if not before.truncated:
        return _newcomers(now.unseen, now.count, False)
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
    return _newcomers(0, now.count, identifier)


def _with(pair: ColumnPair, *, scores: Scores | None = None, verdict: Verdict | None = None) -> ColumnPair:
    return replace(
        pair,
        scores=pair.scores if scores is None else scores,
        verdict=pair.verdict if verdict is None else verdict,
    )


def _comparable(count: Sides[int]) -> bool:
    return count.reference > 0 and count.current > 0
