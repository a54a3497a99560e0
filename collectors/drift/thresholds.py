"""When a distance is drift: what the calibrated tests, the effect sizes and the live windows go by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftThresholds:
    """When a distance is drift: it must be more than chance (`alpha`) and large enough to matter (the other limits)."""

    psi: float = 0.25
    """Live windows: PSI less its null expectation, from which a column has drifted; 0.25 is the "major shift"."""
    missing: float = 0.05
    """Change of the missing share, from which it is a finding of its own."""
    min_rows: int = 200
    """Live windows with fewer values are not judged."""
    bins: int = 10
    """Bins of about equal reference mass that PSI is computed over."""
    alpha: float = 0.01
    """False discovery rate over the columns and checks of one table; with one column its rate of false alarms."""
    distance: float = 0.015
    """Ordered columns: the smallest root-mean-square difference of the distribution functions that matters.

    A normal column shifted by 0.05 standard deviations has it (0.303 a deviation)."""
    association: float = 0.05
    """Categories: the smallest Cohen's w that matters; a half-and-half column that moves to 47.5 % has it."""

    def __post_init__(self) -> None:
        if (
            self.psi <= 0
            or not 0 < self.missing <= 1
            or self.min_rows < 1
            or self.bins < 2
            or not 0 < self.alpha < 0.5
            or self.distance < 0
            or self.association < 0
        ):
            raise ValueError(
                "drift thresholds must be positive, missing at most 1, bins at least 2, alpha below one half and the "
                f"smallest effects at least 0: {self}"
            )
