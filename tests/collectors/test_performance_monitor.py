"""Realised and expected scores of a version, from predictions and labels as they come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from collectors.scores import (
    LabelledRow,
    MonitorSettings,
    PerformanceEstimator,
    PerformanceMonitor,
    ScoreHistogram,
    classification_scores,
)

Floats = npt.NDArray[np.float64]
SECOND = 1_000_000_000


def world(seed: int, rows: int, sure: float = 1.5) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, sure, rows)
    return 1 / (1 + np.exp(-1.4 * logits)), (generator.random(rows) < 1 / (1 + np.exp(-logits))).astype(float)


def feed(monitor: PerformanceMonitor, window: int, p: Floats, y: Floats | None = None) -> None:
    """Predictions (and labels) of one window of a minute."""
    times = window * 60 * SECOND + np.arange(len(p))
    monitor.count("m", "1", times, p)
    if y is not None:
        rows = [LabelledRow(*row) for row in zip(times.tolist(), p.tolist(), y.tolist(), times.tolist(), strict=True)]
        monitor.windows.put("m", "1", [f"{window}/{place}" for place in range(len(p))], rows)


def test_scores_are_realised_where_labels_came_and_expected_where_not() -> None:
    monitor = PerformanceMonitor(settings=MonitorSettings(learned_rows=5_000, learned_windows=5, scored_rows=2_000))
    for window in range(4):
        feed(monitor, window, *world(window, 1_000))
    assert monitor.estimator("m", "1") is None
    assert monitor.performance("m", "1").expected == {}

    for window in range(4, 8):
        feed(monitor, window, *world(window, 1_000))
    usual, _ = world(8, 1_000)
    harder, truth = world(9, 1_000, sure=0.3)
    feed(monitor, 8, usual)
    feed(monitor, 9, harder)
    before, after = monitor.performance("m", "1", 9 * 60.0), monitor.performance("m", "1", 10 * 60.0)

    assert before.labels == 2_000
    p, y = (np.concatenate(parts) for parts in zip(world(6, 1_000), world(7, 1_000), strict=True))
    assert before.realised["log_loss"].value == pytest.approx(classification_scores(p, y)["log_loss"])
    assert abs(before.honesty["roc_auc"]) < 0.03
    assert before.window is not None
    assert before.window.start == 480.0
    assert not before.expected["roc_auc"].alert
    assert after.expected["roc_auc"].alert
    assert after.expected["roc_auc"].worse
    assert after.expected["roc_auc"].value == pytest.approx(classification_scores(harder, truth)["roc_auc"], abs=0.06)


def test_an_estimator_that_is_set_stays() -> None:
    monitor = PerformanceMonitor()
    given = PerformanceEstimator.learnt(ScoreHistogram.of(*world(1, 3_000)))
    monitor.set_estimator("m", "1", PerformanceEstimator.from_json(given.to_json()))
    p, _ = world(2, 500)
    feed(monitor, 0, p)

    assert monitor.performance("m", "1").expected == given.estimate(ScoreHistogram.of(p, np.zeros(500)).counts)
    assert monitor.performance("m", "1").realised == {}


def test_predictions_that_are_no_probabilities_are_left_out_and_numbers_are_scored_as_such() -> None:
    monitor = PerformanceMonitor()
    feed(monitor, 0, np.array([5.0, np.nan, 0.5]), np.array([4.0, 1.0, 0.0]))
    found = monitor.performance("m", "1")

    assert found.labels == 2
    assert "mae" in found.realised
    assert found.expected == found.honesty == {}


def test_memory_is_bounded() -> None:
    monitor = PerformanceMonitor(settings=MonitorSettings(kept_windows=3))
    for window in range(10):
        feed(monitor, window, np.array([0.5]))

    assert sorted(monitor._versions["m", "1"].counts) == [7, 8, 9]
    with pytest.raises(ValueError, match="at least 1"):
        MonitorSettings(kept_windows=0)
