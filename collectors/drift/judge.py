"""The verdict on one column: its distances from the reference, and whether they mean anything at so many rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from collectors.drift.bins import Counts, regroup_categories, regroup_ordered
from collectors.drift.jensen_shannon import jensen_shannon
from collectors.drift.kolmogorov_smirnov import kolmogorov_smirnov
from collectors.drift.psi import null_expectation, psi
from collectors.drift.wasserstein import wasserstein
from observability.columns import CategoricalColumn, Column, NumericColumn
from observability.events import PREDICTION
from observability.profile import Profile

Reason = Literal["drifted", "within_threshold", "too_few_rows", "no_values", "no_reference_values"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftThresholds:
    """When a distance is drift."""

    psi: float = 0.25
    """PSI less its null expectation, from which a column has drifted; 0.25 is the industry's "major shift"."""
    missing: float = 0.1
    """Change of the missing share, from which it is a finding of its own."""
    min_rows: int = 200
    """Windows with fewer values are not judged."""
    bins: int = 10
    """Bins of about equal reference mass that PSI is computed over."""

    def __post_init__(self) -> None:
        if self.psi <= 0 or not 0 < self.missing <= 1 or self.min_rows < 1 or self.bins < 2:
            raise ValueError(f"drift thresholds must be positive, missing at most 1 and bins at least 2: {self}")


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

    @property
    def effect(self) -> float:
        """PSI beyond what two samples of one distribution would show."""
        return self.psi - self.psi_expected


def judge(reference: Profile, window: Profile, thresholds: DriftThresholds | None = None) -> dict[str, ColumnDrift]:
    """The verdict on every column that both profiles have."""
    limits = thresholds or DriftThresholds()
    return {
        name: judge_column(name, column, window.columns[name], limits)
        for name, column in reference.columns.items()
        if name in window.columns
    }


def judge_column(name: str, reference: Column, window: Column, thresholds: DriftThresholds) -> ColumnDrift:
    """The verdict on one column of two profiles of one layout."""
    expected, score = _psi(reference, window, thresholds.bins)
    reason = _reason(reference, window, score - expected, thresholds)
    ordered = isinstance(reference, NumericColumn)
    before, now = missing_ratio(reference), missing_ratio(window)
    enough = window.rows >= thresholds.min_rows and reference.rows > 0
    return ColumnDrift(
        column=name,
        rows=window.rows,
        psi=score,
        psi_expected=expected,
        jensen_shannon=jensen_shannon(reference.counts, window.counts),
        wasserstein=_wasserstein(reference, window),
        ks=kolmogorov_smirnov(reference.counts, window.counts) if ordered else None,
        missing_ratio=now,
        reference_missing_ratio=before,
        missing_changed=enough and abs(now - before) >= thresholds.missing,
        drifted=reason == "drifted",
        reason=reason,
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


def _reason(reference: Column, window: Column, effect: float, thresholds: DriftThresholds) -> Reason:
    if not reference.count:
        return "no_reference_values"
    if window.rows >= thresholds.min_rows and not window.count:
        return "no_values"
    if window.count < thresholds.min_rows:
        return "too_few_rows"
    return "drifted" if effect >= thresholds.psi else "within_threshold"


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
