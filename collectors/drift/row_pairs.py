"""One column of both tables from all its values: sorted or counted once a side, and measured exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa

from collectors.drift.cells import Cells
from collectors.drift.column_scores import counted_scores, row_scores
from collectors.drift.comparison import Sides
from collectors.drift.evidently_method import (
    WASSERSTEIN,
    evidently_bins,
    evidently_categorical,
    evidently_category_distances,
    evidently_numeric,
)
from collectors.drift.evidently_text import TooLittleTextError, evidently_text
from collectors.drift.exact import Counted, Ordered, boolean_cells, categorical_cells, counted, numeric_cells, ordered
from collectors.drift.kinds import SAMPLE, as_numbers, as_text, as_truths, is_text, named_type, without_nan
from collectors.drift.methods import named_verdict
from collectors.drift.pairs import (
    EXACT_INTEGERS,
    MANY_ROWS,
    MOSTLY_DISTINCT,
    ROUNDED,
    Asked,
    ColumnPair,
    comparable,
    newcomers,
    profile_pairs,
    with_found,
)
from collectors.drift.plan import ColumnPlan
from collectors.drift.source import InputError
from collectors.drift.written_times import as_times
from observability.columns import Column, ProfileError, missing_rows
from observability.profile import Profile

OVERFLOWN = "the reference's variance is too large for its type, so that Evidently's score of any distance is 0 or none"
BEYOND = "its values lie so far apart that their Wasserstein distance is above the largest number"


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
    if not comparable(found.count):
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
        return with_found(found, scores=scores)
    counts = Sides(cells.reference.counts, cells.current.counts)
    verdict = named_verdict(
        asked.method, scores, counts, ordered=True, rows=pair, threshold=asked.threshold, alpha=asked.alpha
    )
    return with_found(found, scores=scores, verdict=verdict)


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
        notes=newcomers(int(now[before == 0].sum()), rows.current, identifier),
        # Of values that occur once, none says anything about the others.
        all_cells=_all_cells(found) if getattr(cells.reference, "truncated", False) and not identifier else None,
    )
    if not comparable(pair.count):
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
    return with_found(pair, scores=scores, verdict=verdict)


def _is_identifier(distinct: int, rows: int) -> bool:
    return rows >= MANY_ROWS and distinct >= MOSTLY_DISTINCT * rows


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
    if asked.method == "evidently" and chosen == "text" and comparable(pair.count):
        try:
            return with_found(pair, verdict=evidently_text(reference, current, asked.threshold))
        except TooLittleTextError as error:
            return replace(pair, notes=(*pair.notes, str(error)))
    return pair
