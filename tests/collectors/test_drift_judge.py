"""The verdict on a column: what is called drift, and what is not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from collectors.drift.auto import auto_verdicts
from collectors.drift.bins import regroup_ordered
from collectors.drift.explain import explain
from collectors.drift.jensen_shannon import jensen_shannon
from collectors.drift.judge import DriftThresholds, drifted_share, judge
from collectors.drift.kolmogorov_smirnov import kolmogorov_smirnov
from collectors.drift.psi import null_expectation, psi
from collectors.drift.wasserstein import wasserstein
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


def test_a_verdict_needs_the_large_shift_and_more_than_chance() -> None:
    verdict = verdicts({"x": normal(5000)}, {"x": normal(500, 1.0, seed=1)})["x"]

    assert verdict.method == "cdf_distance"
    assert verdict.score >= verdict.threshold > 0
    assert verdict.p_value < 1e-6
    # A large PSI by few rows of a column of many others is chance.
    noise = {f"c{i}": normal(5000, seed=i) for i in range(20)}
    few = {f"c{i}": normal(30, seed=100 + i) for i in range(20)}
    assert not any(found.drifted for found in verdicts(noise, few, min_rows=20, psi=0.05).values())


def test_columns_judged_at_once_have_the_distances_of_each_by_itself() -> None:
    random = np.random.default_rng(0)
    before = {
        "a": random.normal(size=3000),
        "few": random.integers(0, 4, 3000).astype(float),
        "constant": np.full(3000, 7.0),
        "b": random.exponential(size=3000),
        "c": random.choice(["x", "y"], 3000),
    }
    now = {name: np.roll(values, 17)[:900] for name, values in before.items()} | {"b": before["b"][:900] * 3 + 50}
    reference = Profile.of(pa.table(before))
    window = reference.empty().updated(pa.table(now))

    for name, found in judge(reference, window).items():
        one, other = reference.columns[name], window.columns[name]
        assert found.jensen_shannon == pytest.approx(jensen_shannon(one.counts, other.counts), abs=1e-15)
        if name != "c":
            first, second = regroup_ordered(one.counts, other.counts, 10)
            assert found.psi == pytest.approx(psi(first, second), abs=1e-12)
            assert found.psi_expected == pytest.approx(null_expectation(len(first), 900, 3000))
            assert found.ks == pytest.approx(kolmogorov_smirnov(one.counts, other.counts))
            ranges = ((one.minimum, one.maximum), (other.minimum, other.maximum))
            expected = wasserstein(one.counts, other.counts, one.edges, one.variance**0.5, *ranges)
            assert found.wasserstein == pytest.approx(expected, rel=1e-12)


KINDS = {
    "number": lambda random, rows, move: random.normal(move, 1, rows),
    "code": lambda random, rows, move: random.choice(list("abcd"), rows, p=[0.4 - move / 4, 0.3, 0.2, 0.1 + move / 4]),
    "flag": lambda random, rows, move: random.random(rows) < 0.5 + move / 3,
    "when": lambda random, rows, move: pa.array(
        (random.integers(0, 86400 * 7 * (1 - move / 2), rows) * 1_000_000).astype("int64"), pa.timestamp("us")
    ),
    "said": lambda random, rows, move: [
        "word " * int(length) for length in random.integers(1, 20 + int(20 * move), rows)
    ],
    "vector": lambda random, rows, move: list(random.normal(move, 1, (rows, 4))),
}
NAMED = {"said": "text", "when": "datetime", "vector": "embedding", "code": "categorical", "flag": "boolean"}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_column_is_judged(name: str) -> None:
    kind = {name: NAMED.get(name, "numeric")}
    random = np.random.default_rng(0)
    reference = Profile.of(pa.table({name: KINDS[name](random, 4000, 0.0)}), kind)
    same, moved = (reference.empty().updated(pa.table({name: KINDS[name](random, 1000, move)})) for move in (0.0, 0.6))

    assert not auto_verdicts(reference, same)[name].drifted
    found = auto_verdicts(reference, moved)[name]
    assert found.drifted
    assert found.reason == "drifted"
    assert found.score >= found.threshold
    assert explain(reference.columns[name], moved.columns[name]).sentence
    judge(reference, moved)


def test_a_million_rows_do_not_drift_by_a_hundredth_of_a_deviation() -> None:
    reference = Profile.of(pa.table({"x": normal(100_000)}))
    window = reference.empty().updated(pa.table({"x": normal(300_000, 0.01, seed=1)}))

    found = auto_verdicts(reference, window)["x"]

    assert found.p_value < 0.05
    assert not found.drifted


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        (normal(500), normal(5, seed=1), "too_few_rows"),
        (normal(500), np.full(500, np.nan), "no_values"),
        (np.full(500, np.nan), normal(500), "no_reference_values"),
        (np.full(500, 3.0), np.full(500, 3.0), "constant"),
        (np.full(500, 3.0), np.full(500, 4.0), "drifted"),
        (normal(500), np.full(500, np.inf), "drifted"),
        (normal(500), np.zeros(0), "no_values"),
        (np.zeros(0), np.zeros(0), "no_reference_values"),
        (normal(500), np.where(np.arange(500) % 5 < 2, np.nan, normal(500, seed=1)), "missing_changed"),
    ],
)
def test_every_odd_column_has_a_named_reason(before: np.ndarray, now: np.ndarray, reason: str) -> None:
    reference = Profile.of(pa.table({"x": before}))
    window = reference.empty().updated(pa.table({"x": now}))

    found = auto_verdicts(reference, window)["x"]

    assert found.reason == reason
    assert found.drifted == (reason in ("drifted", "missing_changed") or found.missing_changed)
    judge(reference, window)
    assert explain(reference.columns["x"], window.columns["x"]).rows == len(now)


def test_new_and_gone_columns_are_drift_by_name() -> None:
    reference = Profile.of(pa.table({"a": normal(50), "b": normal(50)}))
    window = Profile({"b": reference.columns["b"], "c": reference.columns["a"]})

    found = auto_verdicts(reference, window)

    assert [(name, one.reason, one.drifted) for name, one in found.items()] == [
        ("a", "gone_column", True),
        ("b", "within_threshold", False),
        ("c", "new_column", True),
    ]


def test_an_explanation_names_what_moved() -> None:
    random = np.random.default_rng(0)
    table = {"x": random.normal(10, 2, 4000), "c": random.choice(["AA", "DL"], 4000)}
    reference = Profile.of(pa.table(table))
    now = {"x": random.normal(14, 2, 1000), "c": random.choice(["AA", "B6"], 1000)}
    now["x"][:100] = np.nan
    window = reference.empty().updated(pa.table(now))

    number = explain(reference.columns["x"], window.columns["x"])
    assert number.shift == pytest.approx(2.0, abs=0.15)
    assert number.median_before == pytest.approx(10, abs=0.2)
    assert number.median_now == pytest.approx(14, abs=0.3)
    assert number.missing_now == pytest.approx(0.1)
    assert number.moved[0].change > 0.3
    assert number.sentence.startswith("median 9.936 → 14.04; mean 9.97 → 14.05 (+2 sd)")
    assert "missing 0.0% → 10.0%" in number.sentence

    code = explain(reference.columns["c"], window.columns["c"])
    assert {one.label for one in code.moved[:2]} == {"DL", "unseen"}
    assert code.strangers == {"B6": int(np.sum(now["c"] == "B6"))}
    assert code.shift is None
