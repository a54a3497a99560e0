"""Drift: distances between two profiles, and the verdict on each column."""

from collectors.drift.bins import equal_mass_groups, regroup_categories, regroup_ordered
from collectors.drift.jensen_shannon import jensen_shannon
from collectors.drift.judge import ColumnDrift, DriftThresholds, drifted_share, judge, judge_column, missing_ratio
from collectors.drift.kolmogorov_smirnov import kolmogorov_smirnov
from collectors.drift.psi import null_expectation, psi
from collectors.drift.wasserstein import wasserstein

__all__ = [
    "ColumnDrift",
    "DriftThresholds",
    "drifted_share",
    "equal_mass_groups",
    "jensen_shannon",
    "judge",
    "judge_column",
    "kolmogorov_smirnov",
    "missing_ratio",
    "null_expectation",
    "psi",
    "regroup_categories",
    "regroup_ordered",
    "wasserstein",
]
