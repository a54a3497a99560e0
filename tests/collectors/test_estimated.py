"""Expected scores: isotonic regression against scikit-learn, estimates against the labels, and when they page."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from collectors.scores import (
    PerformanceEstimator,
    ScoreCalibration,
    ScoreError,
    ScoreHistogram,
    classification_scores,
    score_counts,
)
from collectors.scores.calibration import calibrated, isotonic
from collectors.scores.cells import CELLS, MIDDLES, cells_of
from collectors.scores.estimated import ESTIMATED
from collectors.scores.label_noise import label_errors

Floats = npt.NDArray[np.float64]
ESTIMABLE = ("roc_auc", "f1", "accuracy", "precision", "recall", "pr_auc")


def world(seed: int, rows: int, centre: float = 0.0, slope: float = 0.7, shift: float = 0.4) -> tuple[Floats, Floats]:
    """Scores that are too sure of themselves and too high; `centre` moves who comes, slope and shift what it means."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(centre, 1.8, rows)
    labels = generator.random(rows) < 1 / (1 + np.exp(shift - slope * logits))
    return 1 / (1 + np.exp(-logits)), labels.astype(np.float64)


def blocks(seed: int, count: int, rows: int) -> list[ScoreHistogram]:
    return [ScoreHistogram.of(*world(seed + place, rows)) for place in range(count)]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=40))
