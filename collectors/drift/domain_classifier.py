"""Multivariate drift by a classifier: how well the current rows can be told from the reference's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from collectors.drift.bins import Floats
from collectors.drift.laws import normal_ppf, normal_sf

_MISSING_SKLEARN = "the domain classifier needs scikit-learn: pip install 'trimtab[classifier]'"


@dataclass(frozen=True, slots=True)
class Separation:
    """The cross-validated ROC AUC of a classifier that tells current rows from reference rows; 0.5 is a coin."""

    auc: float
    low: float
    high: float
    """Confidence interval of the AUC (DeLong et al. 1988)."""
    threshold: float
    """Rows that did not change exceed this AUC with probability 1 − confidence."""
    pvalue: float

    @property
    def drifted(self) -> bool:
        """Whether the AUC is beyond what unchanged rows show."""
        return self.auc > self.threshold


def domain_classifier(
    reference: npt.ArrayLike,
    current: npt.ArrayLike,
    *,
    folds: int = 5,
    confidence: float = 0.95,
    max_rows: int = 20_000,
    seed: int = 0,
) -> Separation:
    """Gradient-boosted trees on rows [n, d] and [m, d], scored out of fold (Lopez-Paz & Oquab 2017; NannyML's too).

    NaN is a value like any other to the trees. Above `max_rows` a side, a random sample of so many is used. The AUC is
    the mean over the folds; interval, threshold and p-value take the folds' test rows as independent, and the same seed
    gives the same answer. NaN when a side has fewer rows than folds.

    Raises `ModuleNotFoundError` without scikit-learn, `ValueError` for different widths, infinite values, fewer than
    two folds or a confidence outside 0 … 1.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.model_selection import StratifiedKFold
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ModuleNotFoundError(_MISSING_SKLEARN) from error
    a, b = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise ValueError(f"both sides must be rows by the same columns, got the shapes {a.shape} and {b.shape}")
    if np.isinf(a).any() or np.isinf(b).any():
        raise ValueError("the rows hold infinite values; drop or clip them first")
    if folds < 2 or not 0 < confidence < 1:
        raise ValueError(f"needs at least 2 folds and a confidence between 0 and 1, got {folds} and {confidence}")
    if min(len(a), len(b)) < folds:
        return Separation(math.nan, math.nan, math.nan, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    rows = np.concatenate([_sample(a, max_rows, generator), _sample(b, max_rows, generator)])
    is_current = np.repeat([False, True], [min(len(a), max_rows), min(len(b), max_rows)])
    splits: Any = StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, is_current)
    found = []
    # On one thread: trees this small spend several on waiting for each other.
    with threadpool_limits(1):
        for train, test in splits:
            model = HistGradientBoostingClassifier(
                max_iter=60, max_leaf_nodes=15, early_stopping=False, random_state=seed
            )
            scores = model.fit(rows[train], is_current[train]).predict_proba(rows[test])[:, 1]
            found.append(_ranked(scores[~is_current[test]], scores[is_current[test]]))
    auc, variance, null_variance = np.array(found).sum(axis=0) / np.array([folds, folds**2, folds**2])
    wide = float(normal_ppf((1 + confidence) / 2)) * math.sqrt(variance)
    spread = math.sqrt(null_variance)
    return Separation(
        float(auc),
        max(float(auc) - wide, 0.0),
        min(float(auc) + wide, 1.0),
        0.5 + float(normal_ppf(confidence)) * spread,
        float(normal_sf((float(auc) - 0.5) / spread)),
    )


def _sample(rows: Floats, size: int, generator: np.random.Generator) -> Floats:
    return rows[generator.choice(len(rows), size, replace=False)] if len(rows) > size else rows


def _ranked(negative: Floats, positive: Floats) -> tuple[float, float, float]:
    """AUC by midranks, DeLong's variance of it, and Mann & Whitney's variance when nothing can be told apart."""
    n, m = len(negative), len(positive)
    below = _placements(np.sort(negative), positive)
    above = 1 - _placements(np.sort(positive), negative)
    variance = (float(np.var(below, ddof=1)) / m if m > 1 else 0.0) + (
        float(np.var(above, ddof=1)) / n if n > 1 else 0.0
    )
    return float(below.mean()), variance, (n + m + 1) / (12 * n * m)


def _placements(ordered: Floats, values: Floats) -> Floats:
    """The share of `ordered` below each value, ties by half."""
    both = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(both / (2 * len(ordered)), np.float64)
