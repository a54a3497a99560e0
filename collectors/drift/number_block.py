"""Numeric columns that have one number of cells, of both sides, as matrices: a thousand are judged in a few calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from collectors.drift.bins import Counts, Floats
from collectors.drift.comparison import Sides
from observability.columns import Column, NumericColumn, missing_rows


@dataclass(frozen=True, slots=True, eq=False)
class NumberBlock:
    """Both sides of some numeric columns: counts (columns, cells) over the reference's `edges` (columns, cells − 1).

    What is missing, infinite or counted is (columns, 2), the reference first.
    """

    names: tuple[str, ...]
    columns: Sides[Sequence[NumericColumn]]
    counts: Sides[Counts]
    with_infinite: Sides[Counts]
    """The counts with the infinite values in the tails."""
    missing: Counts
    infinite: Counts
    values: Counts

    @staticmethod
    def of(columns: Mapping[str, Sides[NumericColumn]]) -> NumberBlock:
        """At least one column."""
        first, second = [pair.reference for pair in columns.values()], [pair.current for pair in columns.values()]
        counts = Sides(stacked([one.counts for one in first]), stacked([one.counts for one in second]))
        special = [_special(first), _special(second)]
        infinite = np.stack([one[:, 1] + one[:, 2] for one in special], axis=1)
        return NumberBlock(
            tuple(columns),
            Sides(first, second),
            counts,
            Sides(_with_tails(counts.reference, special[0]), _with_tails(counts.current, special[1])),
            np.stack([one[:, 0] for one in special], axis=1),
            infinite,
            np.stack([counts.reference.sum(axis=1), counts.current.sum(axis=1)], axis=1),
        )

    @property
    def rows(self) -> Counts:
        """All rows: with and without a value, and infinite ones."""
        return self.values + self.missing + self.infinite

    @property
    def edges(self) -> Floats:
        columns = self.columns.reference
        return np.concatenate([one.edges for one in columns]).reshape(len(columns), -1)


def number_blocks(columns: Mapping[str, Sides[Column]]) -> tuple[list[NumberBlock], dict[str, Sides[Column]]]:
    """The numeric columns as blocks, by their numbers of cells, and the other columns."""
    blocks: dict[int, dict[str, Sides[NumericColumn]]] = {}
    others: dict[str, Sides[Column]] = {}
    for name, pair in columns.items():
        before, now = pair.reference, pair.current
        if type(before) is NumericColumn and type(now) is NumericColumn and len(before.counts) == len(now.counts):
            blocks.setdefault(len(before.counts), {})[name] = pair  # type: ignore[assignment]
        else:
            others[name] = pair
    return [NumberBlock.of(block) for block in blocks.values()], others


def stacked(counts: Sequence[Counts]) -> Counts:
    """Counts of one length as `(columns, cells)`."""
    return np.concatenate(counts).reshape(len(counts), -1)


def totals(counts: Sequence[Counts]) -> list[int]:
    """The sum of each of some counts of any lengths, none of them empty."""
    starts = np.cumsum([0, *map(len, counts[:-1])])
    return np.add.reduceat(np.concatenate(counts), starts).tolist() if counts else []


def _special(columns: Sequence[NumericColumn]) -> Counts:
    """(columns, 3): without a value, infinite below, infinite above."""
    return np.array([(missing_rows(one), one.negative_infinite, one.positive_infinite) for one in columns])


def _with_tails(counts: Counts, special: Counts) -> Counts:
    if not special[:, 1:].any():
        return counts
    found = counts.copy()
    found[:, 0] += special[:, 1]
    found[:, -1] += special[:, 2]
    return found
