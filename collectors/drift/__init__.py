"""Drift: distances between two profiles, and the verdict on each column."""

from collectors.drift.auto import AutoVerdict, auto_verdicts, judge_cells
from collectors.drift.bins import equal_mass_groups, regroup_categories, regroup_ordered
from collectors.drift.calibration import Calibration
from collectors.drift.changepoint import ChangePointDetector, ChangePointSettings
from collectors.drift.chi_square import chi_square, chi_square_each, chi_square_fit, g_test, g_test_each
from collectors.drift.compare import compare
from collectors.drift.comparison import ColumnComparison, Comparison
from collectors.drift.cramer_von_mises import cramer_von_mises, cramer_von_mises_bound, cramer_von_mises_each
from collectors.drift.detector import EDetector
from collectors.drift.detector_settings import Alarm, DetectorSettings
from collectors.drift.domain_classifier import Separation, domain_classifier
from collectors.drift.explain import Explanation, explain
from collectors.drift.fdr import benjamini_hochberg, e_bh
from collectors.drift.hellinger import hellinger, hellinger_each
from collectors.drift.jensen_shannon import jensen_shannon, jensen_shannon_each
from collectors.drift.joint import Discrepancy, Reconstruction, mmd, mmd_squared, pca_reconstruction
from collectors.drift.judge import ColumnDrift, DriftThresholds, drifted_share, judge, judge_column, missing_ratio
from collectors.drift.kolmogorov_smirnov import (
    kolmogorov_smirnov,
    kolmogorov_smirnov_bound,
    kolmogorov_smirnov_each,
    kolmogorov_smirnov_pvalue,
)
from collectors.drift.multivariate_rows import mmd_rows, pca_reconstruction_rows
from collectors.drift.outcome import Test
from collectors.drift.proportions import two_proportion_z
from collectors.drift.psi import null_expectation, psi, psi_each
from collectors.drift.rows import cvm_rows, ks_rows, wasserstein_rows
from collectors.drift.seasonal import SeasonalReference
from collectors.drift.total_variation import total_variation, total_variation_each
from collectors.drift.wasserstein import wasserstein, wasserstein_bound

__all__ = [
    "Alarm",
    "AutoVerdict",
    "Calibration",
    "ChangePointDetector",
    "ChangePointSettings",
    "ColumnComparison",
    "ColumnDrift",
    "Comparison",
    "DetectorSettings",
    "Discrepancy",
    "DriftThresholds",
    "EDetector",
    "Explanation",
    "Reconstruction",
    "SeasonalReference",
    "Separation",
    "Test",
    "auto_verdicts",
    "benjamini_hochberg",
    "chi_square",
    "chi_square_each",
    "chi_square_fit",
    "compare",
    "cramer_von_mises",
    "cramer_von_mises_bound",
    "cramer_von_mises_each",
    "cvm_rows",
    "domain_classifier",
    "drifted_share",
    "e_bh",
    "equal_mass_groups",
    "explain",
    "g_test",
    "g_test_each",
    "hellinger",
    "hellinger_each",
    "jensen_shannon",
    "jensen_shannon_each",
    "judge",
    "judge_cells",
    "judge_column",
    "kolmogorov_smirnov",
    "kolmogorov_smirnov_bound",
    "kolmogorov_smirnov_each",
    "kolmogorov_smirnov_pvalue",
    "ks_rows",
    "missing_ratio",
    "mmd",
    "mmd_rows",
    "mmd_squared",
    "null_expectation",
    "pca_reconstruction",
    "pca_reconstruction_rows",
    "psi",
    "psi_each",
    "regroup_categories",
    "regroup_ordered",
    "total_variation",
    "total_variation_each",
    "two_proportion_z",
    "wasserstein",
    "wasserstein_bound",
    "wasserstein_rows",
]
