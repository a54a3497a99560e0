"""Calibration: how far the reference's own blocks lie from the rest of it, so that seasons and batches are not drift.

The law of a score that only knows sampling (`null.py`) takes rows for independent. Days and weeks make blocks differ by
more. The excess of a block's squared score over sampling is a variance between blocks, per column, and a window is
judged by `E[score²] = between + chance`, where `chance` falls with the rows (`1/n + 1/N`) and `between` does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from collectors.drift.bins import Floats
from collectors.drift.cells import Cells, cells_of
from collectors.drift.contingency import compare_categories
from collectors.drift.laws import normal_isf, normal_sf
from collectors.drift.null import edge_weights, effective_rows, ordered_test
from observability.columns import Column
from observability.profile import Profile

FORMAT = 1
FEWEST_BLOCKS = 3
# A variance that few blocks show is drawn towards that of one random factor, as if so many more blocks had shown it.
PRIOR_BLOCKS = 2.0


@dataclass(frozen=True, slots=True)
class Between:
    """The part of score² that differs between blocks of one column's reference."""

    mean: float = 0.0
    variance: float = 0.0
    """Of that part, from block to block."""
    error: float = 0.0
    """Standard error of `mean`."""
    missing: float = 0.0
    """Variance of the missing share between blocks, beyond sampling."""
    memory: float = 1.0
    """Blocks that are as much evidence as one would be if they knew nothing of each other; 1 where they do not."""

    def pvalue(self, squared: float, chance: float, sampling: float) -> float:
        """`P(score² >= squared)`, given the mean and variance of its sampling part.

        Mean and variance are matched by an F law, its second degrees of freedom the uncertainty of the mean; its tail
        by Paulson (1942), "An approximate normalization of the analysis of variance distribution".
        """
        if not self.mean or not squared:
            return 0.0
        expected, first, second = self._law(chance, sampling)
        root = (squared / expected) ** (1 / 3)
        top = (1 - second) * root - (1 - first)
        return float(normal_sf(top / math.sqrt(second * root * root + first)))

    def quantile(self, level: float, chance: float, sampling: float) -> float:
        """The score² whose `pvalue` is `level`; 0 where blocks do not differ."""
        if not self.mean:
            return 0.0
        expected, first, second = self._law(chance, sampling)
        z = float(normal_isf(level))
        # ((1 − b) r − (1 − a))² = z² (b r² + a), solved for r > 0.
        a, b = first, second
        square, linear, constant = (1 - b) ** 2 - z * z * b, (1 - a) * (1 - b), (1 - a) ** 2 - z * z * a
        if square <= 0:
            return math.inf
        root = (linear + math.sqrt(max(linear * linear - square * constant, 0.0))) / square
        return expected * root * root * root

    def _law(self, chance: float, sampling: float) -> tuple[float, float, float]:
        """Mean, and 2/9 of the reciprocal of both degrees of freedom."""
        expected = self.mean + chance
        # The cross term: an offset of squared length `mean` under noise whose largest direction has `√(sampling / 2)`.
        variance = sampling + 4 * self.mean * math.sqrt(sampling / 2) + self.variance
        return expected, variance / (9 * expected * expected), self.error**2 / (9 * expected * expected)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the blocks of a reference say about each of its columns; a few dozen bytes a column."""

    blocks: int
    rows: int
    """Rows of a block, on average."""
    columns: dict[str, Between]

    @staticmethod
    def of(blocks: Sequence[Profile] | pa.Table, reference: Profile | None = None, *, rows: int = 1000) -> Calibration:
        """From profiles of consecutive blocks in one layout, or from a table that is cut into blocks of `rows`.

        Each block is compared with the reference without it: one that contains it would look nearer than a new window
        will. A table needs the `reference` whose layout the windows have, by default its own profile. Blocks should be
        as long as the live windows and span whole seasons. ValueError with fewer than three blocks.
        """
        if isinstance(blocks, pa.Table):
            blocks = _cut(blocks, reference, rows)
        if len(blocks) < FEWEST_BLOCKS:
            raise ValueError(
                f"calibration needs at least {FEWEST_BLOCKS} blocks of the reference, there are {len(blocks)}"
            )
        total = sum(blocks[1:], start=blocks[0])
        columns = {
            name: between_of([column] * len(blocks), [block.columns[name] for block in blocks], len(blocks))
            for name, column in total.columns.items()
        }
        return Calibration(len(blocks), round(sum(block.rows for block in blocks) / len(blocks)), columns)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, to be kept beside the reference."""
        columns = {
            name: [column.mean, column.variance, column.error, column.missing, column.memory]
            for name, column in self.columns.items()
        }
        return {"format": FORMAT, "blocks": self.blocks, "rows": self.rows, "columns": columns}

    @staticmethod
    def from_json(value: Mapping[str, Any] | bytes | str) -> Calibration:
        """The calibration that `to_json` gave. ValueError if the value is something else."""
        try:
            found = json.loads(value) if isinstance(value, (bytes, str)) else value
            if found["format"] != FORMAT:
                raise ValueError(f"the calibration has format {found['format']}, this version reads {FORMAT}")
            columns = {name: Between(*(float(number) for number in row)) for name, row in found["columns"].items()}
            return Calibration(int(found["blocks"]), int(found["rows"]), columns)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the value is not a calibration: {type(error).__name__}: {error}") from error


