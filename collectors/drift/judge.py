"""The verdict on one column: its distances from the reference, and whether they mean anything at so many rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from collectors.drift.auto import AutoVerdict, judge_cells
from collectors.drift.bins import Counts, regroup_categories, regroup_ordered
from collectors.drift.calibration import Calibration
from collectors.drift.cells import cells_of
from collectors.drift.jensen_shannon import jensen_shannon
from collectors.drift.kolmogorov_smirnov import kolmogorov_smirnov
from collectors.drift.psi import null_expectation, psi
from collectors.drift.thresholds import DriftThresholds
from collectors.drift.wasserstein import wasserstein
from observability.columns import CategoricalColumn, Column, NumericColumn
from observability.events import PREDICTION
from observability.profile import Profile

__all__ = ["ColumnDrift", "DriftThresholds", "drifted_share", "few_bins", "judge", "judge_column", "missing_ratio"]

Reason = Literal["drifted", "within_threshold", "too_few_rows", "no_values", "no_reference_values"]


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """What was found in one column. `wasserstein` and `ks` are None for columns without an order."""

    column: str
    rows: int
    psi: float
    psi_expected: float
    jensen_shannon: float
    wasserstein: float | None
    ks: float | None
    missing_ratio: float
    reference_missing_ratio: float
    missing_changed: bool
    drifted: bool
    reason: Reason
    score: float
    """The calibrated distance: see `auto`."""
    threshold: float
    """The score from which it is more than chance and matters."""
    p_value: float
    method: str

    @property
    def effect(self) -> float:
        """PSI beyond what two samples of one distribution would show."""
        return self.psi - self.psi_expected


def judge(
    reference: Profile,
    window: Profile,
    thresholds: DriftThresholds | None = None,
    calibration: Calibration | None = None,
) -> dict[str, ColumnDrift]:
    """The verdict on every column that both profiles have.

    A column has drifted when its PSI is a major shift (`DriftThresholds.psi`) and the shift is more than chance, among
    all columns and between the reference's own blocks.
    """
    limits = thresholds or DriftThresholds()
    shared = {
        name: (column, window.columns[name]) for name, column in reference.columns.items() if name in window.columns
    }
    cells = {name: cells_of(before, now) for name, (before, now) in shared.items()}
    calibrated = judge_cells(cells, limits, calibration, min_rows=limits.min_rows)
    return {name: _column(name, before, now, limits, calibrated[name]) for name, (before, now) in shared.items()}


def judge_column(name: str, reference: Column, window: Column, thresholds: DriftThresholds) -> ColumnDrift:
    """The verdict on one column of two profiles of one layout."""
    calibrated = judge_cells({name: cells_of(reference, window)}, thresholds, min_rows=thresholds.min_rows)
    return _column(name, reference, window, thresholds, calibrated[name])


def _column(
    name: str, reference: Column, window: Column, thresholds: DriftThresholds, calibrated: AutoVerdict
) -> ColumnDrift:
    expected, score = _psi(reference, window, thresholds.bins)
    reason = _reason(reference, window, score - expected, calibrated, thresholds)
    ordered = isinstance(reference, NumericColumn)
    return ColumnDrift(
        column=name,
        rows=window.rows,
        psi=score,
        psi_expected=expected,
        jensen_shannon=jensen_shannon(reference.counts, window.counts),
        wasserstein=_wasserstein(reference, window),
        ks=kolmogorov_smirnov(reference.counts, window.counts) if ordered else None,
        missing_ratio=missing_ratio(window),
        reference_missing_ratio=missing_ratio(reference),
        missing_changed=calibrated.missing_changed,
        drifted=reason == "drifted",
        reason=reason,
        score=calibrated.score,
        threshold=calibrated.threshold,
        p_value=calibrated.p_value,
        method=calibrated.method,
    )


def drifted_share(columns: Mapping[str, ColumnDrift]) -> float:
    """Share of the features that drifted, of those that could be judged. Predictions are judged but not counted."""
    judged = [
        column
        for name, column in columns.items()
        if not name.startswith(PREDICTION) and column.reason in ("drifted", "within_threshold")
    ]
    return sum(column.drifted for column in judged) / len(judged) if judged else 0.0


def missing_ratio(column: Column) -> float:
    """Share of rows without a value: null, or NaN in a numeric column."""
    missing = column.missing + (column.nan if isinstance(column, NumericColumn) else 0)
    return missing / column.rows if column.rows else 0.0


def _reason(
    reference: Column, window: Column, effect: float, calibrated: AutoVerdict, thresholds: DriftThresholds
) -> Reason:
    if not reference.count:
        return "no_reference_values"
    if window.rows >= thresholds.min_rows and not window.count:
        return "no_values"
    if window.count < thresholds.min_rows:
        return "too_few_rows"
    large, beyond_chance = effect >= thresholds.psi, calibrated.score >= calibrated.threshold
    return "drifted" if large and beyond_chance else "within_threshold"


def _psi(reference: Column, window: Column, bins: int) -> tuple[float, float]:
    """The null expectation and the PSI over few bins."""
    expected, observed = few_bins(reference, window, bins)
    return null_expectation(len(expected), window.count, reference.count), psi(expected, observed)


def few_bins(reference: Column, window: Column, bins: int) -> tuple[Counts, Counts]:
    """Both columns' counts in the bins that PSI uses; cells that neither has rows in are left out."""
    if isinstance(reference, NumericColumn):
        return regroup_ordered(reference.counts, window.counts, bins)
    if isinstance(reference, CategoricalColumn):
        held = (reference.counts > 0) | (window.counts > 0)
        return regroup_categories(reference.counts[held], window.counts[held], 2 * bins)
    return reference.counts, window.counts


def _wasserstein(reference: Column, window: Column) -> float | None:
    if not isinstance(reference, NumericColumn) or not isinstance(window, NumericColumn):
        return None
    if not reference.count or not window.count or not len(reference.edges):
        return 0.0
    return wasserstein(
        reference.counts,
        window.counts,
        reference.edges,
        math.sqrt(reference.variance),
        (reference.minimum, reference.maximum),
        (window.minimum, window.maximum),
    )
