"""The verdict on all numeric columns of a window together: whether they relate to each other as in the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from collectors.drift.auto import judge_cells
from collectors.drift.cells import Cells
from collectors.drift.joint import pca_reconstruction
from collectors.drift.thresholds import DriftThresholds
from observability.joint import Joint
from observability.profile import Profile

_NAME = "joint"


@dataclass(frozen=True, slots=True)
class JointDrift:
    """What was found in the numeric columns together."""

    rows: int
    mmd: float
    """Maximum mean discrepancy of the window from the reference, 0 … √2."""
    threshold: float
    """The discrepancy from which it is more than chance among rows, and large enough to matter."""
    p_value: float
    drifted: bool
    reconstruction: float
    """How much larger the window's error by the reference's principal components is than the reference's own; 1: equal,
    NaN where the components leave no error."""


def judge_joint(reference: Profile, window: Profile, thresholds: DriftThresholds | None = None) -> JointDrift | None:
    """The verdict from two profiles of one layout; None where either has no joint part, or too few rows to judge.

    The threshold is that of one test at the false discovery rate `alpha`, by the law of `n_eff · MMD²` whose tail is
    heaviest (`unordered_columns.EmbeddedTest`), and at least the smallest effect that matters. It knows rows only, no
    seasons. O(F + d³) for F frequencies and d columns: a millisecond.
    """
    before, now = reference.joint, window.joint
    limits = thresholds or DriftThresholds()
    if before is None or now is None or min(before.count, now.count) < limits.min_rows:
        return None
    verdict = judge_cells({_NAME: (_cells(before, now),)}, limits, min_rows=limits.min_rows)[_NAME]
    error = pca_reconstruction(before, now)
    ratio = error.current / error.reference if error.reference > 0 else math.nan
    return JointDrift(now.count, verdict.score, verdict.threshold, verdict.p_value, verdict.drifted, ratio)


def _cells(before: Joint, now: Joint) -> Cells:
    share = now.count / (before.count + now.count)
    pooled = before.fourier.mean * (1 - share) + now.fourier.mean * share
    gap = now.fourier.mean - before.fourier.mean
    return Cells(
        np.array([before.count]),
        np.array([now.count]),
        False,
        discrepancy=float(gap @ gap),
        spread=max(1.0 - float(pooled @ pooled), 0.0),
    )
