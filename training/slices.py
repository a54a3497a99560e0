"""How a model does on parts of the held-out rows, with bounds, beside its rival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.evaluate import Vector, clustered_mean, row_log_loss, student_t_quantile


@dataclass(frozen=True, slots=True)
class SliceScore:
    """The rows whose `column` is `value`: log loss, its rival's, and the two-sided bounds of their difference by group
    (NaN with a single group)."""

    column: str
    value: str
    rows: int
    groups: int
    log_loss: float
    rival_log_loss: float
    difference: float
    lower_bound: float
    upper_bound: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers that are not defined are null."""
        said = {name: getattr(self, name) for name in self.__slots__}
        return {name: None if isinstance(one, float) and not np.isfinite(one) else one for name, one in said.items()}


def slice_scores(
    table: pa.Table,
    columns: Sequence[str],
    labels: Vector,
    candidate: Vector,
    rival: Vector,
    groups: npt.NDArray[Any],
    *,
    confidence: float = 0.95,
    min_rows: int = 200,
    most: int = 20,
) -> list[SliceScore]:
    """One score for each of the `most` commonest values of each column that has `min_rows` rows, worst first.

    A null is a value of its own. Bounds as in `training.evaluate.Gate`, two-sided. ValueError for an unknown column.
    """
    found = []
    own, other = row_log_loss(labels, candidate), row_log_loss(labels, rival)
    for column in columns:
        if column not in table.column_names:
            raise ValueError(f"there is no column {column!r} to slice by; there are: {', '.join(table.column_names)}")
        values = pc.fill_null(pc.cast(table.column(column), pa.string()), "(null)").to_numpy(zero_copy_only=False)
        names, counts = np.unique(values.astype(str), return_counts=True)
        for name in names[np.argsort(-counts, kind="stable")][:most]:
            chosen = values == name
            if chosen.sum() >= min_rows:
                found.append(_scored(column, str(name), own[chosen], other[chosen], groups[chosen], confidence))
    return sorted(found, key=lambda one: -one.difference)


def _scored(
    column: str, value: str, own: Vector, other: Vector, groups: npt.NDArray[Any], confidence: float
) -> SliceScore:
    count = len(set(groups.tolist()))
    mean, reach = float((own - other).mean()), float("nan")
    if count > 1:
        mean, error = clustered_mean(own - other, groups)
        reach = student_t_quantile((1 + confidence) / 2, count - 1) * error
    return SliceScore(
        column, value, len(own), count, float(own.mean()), float(other.mean()), mean, mean - reach, mean + reach
    )


def surely_worse(slices: Sequence[SliceScore], tolerance: float) -> list[SliceScore]:
    """The slices on which the candidate is worse by more than the tolerance even at the lower bound.

    Bounds are of each slice by itself: of many slices, one in forty is beyond its 95 % bound by chance.
    """
    return [one for one in slices if one.lower_bound > tolerance]
