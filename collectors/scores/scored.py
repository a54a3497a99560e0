"""Scored: what a window keeps of its labelled predictions, whatever the labels turn out to be."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from collectors.scores.cells import ScoreError, probabilities_among
from collectors.scores.histogram import ScoreHistogram
from collectors.scores.means import Score
from collectors.scores.regression import RegressionSums

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """A monoid of labelled predictions: a histogram while they are probabilities of 0/1 labels, sums of any number.

    `a + b` and `a - b` are exact, so a window to which rows came in any order, and from which corrected ones were
    taken out, equals the window of all its rows in one pass.
    """

    classes: ScoreHistogram = field(default_factory=ScoreHistogram)
    """The rows that are a probability and a label of 0 or 1."""
    numbers: RegressionSums = field(default_factory=RegressionSums)
    """All rows."""

    @classmethod
    def of(cls, predictions: Floats, labels: Floats) -> Scored:
        """Of finite predictions and labels, shape (rows,) each. Raises ScoreError on others."""
        p, y = np.asarray(predictions, np.float64).ravel(), np.asarray(labels, np.float64).ravel()
        numbers = RegressionSums.of(p, y)
        labelled = (y == 0) | (y == 1)
        fit, probabilities = probabilities_among(p[labelled])
        return cls(ScoreHistogram.of(probabilities, y[labelled][fit]), numbers)

    def __add__(self, other: Scored) -> Scored:
        if not isinstance(other, Scored):
            return NotImplemented
        return Scored(self.classes + other.classes, self.numbers + other.numbers)

    def __sub__(self, other: Scored) -> Scored:
        if not isinstance(other, Scored):
            return NotImplemented
        return Scored(self.classes - other.classes, self.numbers - other.numbers)

    @property
    def rows(self) -> int:
        return self.numbers.rows

    @property
    def binary(self) -> bool:
        """Whether every row is a probability with a label of 0 or 1."""
        return self.classes.rows == self.numbers.rows

    def scores(self, threshold: float = 0.5, confidence: float = 0.95) -> dict[str, Score]:
        """Those of `ScoreHistogram.scores` when all rows are binary, else those of `RegressionSums.scores`."""
        if self.binary:
            return self.classes.scores(threshold, confidence)
        return self.numbers.scores(confidence)

    def to_json(self) -> bytes:
        """A few kB of JSON."""
        stored = _Stored(msgspec.Raw(self.classes.to_json()), msgspec.Raw(self.numbers.to_json()))
        return msgspec.json.encode(stored)

    @classmethod
    def from_json(cls, body: bytes) -> Scored:
        """What `to_json` wrote. Raises ScoreError on any other bytes."""
        try:
            stored = msgspec.json.decode(body, type=_Stored)
        except msgspec.DecodeError as wrong:
            raise ScoreError(f"this is no stored score: {wrong}") from wrong
        return cls(ScoreHistogram.from_json(bytes(stored.classes)), RegressionSums.from_json(bytes(stored.numbers)))


class _Stored(msgspec.Struct):
    classes: msgspec.Raw
    numbers: msgspec.Raw
