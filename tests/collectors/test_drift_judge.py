"""The verdict on a column: what is called drift, and what is not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from collectors.drift import DriftThresholds, drifted_share, judge
from observability.profile import Profile


def verdicts(before: dict[str, object], now: dict[str, object], **thresholds: float):  # type: ignore[no-untyped-def]
    reference = Profile.of(pa.table(before))
    limits = DriftThresholds(**thresholds)  # type: ignore[arg-type]
    return judge(reference, reference.empty().updated(pa.table(now)), limits)


def normal(rows: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, rows)


@pytest.mark.parametrize("rows", [200, 500, 2000, 20_000])
def test_windows_of_the_references_own_distribution_are_not_drift(rows: int) -> None:
    found = [verdicts({"x": normal(5000, seed=s)}, {"x": normal(rows, seed=1000 + s)})["x"] for s in range(60)]

    assert [verdict.reason for verdict in found] == ["within_threshold"] * 60


def test_a_shift_by_one_deviation_is_drift_and_the_verdict_says_how_far() -> None:
    verdict = verdicts({"x": normal(5000)}, {"x": normal(500, 1.0, seed=1)})["x"]

    assert verdict.drifted
    assert verdict.reason == "drifted"
    assert verdict.effect == pytest.approx(verdict.psi - verdict.psi_expected)
    assert verdict.effect > 0.25
    assert verdict.wasserstein == pytest.approx(1.0, abs=0.15)


def test_a_window_too_small_is_not_judged() -> None:
    verdict = verdicts({"x": normal(5000)}, {"x": normal(50, 3.0)})["x"]

    assert not verdict.drifted
    assert verdict.reason == "too_few_rows"


def test_missing_values_are_a_finding_of_their_own() -> None:
    now = normal(1000, seed=2)
    now[:400] = np.nan

    verdict = verdicts({"x": normal(5000)}, {"x": now})["x"]

    assert verdict.missing_changed
    assert not verdict.drifted
    assert verdict.missing_ratio == pytest.approx(0.4)


def test_an_empty_column_gives_a_verdict() -> None:
    verdict = verdicts({"x": normal(5000)}, {"x": pa.nulls(1000, pa.float64())})["x"]

    assert verdict.reason == "no_values"
    assert verdict.missing_changed
    assert verdicts({"x": pa.nulls(500, pa.float64())}, {"x": normal(500)})["x"].reason == "no_reference_values"


def test_categories_drift_and_unseen_ones_count() -> None:
    before = {"c": np.random.default_rng(0).choice(["AA", "DL"], 3000)}

    same = verdicts(before, {"c": np.random.default_rng(1).choice(["AA", "DL"], 500)})["c"]
    other = verdicts(before, {"c": ["B6"] * 250 + ["AA"] * 250})["c"]

    assert not same.drifted
    assert other.drifted
    assert other.ks is None
    assert other.wasserstein is None


def test_many_categories_do_not_make_noise_into_drift() -> None:
    before = {"c": np.random.default_rng(0).integers(0, 200, 5000).astype(str)}
    found = [
        verdicts(before, {"c": np.random.default_rng(seed).integers(0, 200, 500).astype(str)})["c"].drifted
        for seed in range(1, 30)
    ]

    assert not any(found)


def test_predictions_are_judged_but_the_share_is_of_features() -> None:
    before = {"feature.a": normal(3000), "feature.b": normal(3000, seed=1), "prediction.p": normal(3000, seed=2)}
    now = {"feature.a": normal(900, 2), "feature.b": normal(900, seed=3), "prediction.p": normal(900, 2, seed=4)}

    found = verdicts(before, now)

    assert found["prediction.p"].drifted
    assert drifted_share(found) == 0.5


def test_thresholds_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        DriftThresholds(psi=0)