def test_isotonic_regression_is_scikit_learns(rows: list[tuple[float, int]]) -> None:
    values, weights = np.array(rows, np.float64).T
    expected = IsotonicRegression().fit_transform(np.arange(len(values)), values, sample_weight=weights)

    assert isotonic(values, weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rows", [3, 50, 2_000, 50_000])
def test_calibrated_probabilities_rise_with_the_score_and_stay_probabilities(rows: int) -> None:
    p, y = world(1, rows)
    histogram = ScoreHistogram.of(p, y)
    found = calibrated(histogram.positives, histogram.negatives)

    assert found.shape == (CELLS,)
    assert (np.diff(found) >= -1e-12).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert found[cells_of(p)].mean() == pytest.approx(y.mean(), abs=0.5 / np.sqrt(rows))


def test_scores_are_calibrated_only_when_that_predicts_better() -> None:
    wrong = ScoreCalibration.learnt(ScoreHistogram.of(*world(0, 20_000)))
    right = ScoreCalibration.learnt(ScoreHistogram.of(*world(0, 2_000, slope=1.0, shift=0.0)))

    assert wrong.applied
    assert wrong.gain > 0.005
    assert not right.applied
    assert ScoreCalibration.from_json(wrong.to_json()).probabilities.tolist() == wrong.probabilities.tolist()


@pytest.mark.parametrize("centre", [-1.5, 0.0, 1.0])
def test_expected_scores_are_those_of_the_labels_though_other_rows_come(centre: float) -> None:
    estimator = PerformanceEstimator.learnt(ScoreHistogram.of(*world(1, 60_000)))
    p, y = world(2, 60_000, centre)
    expected, realised = estimator.estimate(score_counts(p)), classification_scores(p, y)

    assert expected.keys() == set(ESTIMATED)
    for name, estimate in expected.items():
        assert estimate.value == pytest.approx(realised[name], abs=0.012), name
        if name in ESTIMABLE and centre:
            before = estimator.usual[name].value
            assert abs(estimate.value - realised[name]) < abs(before - realised[name]) + 0.003, name
    error = estimator.honesty(ScoreHistogram.of(p, y))
    assert error["roc_auc"] == pytest.approx(expected["roc_auc"].value - realised["roc_auc"], abs=1e-3)


def test_estimates_are_of_sums_of_windows() -> None:
    estimator = PerformanceEstimator.learnt(blocks(0, 4, 2_000))
    p, _ = world(9, 3_000)

    assert estimator.estimate(score_counts(p[:999]) + score_counts(p[999:])) == estimator.estimate(score_counts(p))
    assert PerformanceEstimator.from_json(estimator.to_json()).estimate(score_counts(p)) == estimator.estimate(
        score_counts(p)
    )


def test_windows_of_what_is_usual_do_not_page_and_harder_ones_do() -> None:
    estimator = PerformanceEstimator.learnt(blocks(0, 12, 2_000))
    usual = [estimator.estimate(score_counts(world(100 + place, 2_000)[0])) for place in range(100)]
    # Rows nearer to the boundary: every score of them is worse.
    generator = np.random.default_rng(3)
    harder = estimator.estimate(score_counts(1 / (1 + np.exp(-generator.normal(0, 0.6, 2_000)))))

    assert sum(estimate.alert for window in usual for estimate in window.values()) <= 2
    assert harder["roc_auc"].alert
    assert harder["roc_auc"].worse
    assert harder["log_loss"].alert
    assert not estimator.estimate(np.zeros(CELLS, np.int64))


def test_what_the_interval_of_an_estimate_covers() -> None:
    """The realised scores of windows of 2,000 rows lie in the interval about as often as it says."""
    estimator = PerformanceEstimator.learnt(blocks(0, 30, 2_000))
    inside = dict.fromkeys(ESTIMATED, 0)
    for place in range(200):
        p, y = world(1_000 + place, 2_000)
        realised = classification_scores(p, y)
        for name, estimate in estimator.estimate(score_counts(p)).items():
            inside[name] += estimate.low <= realised[name] <= estimate.high

    assert {name: hits for name, hits in inside.items() if hits < 0.88 * 200} == {}


@pytest.mark.parametrize("rows", [20, 200, 2_000])
def test_the_interval_is_that_of_the_rows_that_came_not_of_the_reference(rows: int) -> None:
    """Rows that are harder to rank, a few or many: the plain error of the reference covered 65 to 85 % of their AUC."""
    generator = np.random.default_rng(rows)

    def drawn(count: int, spread: float, centre: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        p = 1 / (1 + np.exp(-(spread * generator.normal(size=count) + centre)))
        return p, (generator.random(count) < p).astype(float)

    estimator = PerformanceEstimator.learnt([ScoreHistogram.of(*drawn(2_000, 1.5, -2)) for _ in range(10)])
    inside, seen = dict.fromkeys(ESTIMATED, 0), dict.fromkeys(ESTIMATED, 0)
    for _ in range(200):
        p, y = drawn(rows, 0.45, -2)
        realised = ScoreHistogram.of(p, y).scores()
        for name, estimate in estimator.estimate(score_counts(p)).items():
            assert 0 <= estimate.low <= estimate.value <= estimate.high
            assert name == "log_loss" or estimate.high <= 1
            if name in realised and math.isfinite(realised[name].value):
                seen[name] += 1
                inside[name] += estimate.low <= realised[name].value <= estimate.high

    assert {name: hits / seen[name] for name, hits in inside.items() if hits < 0.88 * seen[name]} == {}


def test_the_error_of_an_expected_score_is_that_of_drawn_labels() -> None:
    generator = np.random.default_rng(3)
    scores = generator.beta(1, 3, 3_000)
    counts = score_counts(scores)
    names = ("roc_auc", "pr_auc", "accuracy", "precision", "recall", "f1")
    drawn: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(400):
        positives = generator.binomial(counts, MIDDLES)
        found = ScoreHistogram(positives, counts - positives)
        for name in names:
            drawn[name].append(found.scores()[name].value)

    errors = label_errors(counts, MIDDLES)

    for name, values in drawn.items():
        assert errors[name][0] == pytest.approx(np.std(values), rel=0.15), name


def test_an_estimator_stored_by_an_earlier_release_is_read() -> None:
    estimator = PerformanceEstimator.learnt(blocks(0, 5, 1_000))
    body = msgspec.json.decode(estimator.to_json())
    assert PerformanceEstimator.from_json(estimator.to_json()).rows == body.pop("rows") == 5_000

    assert PerformanceEstimator.from_json(msgspec.json.encode(body)).rows == 0


def test_a_change_of_what_scores_mean_shows_only_with_the_labels() -> None:
    estimator = PerformanceEstimator.learnt(blocks(0, 12, 2_000))
    p, y = world(7, 5_000, slope=0.2)

    assert not estimator.estimate(score_counts(p))["roc_auc"].alert
    assert estimator.honesty(ScoreHistogram.of(p, y))["roc_auc"] > 0.1


def test_a_reference_of_one_class_is_refused() -> None:
    with pytest.raises(ScoreError, match="both classes"):
        PerformanceEstimator.learnt(ScoreHistogram.of(np.array([0.2, 0.4]), np.zeros(2)))
    with pytest.raises(ScoreError, match="no stored"):
        PerformanceEstimator.from_json(b"{}")
