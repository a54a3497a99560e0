"""A verdict: which method gave which score, and whether that is drift."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one method says of one column."""

    method: str
    score: float
    threshold: float
    drifted: bool
    p_value: float | None = None

    @staticmethod
    def of_distance(method: str, score: float, threshold: float) -> Verdict:
        """Drift is a score of at least the threshold."""
        return Verdict(method, score, threshold, score >= threshold)

    @staticmethod
    def of_test(method: str, p_value: float, alpha: float) -> Verdict:
        """Drift is a p-value below `alpha`; the p-value is the score."""
        return Verdict(method, p_value, alpha, p_value < alpha, p_value)
