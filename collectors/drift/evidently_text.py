"""Evidently's verdict on a text column: how well a linear classifier tells the current texts from the reference's.

Follows `evidently` 0.7.23, `legacy/utils/data_drift_utils.py`: the same split, the same features and model of
scikit-learn, with the same seeds, hence the same area under the curve.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyarrow as pa

from collectors.drift.source import InputError
from collectors.drift.verdict import Verdict

SMALL_REFERENCE = 1000
ABSOLUTE, PERCENTILE = "Absolute text content drift", "Percentile text content drift"
THRESHOLD, LEVEL = 0.55, 0.95
_SEED = 42
_DRAWS = 1000


class TooLittleTextError(InputError):
    """Texts of which nothing can be learned; of a table's other columns that says nothing."""


def evidently_text(reference: pa.ChunkedArray, current: pa.ChunkedArray, threshold: float | None = None) -> Verdict:
    """The verdict on two columns of strings. InputError without scikit-learn, TooLittleTextError where no word is left.

    Above 1,000 reference rows the area must exceed 0.55, below that the 95th percentile of random guesses.
    """
    before, now = (side.drop_null().to_pylist() for side in (reference, current))
    area, truth = _area(before, now)
    if len(before) > SMALL_REFERENCE:
        limit = THRESHOLD if threshold is None else threshold
        return Verdict(ABSOLUTE, area, limit, area > limit)
    level = LEVEL if threshold is None else threshold
    return Verdict(PERCENTILE, area, level, area > _random_area(truth, level))


def _area(before: list[str], now: list[str]) -> tuple[float, Any]:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import SGDClassifier
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import train_test_split
        from sklearn.pipeline import Pipeline
    except ModuleNotFoundError as error:
        raise InputError("Evidently's method for text needs scikit-learn: pip install 'trimtab[reports]'") from error
    texts, sides = np.array([*before, *now], dtype=object), np.array([0] * len(before) + [1] * len(now))
    try:
        split = train_test_split(texts, sides, test_size=0.5, random_state=_SEED, shuffle=True)
        features, unseen, labels, truth = split
        model = Pipeline(
            [
                ("vectorization", TfidfVectorizer(sublinear_tf=True, max_df=0.5, stop_words="english")),
                (
                    "classification",
                    SGDClassifier(alpha=0.0001, max_iter=50, penalty="l1", loss="modified_huber", random_state=_SEED),
                ),
            ]
        )
        with warnings.catch_warnings():
            # Evidently takes what fifty rounds give.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, labels)
        return float(roc_auc_score(truth, model.predict_proba(unseen)[:, 1])), truth
    except ValueError as error:
        raise TooLittleTextError(f"Evidently's method for text cannot learn from so little text: {error}") from error


def _random_area(truth: Any, level: float) -> float:
    """The area under the curve that so large a share of random guesses stays below."""
    seeds = np.random.RandomState(_SEED).randint(0, _DRAWS * 10, size=_DRAWS)
    truth, positive = np.asarray(truth, bool), int(np.sum(truth))
    areas = []
    for seed in seeds:
        # The guesses have no ties, so the area is Mann and Whitney's statistic, from the ranks of the positive ones.
        ranks = np.flatnonzero(truth[np.argsort(np.random.RandomState(seed).rand(len(truth)))])
        wins = int(ranks.sum()) - positive * (positive - 1) // 2
        areas.append(wins / (positive * (len(truth) - positive)))
    # Evidently passes the level as one minus a p-value and takes it back: the rounding is part of the percentile.
    return float(np.percentile(areas, 100 * (1 - (1 - level))))
