"""The evaluator's vector: series in rows, steps in columns, so that an operator works on all steps at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collectors.query.errors import QueryError
from collectors.query.label_sets import IDENTITY, NAME, Ints, LabelSets, joined, label_sets, only_labels, without_labels
from collectors.store import Labels

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SAME_LABELS = "vector cannot contain metrics with the same labelset"


@dataclass(frozen=True, slots=True)
class Naming:
    """What becomes of the names of a new quantity: which labels go, at once or (`delayed`) at the end of the query."""

    labels: tuple[str, ...] = (NAME,)
    delayed: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """`values` and `present` are [len(labels), steps]; `drop_name` [len(labels)] marks names that go at the end.

    NaN is a value like any other: only `present` says whether a series has one at a step.
    """

    labels: LabelSets
    values: Floats
    present: Bools
    drop_name: Bools

    @staticmethod
    def of(labels: Sequence[Labels], values: Floats, present: Bools) -> Frame:
        """A frame whose names stay."""
        return Frame(label_sets(labels), values, present, np.zeros(len(labels), dtype=np.bool_))

    @staticmethod
    def empty(steps: int) -> Frame:
        """No series."""
        return Frame.of([], np.empty((0, steps)), np.empty((0, steps), dtype=np.bool_))

    @staticmethod
    def concatenated(frames: Sequence[Frame], steps: int) -> Frame:
        """The rows of all frames."""
        if len(frames) == 1:
            return frames[0]
        if not frames:
            return Frame.empty(steps)
        return Frame(
            joined([frame.labels for frame in frames]),
            np.concatenate([frame.values for frame in frames]),
            np.concatenate([frame.present for frame in frames]),
            np.concatenate([frame.drop_name for frame in frames]),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def with_values(self, values: Floats, present: Bools | None = None) -> Frame:
        """The same series with other values."""
        return Frame(self.labels, values, self.present if present is None else present, self.drop_name)

    def with_labels(self, labels: Sequence[Labels], drop_name: Bools | None = None) -> Frame:
        """The same values under other labels. Raises QueryError if that makes two series one at some step."""
        flags = self.drop_name if drop_name is None else drop_name
        return Frame(label_sets(labels), self.values, self.present, flags).merged()

    def rows(self, chosen: Ints | Sequence[int]) -> Frame:
        """Some rows, in the given order."""
        index = np.asarray(chosen, dtype=np.int64)
        return Frame(self.labels.rows(index), self.values[index], self.present[index], self.drop_name[index])

    def without_empty(self) -> Frame:
        """The rows that have a value at some step."""
        alive = self.present.any(axis=1)
        return self if alive.all() else self.rows(np.flatnonzero(alive))

    def nameless(self, naming: Naming) -> Frame:
        """The result of a function that makes a new quantity: its name goes, at once or at the end."""
        if naming.delayed:
            return Frame(self.labels, self.values, self.present, np.ones(len(self.labels), dtype=np.bool_))
        bare = self.labels.without(naming.labels)
        return Frame(bare, self.values, self.present, np.zeros(len(bare), dtype=np.bool_)).merged()

    def settled(self, naming: Naming) -> Frame:
        """The end of the query: names that were marked go."""
        if not self.drop_name.any():
            return self
        if self.drop_name.all():
            return self.nameless(Naming(naming.labels))
        pairs = zip(self.labels, self.drop_name.tolist(), strict=True)
        labels = LabelSets([without_labels(labels, naming.labels) if drop else labels for labels, drop in pairs])
        return Frame(labels, self.values, self.present, np.zeros(len(labels), dtype=np.bool_)).merged()

    def merged(self, message: str = SAME_LABELS) -> Frame:
        """Rows of the same labels made one. Raises QueryError where both have a value at a step."""
        owner = self.labels.owners()
        if owner is None:
            return self
        values, present = self.values.copy(), self.present.copy()
        for row in np.flatnonzero(owner != np.arange(len(owner))).tolist():
            target = owner[row]
            if (present[target] & present[row]).any():
                raise QueryError(message)
            values[target] = np.where(present[row], values[row], values[target])
            present[target] |= present[row]
        return Frame(self.labels, values, present, self.drop_name).rows(np.unique(owner))


__all__ = [
    "IDENTITY",
    "NAME",
    "SAME_LABELS",
    "Bools",
    "Floats",
    "Frame",
    "Ints",
    "LabelSets",
    "Naming",
    "joined",
    "label_sets",
    "only_labels",
    "without_labels",
]
