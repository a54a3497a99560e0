"""Change points: the recursion against its definition, the evidence against scipy, chunks, restarts, units."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_t

from collectors.drift.changepoint import ChangePointDetector, ChangePointError, ChangePointSettings
from collectors.drift.segment_evidence import LogGammas, Segments, log_evidence

STEPS = [(60, 0.0, 1.0), (45, 4.0, 1.0), (70, 4.0, 5.0), (50, -3.0, 0.5)]


def steps(seed: int, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(level, spread, length) for length, level, spread in STEPS]) * scale + offset


def found(values: np.ndarray, **options: float) -> list[int]:
    rows = values.reshape(len(values), -1)
    detector = ChangePointDetector(rows.shape[1], ChangePointSettings(**options))  # type: ignore[arg-type]
    detector.update(rows)
    return detector.changes


def student(x: np.ndarray, mean: float, variance: float, strength: float, shape: float, sloped: bool) -> float:
    n = len(x)
    z = np.arange(n) - (n - 1) / 2
    covariance = np.eye(n) + 1 / strength
    if sloped:
        covariance += np.outer(z, z) * n / strength / (z @ z)
    return float(multivariate_t(np.full(n, mean), variance * covariance, df=2 * shape).logpdf(x))


@pytest.mark.parametrize("shape", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("trend", [0.0, 0.2])
def test_the_evidence_is_that_of_students_law(trend: float, shape: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (30, 2)) + 0.3 * np.arange(30)[:, None]
    mean, variance = np.array([1.0, 5.0]), np.array([4.0, 0.5])
    segments = Segments.none(2)
    for start, row in enumerate(x):
        segments = segments.begun() if start in (0, 7, 20, 27) else segments
        segments.add(row)

    logs = log_evidence(segments, mean, variance, 0.7, shape, trend, LogGammas(shape))

    for start, log in zip((0, 7, 20, 27), logs, strict=True):
        expected = 0.0
        for column in range(2):
            level, sloped = (
                student(x[start:, column], mean[column], variance[column], 0.7, shape, which) for which in (False, True)
            )
            expected += math.log((1 - trend) * math.exp(level - sloped) + trend) + sloped if trend else level
        assert log == pytest.approx(expected, rel=1e-9)


def test_the_recursion_is_its_definition() -> None:
    """Against plain loops over all starts, without pruning: posterior and most likely segmentation."""
    values = steps(3)[75:140]
    options = ChangePointSettings(spacing=30, shortest=3, warm_up=10, trend=0.0, prune=1e6)
    detector = ChangePointDetector(1, options)
    detector.update(values)

    n = len(values)
    sums, bests, parents = {0: 0.0}, {0: 0.0}, {}
    for t in range(1, n + 1):
        seen = values[: max(t, 10)]
        scores, tops = {}, {}
        for s in sums:
            log = student(values[s:t], seen.mean(), seen.var(), 1.0, 1.0, False) + (t - s - 1) * math.log(1 - 1 / 30)
            scores[s], tops[s] = sums[s] + log, bests[s] + log
        top = max(scores.values())
        total = top + math.log(sum(math.exp(score - top) for score in scores.values()))
        old_enough = [s for s in tops if t - s >= 3]
        if old_enough:
            last = max(old_enough, key=lambda s: tops[s])
            parents[t] = last
            sums[t], bests[t] = total - math.log(30), tops[last] - math.log(30)
    changes = []
    while last > 0:
        changes.append(last)
        last = parents[last]
    lengths, posterior = detector.run_lengths
    expected = {n - s: math.exp(score - total) for s, score in scores.items()}

    assert detector.changes == changes[::-1]
    assert len(changes) >= 1
    for length, probability in zip(lengths.tolist(), posterior.tolist(), strict=True):
        assert probability == pytest.approx(expected.get(length, 0.0), rel=1e-6, abs=1e-12)
    assert posterior.sum() == pytest.approx(1)


def test_levels_and_spreads_that_change_are_found_where_they_change() -> None:
    for seed in range(8):
        changes = found(steps(seed))
        assert len(changes) == 3
        assert np.max(np.abs(np.array(changes) - [60, 105, 175])) <= 6


def test_changes_are_reported_once_and_soon() -> None:
    detector = ChangePointDetector()
    reports = [change for value in steps(1) for change in detector.update([value])]

    assert [abs(report.since - true) <= 6 for report, true in zip(reports, [60, 105, 175], strict=True)] == [True] * 3
    assert all(0 <= report.index - report.since <= 20 for report in reports)
    assert all(report.probability >= 0.95 for report in reports)


def test_nothing_is_found_where_nothing_is() -> None:
    rng = np.random.default_rng(5)
    white = [len(found(rng.normal(7, 3, 200))) for _ in range(12)]
    trends = [len(found(0.05 * np.arange(200) + rng.normal(0, 1, 200))) for _ in range(6)]

    assert sum(white) <= 1
    assert sum(trends) <= 1


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_chunking_and_any_restart_give_the_same(data: st.DataObject) -> None:
    values = np.stack([steps(data.draw(st.integers(0, 50))), np.random.default_rng(1).normal(size=225)], axis=1)
    values = values[: data.draw(st.integers(1, 160))]
    whole, parts = ChangePointDetector(2), ChangePointDetector(2)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=8)))

    at_once = whole.update(values)
    piecewise = []
    for chunk in np.split(values, cuts):
        piecewise += parts.update(chunk)
        parts = ChangePointDetector.from_json(parts.to_json())

    assert piecewise == at_once
    assert json.loads(parts.to_json()) == json.loads(whole.to_json())


@settings(max_examples=8, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(-1e5, 1e5), st.integers(0, 20))
def test_units_do_not_matter(scale: float, offset: float, seed: int) -> None:
    assert found(steps(seed, scale, offset * scale)) == found(steps(seed))


def test_giving_up_hopeless_candidates_changes_nothing_and_bounds_the_state() -> None:
    for seed in range(3):
        assert found(steps(seed)) == found(steps(seed), prune=1e6)
    capped = ChangePointDetector(1, ChangePointSettings(candidates=20))
    capped.update(np.tile(steps(0), 4))
    assert len(capped.run_lengths[0]) <= 21
    assert len(capped.changes) >= 10


def test_constant_series_are_borne() -> None:
    assert found(np.zeros(200)) == []
    assert found(np.full(200, 1e9)) == []
    assert found(np.concatenate([np.zeros(100), np.ones(100)])) == [100]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, math.nan], "sample 1 of dimension 0 is nan"),
        ([[1.0, 2.0]], "shape"),
        (["a"], "must be numbers"),
        ([1e200], "rescale"),
    ],
)
def test_bad_samples_are_refused_and_change_nothing(values: object, message: str) -> None:
    detector = ChangePointDetector()
    detector.update(steps(0))
    before = detector.to_json()

    with pytest.raises(ChangePointError, match=message):
        detector.update(values)  # type: ignore[arg-type]

    assert detector.to_json() == before


@pytest.mark.parametrize(
    "options",
    [{"spacing": 1}, {"trend": 1}, {"shape": 0}, {"confidence": 1}, {"shortest": 0}, {"warm_up": 1}, {"candidates": 2}],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ChangePointError):
        ChangePointSettings(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", [b"", b"[]", b'{"format": 9}', b'{"format": 1}', b"\xff"])
def test_a_state_that_is_none_is_refused(stored: bytes) -> None:
    with pytest.raises(ChangePointError):
        ChangePointDetector.from_json(stored)
    with pytest.raises(ChangePointError, match="at least one dimension"):
        ChangePointDetector(0)
