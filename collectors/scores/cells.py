"""The one grid of score cells on [0, 1]: equal in the middle, ever finer towards 0 and 1, the same for every model."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

EQUAL_CELLS = 1_200
"""Every multiple of 1/1200 is an edge, so every whole percent and the bins of 10, 12, 15 and 20 equal widths are."""
COARSE_BINS = 60
"""Bins for which the mean score is kept, too: what the calibration error is read from."""
# A sum of float32 probabilities errs by less.
_ROUNDING = 1e-6
_TAIL_FROM = 1e-7


class ScoreError(ValueError):
    """Scores or labels cannot be used; says which and why."""


def _edges() -> Floats:
    equal = np.arange(1, EQUAL_CELLS) / EQUAL_CELLS
    # A step of 2 % is as wide as an equal cell at 1/24: below, the cells shrink with the score.
    steps = math.ceil(math.log(1 / 24 / _TAIL_FROM) / math.log(1.02))
    tail = np.geomspace(_TAIL_FROM, 1 / 24, steps + 1)[:-1]
    return np.unique(np.concatenate([tail, equal, 1 - tail]))


EDGES: Floats = _edges()
"""Inner edges: cell i holds EDGES[i-1] <= score < EDGES[i]; below 1/24 the cells are 2 % wide, alike near 1."""
CELLS = len(EDGES) + 1
MIDDLES: Floats = (np.concatenate([[0.0], EDGES]) + np.concatenate([EDGES, [1.0]])) / 2
COARSE: Counts = np.searchsorted(np.arange(1, COARSE_BINS) / COARSE_BINS, MIDDLES, side="right")
"""The coarse bin that each cell lies in."""


def cells_of(scores: Floats) -> Counts:
    """The cell of each score in [0, 1]."""
    return np.searchsorted(EDGES, scores, side="right")


def score_counts(scores: Floats) -> Counts:
    """Scores in [0, 1] counted in the cells, shape (CELLS,); they add up. Raises ScoreError on any other value."""
    return np.bincount(cells_of(checked_scores(scores)), minlength=CELLS)


def probabilities_among(values: Floats) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Which values, shape (rows,), are probabilities, and those; sums in float32 end up to 1e-6 beyond 0 and 1."""
    found = (values >= -_ROUNDING) & (values <= 1 + _ROUNDING)
    return found, np.clip(values[found], 0.0, 1.0)


def checked_scores(scores: Floats) -> Floats:
    """The scores as float64, if each is a probability."""
    found = np.asarray(scores, np.float64).ravel()
    if len(found) and not (found.min() >= 0 and found.max() <= 1):
        wrong = int(((found < 0) | (found > 1) | np.isnan(found)).sum())
        raise ScoreError(f"{wrong} of {len(found)} scores are not in [0, 1]: these scores need probabilities")
    return found


def checked_labels(labels: Floats, rows: int) -> Floats:
    """The labels as float64, if each is 0 or 1 and there are as many as rows."""
    found = np.asarray(labels, np.float64).ravel()
    if len(found) != rows:
        raise ScoreError(f"{len(found)} labels for {rows} scores: give one each")
    if not np.isin(found, (0.0, 1.0)).all():
        raise ScoreError("labels other than 0 and 1 (or NaN) have no place here: leave them out, or score a regression")
    return found


def edge_index(threshold: float) -> int:
    """The first cell at or above the threshold; it must be an edge, or the counts on its two sides are not known."""
    place = int(np.searchsorted(EDGES, threshold, side="left"))
    if place < len(EDGES) and math.isclose(EDGES[place], threshold, rel_tol=1e-12):
        return place + 1
    if place and math.isclose(EDGES[place - 1], threshold, rel_tol=1e-12):
        return place
    if threshold <= 0:
        return 0
    around = EDGES[min(place, len(EDGES) - 1)]
    raise ScoreError(f"threshold {threshold} is not an edge of the score cells: use a multiple of 1/1200, as {around}")
