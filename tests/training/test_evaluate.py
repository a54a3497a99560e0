from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluate import Gate, clustered_mean, roc_auc, row_log_loss, score, student_t_quantile

RANDOM = np.random.default_rng(3)
LABELS = (RANDOM.random(4000) < 0.3).astype(float)
# Rounded, so that there are ties.
PROBABILITIES = np.clip(np.round(0.3 + 0.2 * (LABELS - 0.3) + RANDOM.normal(0, 0.15, 4000), 2), 0.01, 0.99)


def test_scores_equal_those_of_scikit_learn():
    scores = score(LABELS, PROBABILITIES)

    assert scores.log_loss == pytest.approx(sklearn.metrics.log_loss(LABELS, PROBABILITIES), abs=1e-12)
    assert scores.brier == pytest.approx(sklearn.metrics.brier_score_loss(LABELS, PROBABILITIES), abs=1e-12)
    assert scores.roc_auc == pytest.approx(sklearn.metrics.roc_auc_score(LABELS, PROBABILITIES), abs=1e-12)
    assert scores.accuracy == sklearn.metrics.accuracy_score(LABELS, PROBABILITIES >= 0.5)
    base = sklearn.metrics.log_loss(LABELS, np.full(len(LABELS), LABELS.mean()))
    assert scores.base_rate_log_loss == pytest.approx(base, abs=1e-12)
    assert (scores.rows, scores.positive_ratio) == (4000, LABELS.mean())


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=60))
def test_roc_auc_counts_ties_half_as_scikit_learn_does(rows: list[tuple[bool, int]]):
    labels = np.array([float(label) for label, _ in rows])
    ranks = np.array([rank / 5 for _, rank in rows])
    if labels.min() == labels.max():
        assert np.isnan(roc_auc(labels, ranks))
    else:
        assert roc_auc(labels, ranks) == pytest.approx(sklearn.metrics.roc_auc_score(labels, ranks))


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    labels = np.array([1.0, 0.0, 1.0, 1.0])

    # Bin [0.2, 0.3): predicts 0.25 where half are positive; bin [0.9, 1]: 0.95 where all are.
    assert score(labels, np.array([0.25, 0.25, 0.95, 0.95])).calibration_error == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)


def test_a_score_that_is_not_defined_is_left_out_of_the_json():
    assert "roc_auc" not in score(np.ones(5), np.full(5, 0.9)).to_json()


def test_no_rows_or_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="3 predictions for 0 labels"):
        score(np.empty(0), np.ones(3))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 11, 30, 99])
@pytest.mark.parametrize("probability", [0.5, 0.8, 0.95, 0.99, 0.999])
def test_student_quantiles_equal_those_of_scipy(degrees: int, probability: float):
    assert student_t_quantile(probability, degrees) == pytest.approx(scipy.stats.t.ppf(probability, degrees), abs=1e-9)


def test_with_one_row_a_group_the_clustered_error_is_the_ordinary_standard_error():
    values = RANDOM.normal(size=50)

    mean, error = clustered_mean(values, np.arange(50))

    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(scipy.stats.sem(values))


def test_copies_of_a_row_within_its_group_add_no_certainty():
    values = RANDOM.normal(size=20)

    once = clustered_mean(values, np.arange(20))
    often = clustered_mean(np.repeat(values, 100), np.repeat(np.arange(20), 100))

    assert often == pytest.approx(once)


def test_the_gate_refuses_a_worse_challenger_as_often_as_its_confidence_promises():
    # Truth: the challenger is exactly at the tolerance, and days differ; it may pass in at most 5 % of the trials.
    passed, gate = 0, Gate(min_rows=1)
    days = np.repeat(np.arange(12), 50)
    for trial in range(1000):
        generator = np.random.default_rng(trial)
        shift = generator.normal(0, 0.5, 12)[days] + generator.normal(0, 0.5, 600)
        labels = np.ones(600)
        champion = np.full(600, 0.25)
        challenger = np.clip(champion * np.exp(-shift), 1e-6, 1 - 1e-6)
        passed += gate.against_champion(labels, challenger, champion, days).passed

    assert 20 <= passed <= 75


def test_the_gate_passes_a_clearly_better_challenger_and_says_by_how_much():
    days = np.arange(len(LABELS)) % 10

    decision = Gate().against_champion(LABELS, PROBABILITIES, np.full(len(LABELS), 0.5), days)

    assert decision.passed
    assert decision.difference == pytest.approx(decision.candidate_log_loss - decision.rival_log_loss)
    assert decision.difference < decision.upper_bound < 0
    assert f"{decision.upper_bound:+.4f} at 95%" in decision.reason
    assert decision.to_json()["groups"] == 10


def test_an_identical_challenger_passes_but_a_constant_does_not_beat_the_base_rate():
    days = np.arange(len(LABELS)) % 10

    assert Gate().against_champion(LABELS, PROBABILITIES, PROBABILITIES, days).passed
    assert not Gate().against_base_rate(LABELS, np.full(len(LABELS), LABELS.mean()), days).passed


def test_tolerance_lets_a_slightly_worse_challenger_pass():
    days = np.arange(len(LABELS)) % 10
    worse = PROBABILITIES * 0.97

    assert not Gate().against_champion(LABELS, worse, PROBABILITIES, days).passed
    assert Gate(tolerance=0.05).against_champion(LABELS, worse, PROBABILITIES, days).passed


def test_too_few_days_never_pass_however_good_the_rows():
    decision = Gate().against_champion(LABELS, LABELS, np.full(len(LABELS), 0.5), np.arange(len(LABELS)) % 4)

    assert not decision.passed
    assert "4 groups" in decision.reason
    assert decision.to_json()["upper_bound"] is None


def test_a_challenger_that_is_not_finite_is_refused_with_the_count():
    broken = PROBABILITIES.copy()
    broken[:7] = np.nan

    decision = Gate().against_base_rate(LABELS, broken, np.arange(len(LABELS)) % 10)

    assert (decision.passed, decision.reason) == (False, "7 of 4000 predictions are not finite")


@settings(deadline=None)
@given(st.floats(0, 1), st.booleans())
def test_row_log_loss_is_finite_for_every_probability(probability: float, label: bool):
    assert np.isfinite(row_log_loss(np.array([float(label)]), np.array([probability]))).all()
