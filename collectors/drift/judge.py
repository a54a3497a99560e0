"""The verdict on one column: its distances from the reference, and whether they mean anything at so many rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from collectors.drift.calibration import Calibration
from collectors.drift.cells import cells_of
from collectors.drift.comparison import Sides
from collectors.drift.distances import Distances, distances_of
from collectors.drift.judged import AutoVerdict, judged
from collectors.drift.number_block import number_blocks
from collectors.drift.thresholds import DriftThresholds
from observability.columns import Column, missing_ratio
from observability.events import PREDICTION
from observability.profile import Profile

__all__ = ["ColumnDrift", "DriftThresholds", "drifted_share", "judge", "judge_column", "missing_ratio"]

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
    missing_p_value: float = 1.0
    """Of the missing share; 1 where nothing is missing on either side, or everything on both."""

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
        name: Sides(column, window.columns[name])
        for name, column in reference.columns.items()
        if name in window.columns
    }
    if not shared:
        return {}
    blocks, others = number_blocks(shared)
    cells = {name: cells_of(pair.reference, pair.current) for name, pair in others.items()}
    known = calibration.columns if calibration else {}
    calibrated = judged(blocks, cells, limits, known, limits.min_rows)
    distances = distances_of(blocks, others, limits.bins)
    found = {
        name: _column(name, shared[name].current, limits, calibrated.verdict(place), distances[name])
        for place, name in enumerate(calibrated.names)
    }
    return {name: found[name] for name in shared}


def judge_column(name: str, reference: Column, window: Column, thresholds: DriftThresholds) -> ColumnDrift:
    """The verdict on one column of two profiles of one layout."""
    return judge(Profile({name: reference}), Profile({name: window}), thresholds)[name]


def _column(
    name: str,
    window: Column,
    thresholds: DriftThresholds,
    calibrated: AutoVerdict,
    distances: Distances,
) -> ColumnDrift:
    rows = window.rows
    reason = _reason(rows, distances.psi - distances.psi_expected, calibrated, thresholds)
    return ColumnDrift(
        name,
        rows,
        distances.psi,
        distances.psi_expected,
        distances.jensen_shannon,
        distances.wasserstein,
        distances.ks,
        calibrated.window_missing,
        calibrated.reference_missing,
        calibrated.missing_changed,
        reason == "drifted",
        reason,
        calibrated.score,
        calibrated.threshold,
        calibrated.p_value,
        calibrated.method,
        calibrated.missing_p_value,
    )


def drifted_share(columns: Mapping[str, ColumnDrift]) -> float:
    """Share of the features that drifted, of those that could be judged. Predictions are judged but not counted."""
    judged = [
        column
        for name, column in columns.items()
        if not name.startswith(PREDICTION) and column.reason in ("drifted", "within_threshold")
    ]
    return sum(column.drifted for column in judged) / len(judged) if judged else 0.0


def _reason(rows: int, effect: float, calibrated: AutoVerdict, thresholds: DriftThresholds) -> Reason:
    if not calibrated.reference_values:
        return "no_reference_values"
    if rows >= thresholds.min_rows and not calibrated.window_values:
        return "no_values"
    if calibrated.window_values < thresholds.min_rows:
        return "too_few_rows"
    large, beyond_chance = effect >= thresholds.psi, calibrated.score >= calibrated.threshold
    return "drifted" if large and beyond_chance else "within_threshold"
