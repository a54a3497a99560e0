"""What of a column's score may last from window to window though nothing changed: the reference's own error.

A verdict on one window knows that error as chance. It is no chance from window to window: all of them are compared with
the same reference, so that evidence which is added up over windows would grow without end on a short one. To be
evidence, a window has to be farther off than the reference itself may lie from what it was drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from collectors.drift.calibration import Between, Calibration
from collectors.drift.cells import Cells, cells_of
from collectors.drift.contingency import compare_categories
from collectors.drift.laws import chi2_isf, normal_isf
from collectors.drift.null import ordered_test
from observability.profile import Profile

# Of references, so few err by more than what is allowed for. Calibrators of p-values into evidence give the rest away.
UNLIKELY = 0.01

Error = tuple[float, float]
"""The mean of score² that the reference's own error makes, and how many times that seldom is exceeded."""


def lasting(reference: Profile, rows: int, known: Calibration | None = None) -> Calibration:
    """What to judge windows of about `rows` rows by as evidence: `known`, and beside it what lasts of each column.

    The part that lasts is larger than in one of a hundred references of so many rows, and so many blocks.
    """
    parts = {
        name: [one for one in cells_of(column, column) if one.discrepancy is None]
        for name, column in reference.columns.items()
    }
    every = [one for column in parts.values() for one in column]
    # By identity: a column's cells are arrays, which have no hash.
    errors = {id(one): error for one, error in zip(every, _errors(every, rows), strict=True)}
    columns, blocks = known.columns if known else {}, known.blocks if known else 0
    found = {
        name: _of(cells, [errors[id(one)] for one in cells], columns.get(name, Between()), blocks)
        for name, cells in parts.items()
    }
    return Calibration(blocks, rows, found)


def _of(cells: Sequence[Cells], errors: Sequence[Error], between: Between, blocks: int) -> Between:
    chances, ratios = zip(*errors, strict=True)
    offset = max(ratios) * (max(chances) + (between.mean * between.memory / blocks if blocks else 0.0))
    missing = between.missing + _missing(cells[0], between, blocks)
    return replace(between, mean=between.mean + offset, missing=missing)


def _errors(cells: Sequence[Cells], rows: int) -> list[Error]:
    found: list[Error] = [(0.0, 1.0)] * len(cells)
    lengths: dict[int, list[int]] = {}
    for place, one in enumerate(cells):
        if not one.ordered:
            found[place] = _of_categories(one, rows)
        elif one.reference.any():
            lengths.setdefault(len(one.reference), []).append(place)
    for places in lengths.values():
        counts = np.stack([cells[place].reference for place in places])
        _, law = ordered_test(counts, counts)
        seldom = law.quantile(UNLIKELY)
        for row, place in enumerate(places):
            if (mean := float(law.first[row])) > 0:
                found[place] = (mean / int(counts[row].sum()), float(seldom[row]) / mean)
    return found


def _of_categories(cells: Cells, rows: int) -> Error:
    size = int(cells.reference.sum())
    if not size:
        return 0.0, 1.0
    # As many groups as windows of so many rows are compared over.
    like = np.round(cells.reference * (rows / size)).astype(np.int64)
    degrees = compare_categories(cells.reference, like, cells.rest, look_at_rare=False).groups - 1
    return (degrees / size, float(chi2_isf(UNLIKELY, degrees)) / degrees) if degrees > 0 else (0.0, 1.0)


def _missing(cells: Cells, between: Between, blocks: int) -> float:
    """The square of how far the reference's missing share seldom is off."""
    missing, rows = cells.reference_missing, cells.reference_missing + int(cells.reference.sum())
    if not missing or not rows:
        return 0.0
    share = missing / rows
    variance = share * (1 - share) / rows + (between.missing * between.memory / blocks if blocks else 0.0)
    return float(normal_isf(UNLIKELY / 2)) ** 2 * variance
