"""`method="evidently"` against Evidently itself: one test, threshold, score and decision on every kind of column."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pandas as pd
import pytest

from collectors.drift.compare import compare
from collectors.drift.comparison import Comparison
from collectors.drift.evidently_method import sturges_edges

# (rows of the reference, of the current table, shift): each side of 1,000 rows, equal and unequal.
SIZES = ((500, 500, 0.0), (1000, 600, 0.3), (1001, 900, 0.4), (1500, 1500, 0.05))
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def zoo(rows: int, shift: float, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    moved = shift > 0
    columns: dict[str, Any] = {
        "normal": random.normal(shift, 1, rows),
        "skewed": random.lognormal(shift, 1, rows),
        "heavy": random.standard_t(2, rows) + shift,
        "tiny": random.normal(shift, 1, rows) * 1e-5,
        "single": random.normal(shift, 1, rows).astype(np.float32),
        "half": random.normal(shift, 1, rows).astype(np.float16),
        "halves": random.choice([0.5, 1.5, 7.0], rows),
        "constant": np.full(rows, 3.0),
        "moved_constant": np.full(rows, 3.0 + shift),
        "large": random.integers(0, 10**12, rows),
    }
    for values in (2, 3, 4, 5, 6, 15, 30):
        columns[f"integers_{values}"] = random.integers(0, values, rows) + moved * (random.random(rows) < 0.1)
    columns["with_nulls"] = np.where(random.random(rows) < 0.3, np.nan, random.normal(shift / 2, 1, rows))
    broken = random.normal(0, 1, rows)
    broken[:3] = [np.inf, -np.inf, np.nan]
    columns["with_infinities"] = broken
    columns["truth"] = random.random(rows) < 0.3 + shift * 0.1
    columns["rare_truth"] = random.random(rows) < 0.002
    for size in (2, 3, 10, 200):
        weights = np.arange(1, size + 1) ** (-0.5 - shift)
        columns[f"categories_{size}"] = random.choice([f"c{n}" for n in range(size)], rows, p=weights / weights.sum())
    missing = random.choice(["a", "b", "c"], rows).astype(object)
    missing[random.random(rows) < 0.2] = None
    columns["categories_with_nulls"] = missing
    columns["categories_new"] = random.choice(["a", "b", *(["new"] if moved else [])], rows)
    columns["categories_one"] = np.full(rows, "x", dtype=object)
    return pd.DataFrame(columns)


@pytest.fixture(scope="module")
def found() -> list[tuple[dict[str, tuple[float, str, float, bool]], float, Comparison]]:
    os.environ["DO_NOT_TRACK"] = "1"
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift
    from evidently.metrics.column_statistics import ValueDriftCalculation

    results = []
    patch = pytest.MonkeyPatch()
    patch.setattr(ValueDriftCalculation, "_render", lambda *_: [])  # drawing takes longer than judging
    for n, m, shift in SIZES:
        before, now = zoo(n, 0.0, 1), zoo(m, shift, 2)
        categorical = [name for name in before if name.startswith("categories") or name.endswith("truth")]
        numeric = [name for name in before if name not in categorical]
        definition = DataDefinition(numerical_columns=numeric, categorical_columns=categorical)
        metrics = [ValueDrift(column=name) for name in before]
        datasets = [Dataset.from_pandas(frame, data_definition=definition) for frame in (now, before)]
        answer = Report(metrics, include_tests=True).run(*datasets).dict()
        failed = {test["metric_config"]["params"]["column"]: "FAIL" in str(test["status"]) for test in answer["tests"]}
        scores = {
            metric["config"]["column"]: (
                float(metric["value"]),
                metric["config"]["method"],
                float(metric["config"]["threshold"]),
                failed[metric["config"]["column"]],
            )
            for metric in answer["metrics"]
        }
        share = sum(failed.values()) / len(failed)
        kinds = {name: "categorical" for name in categorical if name.startswith("categories")}
        results.append((scores, share, compare(before, now, method="evidently", kinds=kinds)))
    patch.undo()
    return results


def test_scores_tests_thresholds_and_decisions_are_evidentlys(found: list[Any]) -> None:
    different = []
    for (n, m, _), (scores, _, ours) in zip(SIZES, found, strict=True):
        assert scores.keys() == ours.columns.keys()
        for name, (score, method, threshold, drifted) in scores.items():
            column = ours.columns[name]
            same = column.score == pytest.approx(score, abs=1e-9) and (
                column.method,
                column.threshold,
                column.drifted,
            ) == (method, threshold, drifted)
            if not same:
                different.append((n, m, name, score, column.score, method, column.method, drifted, column.drifted))

    assert different == []


def test_the_share_rule_is_evidentlys(found: list[Any]) -> None:
    for _, share, ours in found:
        assert ours.drifted_share == pytest.approx(share)
        assert ours.drifted == (share >= 0.5)


def test_the_zoo_holds_every_test_and_both_decisions(found: list[Any]) -> None:
    methods = {(method, drifted) for scores, _, _ in found for _, method, _, drifted in scores.values()}

    for method in (
        "K-S p_value",
        "chi-square p_value",
        "Z-test p_value",
        "Wasserstein distance (normed)",
        "Jensen-Shannon distance",
    ):
        assert {(method, True), (method, False)} <= methods, method


@pytest.mark.parametrize("name", ["psi", "jensenshannon", "hellinger"])
def test_distances_are_over_evidentlys_bins(name: str, found: list[Any]) -> None:
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    field = {"psi": "psi", "jensenshannon": "js_distance", "hellinger": "hellinger"}[name]
    for (n, m, shift), (_, _, ours) in zip(SIZES, found, strict=True):
        before, now = zoo(n, 0.0, 1), zoo(m, shift, 2)
        for column in (
            "normal",
            "skewed",
            "large",
            "integers_5",
            "integers_30",
            "with_nulls",
            "categories_200",
            "truth",
        ):
            kind = ColumnType.Categorical if column in ("categories_200", "truth") else ColumnType.Numerical
            r, c = (frame[column].replace([-np.inf, np.inf], np.nan).dropna().copy() for frame in (before, now))
            expected = get_stattest(r, c, kind, name)(r, c, kind, 0.1).drift_score
            assert getattr(ours.columns[column], field) == pytest.approx(expected, abs=1e-9), (n, column)


def test_text_is_judged_by_evidentlys_domain_classifier() -> None:
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    random = np.random.default_rng(3)

    def texts(rows: int, words: int) -> pd.Series:
        return pd.Series([" ".join(f"word{n}" for n in random.integers(0, words, 6)) for _ in range(rows)])

    for n, m, words in ((60, 60, 80), (1100, 300, 80), (1100, 300, 140)):
        before, now = texts(n, 80), texts(m, words)
        test = get_stattest(before, now, ColumnType.Text, None)
        expected = test(before, now, ColumnType.Text, None)

        column = compare({"t": before.to_numpy()}, {"t": now.to_numpy()}, method="evidently").columns["t"]

        assert column.type == "text"
        assert column.score == pytest.approx(expected.drift_score, abs=1e-9)
        assert (column.method, column.drifted) == (test.display_name, expected.drifted)


@pytest.mark.parametrize(
    ("low", "high", "size"), [(0.0, 1.0, 100), (-5.0, 3.0, 12345), (2.0, 2.0, 50), (0.0, 7.0, 1000)]
)
def test_sturges_edges_are_numpys(low: float, high: float, size: int) -> None:
    values = np.linspace(low, high, size)
    whole = np.linspace(low, high, size).astype(np.int64)

    assert sturges_edges(low, high, size, False) == pytest.approx(np.histogram_bin_edges(values, "sturges"))
    assert sturges_edges(int(low), int(high), size, True) == pytest.approx(np.histogram_bin_edges(whole, "sturges"))


def test_text_of_which_nothing_can_be_learned_does_not_take_the_verdicts_of_other_columns() -> None:
    random = np.random.default_rng(3)
    table = {
        "t": [" ".join(words) for words in random.choice(["one", "two"], (200, 5))],
        "x": random.normal(size=200),
        "e": list(random.normal(size=(200, 3))),
    }
    moved = {**table, "x": table["x"] + 1, "e": [vector + 5 for vector in table["e"]]}

    found = compare(table, moved, method="evidently", kinds={"t": "text"})

    assert found.columns["x"].drifted
    assert (found.columns["t"].score, found.columns["t"].drifted) == (None, False)
    assert found.columns["t"].reason.startswith("not judged by this method; Evidently's method for text cannot learn")
    # Moved far, but Evidently compares no vectors.
    assert (found.columns["e"].method, found.columns["e"].reason) == (None, "not judged by this method")
    assert found.drifted_share == 1.0