def _cut(table: pa.Table, reference: Profile | None, rows: int) -> list[Profile]:
    if rows < 1:
        raise ValueError(f"a block has at least one row: {rows}")
    empty = (reference or Profile.of(table)).empty()
    # What is left over at the end joins the last block: a short one would say little.
    count = max(len(table) // rows, 1)
    ends = [*range(rows, rows * count, rows), len(table)]
    return [empty.updated(table.slice(start, end - start)) for start, end in zip([0, *ends], ends, strict=False)]


def between_of(totals: Sequence[Column], blocks: Sequence[Column], together: int) -> Between:
    """What the blocks of one column, each against what else is in its total, of so many blocks, say about it."""
    parts = zip(*(cells_of(total, block) for total, block in zip(totals, blocks, strict=True)), strict=True)
    found = [_of_part(list(cells), together) for cells in parts]
    # Of a column of several parts the one that differs most stands for all.
    return max(found, key=lambda between: between.mean)


def _of_part(cells: Sequence[Cells], together: int) -> Between:
    judged = [one for one in cells if one.window.sum() and one.reference.sum() > one.window.sum()]
    if len(judged) < FEWEST_BLOCKS:
        return Between(missing=_missing(cells))
    squared, chance, sampling, largest = _scored(judged)
    count = len(judged)
    # The others have their own offsets, whose mean is 1/(B − 1) of a block's.
    alone = 1 + 1 / (min(together, count) - 1)
    excess = float(np.mean(squared - chance))
    mean = max(excess, 0.0) / alone
    spread = float(np.var(squared, ddof=1))
    found = max(spread - float(np.mean(sampling + 4 * mean * largest)), 0.0) / alone**2
    variance = ((count - 1) * found + PRIOR_BLOCKS * 2 * mean**2) / (count - 1 + PRIOR_BLOCKS)
    # From the total, which has the block in it, an offset is shorter than from the truth.
    memory = _memory(judged, mean / alone, float(np.mean(sampling))) if mean else 1.0
    return Between(mean, variance, math.sqrt(spread / count) / alone if mean else 0.0, _missing(cells), memory)


def _memory(cells: Sequence[Cells], mean: float, sampling: float) -> float:
    """The integrated autocorrelation time of the blocks' offsets, in blocks: 1 + 2 Σ of their correlations by lag.

    The inner product of two blocks' offsets has no part from their rows' chance. Correlations are summed up to the
    first that two standard errors hide.
    """
    offsets = np.array([_offset(one) for one in cells])
    count, found = len(offsets), 1.0
    for lag in range(1, count // 3 + 1):
        products = np.einsum("ij,ij->i", offsets[lag:], offsets[:-lag])
        error = math.sqrt((mean * mean + sampling / 2) / (count - lag))
        if (product := float(products.mean())) < 2 * error:
            break
        found += 2 * min(product / mean, 1.0)
    return found


def _offset(cells: Cells) -> Floats:
    """Where a block lies from all of them: a vector whose squared length is the score's square, chance included."""
    before, now = cells.reference / cells.reference.sum(), cells.window / cells.window.sum()
    if cells.ordered:
        return np.asarray(np.cumsum(before - now)[:-1] * np.sqrt(edge_weights(cells.reference)))
    return np.asarray((now - before) / np.sqrt(np.maximum(before, 1e-300)))


def _scored(cells: Sequence[Cells]) -> Floats:
    """Score², its mean and variance under sampling, and its largest direction, of each block against the others."""
    others = [one.reference - one.window for one in cells]
    rows = [(int(one.window.sum()), int(rest.sum())) for one, rest in zip(cells, others, strict=True)]
    effective = np.array([effective_rows(*both) for both in rows])
    if cells[0].ordered:
        scores, law = ordered_test(np.stack(others), np.stack([one.window for one in cells]))
        return np.stack([scores**2, law.first / effective, 2 * law.second / effective**2, law.largest / effective])
    tests = [
        compare_categories(rest, one.window, one.rest, look_at_rare=False)
        for one, rest in zip(cells, others, strict=True)
    ]
    chance = np.array([test.chance for test in tests])
    return np.stack([np.array([test.score**2 for test in tests]), chance, 2 * chance / effective, 1 / effective])


def _missing(cells: Sequence[Cells]) -> float:
    """Variance of the missing share between the blocks, less that of sampling: at least 0."""
    missing = np.array([one.window_missing for one in cells], float)
    rows = missing + np.array([one.window.sum() for one in cells], float)
    if missing.sum() == 0 or not (rows > 0).all():
        return 0.0
    share = missing.sum() / rows.sum()
    sampling = share * (1 - share) * float(np.mean(1 / rows))
    usual = np.array([one.reference_missing / (one.reference_missing + one.reference.sum()) for one in cells])
    return float(max(np.var(missing / rows - usual, ddof=1) - sampling, 0.0))
