"""Two tables compared: scipy's numbers from rows, bounds from profiles, one verdict from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from collectors.drift.compare import compare, saved_profile
from collectors.drift.methods import DISTANCES, METHODS, TESTS
from collectors.drift.source import InputError
from observability.profile import Profile


def flights(rows: int, shift: float = 0.0, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "temp": pa.array(random.normal(shift, 1, rows), mask=random.random(rows) < 0.1),
            "delay": random.lognormal(shift, 1, rows),
            "seats": random.integers(0, 6, rows),
            "carrier": random.choice(["AA", "DL", "UA", "B6"], rows, p=[0.4 + shift / 10, 0.3, 0.2, 0.1 - shift / 10]),
            "late": random.random(rows) < 0.3 + shift / 10,
        }
    )


def finite(table: pa.Table, name: str) -> np.ndarray[Any, Any]:
    values = table.column(name).drop_null().to_numpy().astype(float)
    return values[np.isfinite(values)]


def counts(first: pa.Table, second: pa.Table, name: str) -> tuple[list[int], list[int]]:
    one, two = (pd.Series(table.column(name).drop_null().to_pylist()).value_counts() for table in (first, second))
    labels = sorted(set(one.index) | set(two.index))
    return [int(one.get(label, 0)) for label in labels], [int(two.get(label, 0)) for label in labels]


@pytest.mark.parametrize(("n", "m"), [(900, 900), (500, 1300), (12_000, 10_500)])
def test_exact_statistics_are_scipys(n: int, m: int) -> None:
    before, now = flights(n), flights(m, 0.2, seed=1)

    found = compare(before, now, mode="exact")

    for name in ("temp", "delay", "seats"):
        column, (a, b) = found.columns[name], (finite(before, name), finite(now, name))
        test = stats.ks_2samp(a, b)
        assert column.ks == pytest.approx(test.statistic, abs=1e-12)
        assert column.ks_pvalue == pytest.approx(test.pvalue, abs=1e-9)
        assert column.wasserstein == pytest.approx(stats.wasserstein_distance(a, b), abs=1e-9)
        assert column.wasserstein_normed == pytest.approx(stats.wasserstein_distance(a, b) / a.std(), abs=1e-9)
        assert column.chi2_pvalue is None
    for name in ("carrier", "late"):
        column, (r, c) = found.columns[name], counts(before, now, name)
        assert column.chi2_pvalue == pytest.approx(stats.chi2_contingency([r, c], correction=False).pvalue, abs=1e-9)
        assert column.js_distance == pytest.approx(jensenshannon(r, c), abs=1e-9)
        assert column.ks is None
    assert found.rows.to_json() == {"reference": n, "current": m}
    assert found.mode == "exact"


def test_profiles_give_the_same_verdicts_within_their_bounds() -> None:
    before, now = flights(6000), flights(4000, 0.1, seed=2)

    exact, counted = compare(before, now, mode="exact"), compare(before, now, mode="profile")

    for name, column in exact.columns.items():
        other = counted.columns[name]
        assert other.score == pytest.approx(column.score, abs=1e-12)
        assert (other.drifted, other.missing, other.method) == (column.drifted, column.missing, column.method)
        for statistic in ("psi", "js_distance", "hellinger", "total_variation", "chi2_pvalue"):
            assert getattr(other, statistic) == pytest.approx(getattr(column, statistic), abs=1e-12)
        if column.ks is not None:
            assert other.ks is not None
            assert other.ks - 1e-12 <= column.ks <= other.ks + other.ks_error + 1e-12
            assert abs(other.wasserstein - column.wasserstein) <= other.wasserstein_error


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
)
def test_the_bounds_of_profiles_hold_for_any_numbers(a: list[float], b: list[float]) -> None:
    before, now = {"x": np.array(a)}, {"x": np.array(b)}

    exact = compare(before, now, mode="exact").columns["x"]
    counted = compare(before, now, mode="profile").columns["x"]

    both = np.array(sorted({*a, *b}))
    distributions = [np.searchsorted(np.sort(side), both, "right") / len(side) for side in (a, b)]
    assert exact.ks == pytest.approx(np.abs(distributions[0] - distributions[1]).max(), abs=1e-12)
    assert counted.ks - 1e-9 <= exact.ks <= counted.ks + counted.ks_error + 1e-9
    assert abs(counted.wasserstein - exact.wasserstein) <= counted.wasserstein_error * (1 + 1e-9) + 1e-6
    assert counted.missing == exact.missing


def test_every_way_to_hand_over_a_table_gives_the_same(tmp_path: Path) -> None:
    before, now = flights(1500), flights(1500, 0.5, seed=3)
    for name, table in (("before", before), ("now", now)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.json").write_bytes(saved_profile(table))
    ways: list[tuple[Any, Any]] = [
        (before.to_batches()[0], pa.RecordBatchReader.from_batches(now.schema, now.to_batches())),
        (before.to_pandas(), now.to_pandas()),
        ({name: before[name].to_pylist() for name in before.schema.names}, now),
        (tmp_path / "before.parquet", str(tmp_path / "now.parquet")),
        (ds.dataset(tmp_path / "before.parquet"), ds.dataset(tmp_path / "now.parquet")),
        (Profile.of(before), now),
        (tmp_path / "before.json", tmp_path / "now.parquet"),
        (saved_to(tmp_path / "again.json", saved_profile(tmp_path / "before.json")), now),
    ]
    expected = compare(before, now)

    for one, two in ways:
        found = compare(one, two)

        assert {name: column.drifted for name, column in found.columns.items()} == {
            name: column.drifted for name, column in expected.columns.items()
        }
        assert found.columns["delay"].score == pytest.approx(expected.columns["delay"].score, abs=1e-12)
        assert found.drifted_share == expected.drifted_share
    assert compare(before, now).columns["delay"].type == "numeric"


def saved_to(path: Path, body: bytes) -> Path:
    path.write_bytes(body)
    return path


def test_missing_values_are_counted_and_their_change_is_drift() -> None:
    random = np.random.default_rng(5)
    values = random.normal(size=2000)
    before = pa.table({"x": values, "y": values, "z": values})
    now = pa.table(
        {
            "x": pa.array(values, mask=random.random(2000) < 0.4),
            "y": np.where(random.random(2000) < 0.4, np.nan, values),
            "z": values,
        }
    )

    found = compare(before, now)

    for name in ("x", "y"):
        column = found.columns[name]
        assert column.missing.reference == 0
        assert 700 < column.missing.current < 900
        assert column.drifted
        assert column.missing_changed
        assert "missing went from 0.0% to" in column.reason
    assert not found.columns["z"].drifted
    assert found.drifted
    assert found.drifted_share == pytest.approx(2 / 3)


def test_columns_without_values_get_a_verdict_and_a_reason() -> None:
    nothing, something = pa.nulls(500, pa.float64()), pa.array(np.arange(500.0))
    before = pa.table({"lost": something, "found": nothing, "never": nothing, "same": pa.array(np.ones(500))})
    now = pa.table({"lost": nothing, "found": something, "never": nothing, "same": pa.array(np.ones(500))})

    for mode in ("exact", "profile"):
        found = compare(before, now, mode=mode)

        reasons = {name: (column.drifted, column.reason.split(";")[0]) for name, column in found.columns.items()}
        assert reasons == {
            "lost": (True, "the current table has no values"),
            "found": (True, "the reference has no values"),
            "never": (False, "neither table has a value"),
            "same": (False, "one value in both tables"),
        }
        assert found.columns["lost"].to_json().keys().isdisjoint({"ks", "psi", "score", "wasserstein"})


def test_infinite_numbers_are_told_and_left_out_of_the_distances() -> None:
    values = np.random.default_rng(6).normal(size=1000)
    broken = values.copy()
    broken[:3] = [np.inf, -np.inf, np.nan]

    column = compare({"x": values}, {"x": broken}).columns["x"]

    assert column.infinite is not None
    assert (column.infinite.current, column.missing.current) == (2, 1)
    assert column.wasserstein == pytest.approx(stats.wasserstein_distance(values, broken[3:]), abs=1e-9)
    assert not column.drifted


def test_one_outlier_hardly_moves_the_calibrated_score() -> None:
    random = np.random.default_rng(7)
    before, now = random.normal(size=20_000), random.normal(0.5, 1, 20_000)
    wild = now.copy()
    wild[0] = 1e6

    scores = [compare({"x": before}, {"x": current}).columns["x"].score for current in (now, wild)]

    assert scores[1] == pytest.approx(scores[0], rel=0.05)


@pytest.mark.parametrize("method", [*DISTANCES, *TESTS])
def test_a_named_method_decides_by_its_own_statistic(method: str) -> None:
    before, now, same = flights(3000), flights(3000, 1.0, seed=8), flights(3000, seed=21)

    for mode in ("exact", "profile"):
        moved, still = (compare(before, other, method=method, mode=mode, alpha=0.001) for other in (now, same))

        assert moved.columns["temp"].drifted
        assert moved.columns["carrier"].drifted
        assert not still.columns["temp"].drifted
        assert not still.columns["carrier"].drifted
        if method in DISTANCES:
            assert moved.columns["temp"].method == method
            assert moved.columns["temp"].score >= moved.columns["temp"].threshold
        else:
            assert moved.columns["temp"].score == moved.columns["temp"].p_value < 0.001
        assert (
            not compare(before, now, method=method, threshold=1e9 if method in DISTANCES else 1e-300)
            .columns["carrier"]
            .drifted
        )


def test_the_tests_of_named_methods_are_scipys() -> None:
    before, now = flights(700), flights(900, 0.1, seed=10)
    a, b = finite(before, "temp"), finite(now, "temp")
    table = counts(before, now, "carrier")

    cramer = compare(before, now, method="cramer_von_mises").columns["temp"]
    g = compare(before, now, method="g").columns["carrier"]
    kolmogorov = compare(before, now, method="ks").columns["temp"]

    assert cramer.score == pytest.approx(stats.cramervonmises_2samp(a, b).pvalue, abs=1e-9)
    assert g.score == pytest.approx(
        stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").pvalue, abs=1e-9
    )
    assert kolmogorov.score == pytest.approx(stats.ks_2samp(a, b).pvalue, abs=1e-9)


def test_an_unknown_method_or_a_wrong_number_is_refused() -> None:
    table = flights(100)

    for arguments, words in (
        ({"method": "magic"}, "no method 'magic'"),
        ({"threshold": -1.0}, "must be positive"),
        ({"alpha": 2.0}, "alpha lies between 0 and 1"),
        ({"mode": "fast"}, "no mode 'fast'"),
        ({"engine": "duck"}, "no engine 'duck'"),
        ({"window": "1d"}, "--window 1d --time COLUMN"),
        ({"window": "soon", "time": "temp"}, "not a length of time"),
        ({"columns": ["temp", "wind"]}, "'wind' is not in the reference"),
        ({"kinds": {"temp": "colour"}}, "cannot be of the kind 'colour'"),
        ({"kinds": {"wind": "numeric"}}, "no such column"),
        ({"by": "wind"}, "no column 'wind'"),
        ({"window": "1d", "time": "wind"}, "no column 'wind'"),
    ):
        with pytest.raises(InputError, match=words):
            compare(table, table, **arguments)
    assert "auto" in METHODS


def test_columns_and_kinds_are_what_the_caller_says() -> None:
    before, now = flights(2000), flights(2000, seed=11)

    found = compare(before, now, columns=["seats", "late"], kinds={"seats": "categorical"})

    assert list(found.columns) == ["seats", "late"]
    assert found.columns["seats"].type == "categorical"
    r, c = counts(before, now, "seats")
    assert found.columns["seats"].js_distance == pytest.approx(jensenshannon(r, c), abs=1e-12)
    assert found.only_in_reference == ()


def test_a_comparison_for_each_value_puts_the_worst_first() -> None:
    random = np.random.default_rng(12)
    place = random.choice(["north", "south", "west"], 6000)
    before = pa.table({"x": random.normal(size=6000), "place": place, "y": random.normal(size=6000)})
    moved = np.where(place == "south", 1.0, 0.0) + random.normal(size=6000)
    now = pa.table({"x": moved, "place": np.where(place == "west", "east", place), "y": random.normal(size=6000)})

    for mode in ("exact", "profile"):
        found = compare(before, now, by="place", mode=mode)

        assert [part.label for part in found.values] == ["south", "north"]
        assert [part.comparison.drifted for part in found.values] == [True, False]
        assert found.values_only_in.to_json() == {"reference": ("west",), "current": ("east",)}
        assert found.values[0].comparison.rows.current == int(np.sum(place == "south"))
        assert set(found.values[0].comparison.columns) == {"x", "y"}
    json = found.to_json()
    assert json["by"] == "place"
    assert json["values"][0]["value"] == "south"
    assert json["values"][0]["columns"]["x"]["drifted"]


@pytest.mark.parametrize("written", ["timestamp", "text", "seconds", "date"])
def test_windows_tell_since_when_a_column_drifts(written: str) -> None:
    random = np.random.default_rng(13)
    rows = 6000
    days = random.integers(0, 6, rows)
    seconds = 1_767_225_600 + days * 86_400 + random.integers(0, 86_400, rows)  # from 2026-01-01
    x = random.normal(size=rows) + np.where(days >= 4, 1.0, 0.0)
    times: dict[str, Any] = {
        "timestamp": seconds.astype("datetime64[s]"),
        "text": np.datetime_as_string(seconds.astype("datetime64[s]")),
        "seconds": seconds,
        "date": seconds.astype("datetime64[s]").astype("datetime64[D]"),
    }
    before = pa.table({"x": random.normal(size=3000), "y": random.normal(size=3000)})
    now = pa.table({"x": x, "y": random.normal(size=rows), "at": times[written]})

    found = compare(before, now, window="1d", time="at")

    assert [part.start for part in found.windows] == [f"2026-01-0{day}T00:00:00Z" for day in range(1, 7)]
    assert [part.comparison.drifted for part in found.windows] == [False] * 4 + [True] * 2
    assert dict(found.since) == {"x": "2026-01-05T00:00:00Z"}
    assert sum(part.comparison.rows.current for part in found.windows) == rows
    assert found.to_json()["windows"][5]["end"] == "2026-01-07T00:00:00Z"


def test_dates_texts_and_embeddings_are_compared_too() -> None:
    random = np.random.default_rng(14)

    def table(hour: int, words: int, shift: float, seed: int) -> pa.Table:
        r = np.random.default_rng(seed)
        start = np.datetime64("2026-01-01", "s")
        days = r.integers(0, 28, 1500).astype("timedelta64[D]")
        at = start + days + r.integers(hour, hour + 8, 1500).astype("timedelta64[h]")
        texts = [" ".join(f"w{n}" for n in r.integers(0, 500, words + int(r.integers(0, 4)))) for _ in range(1500)]
        vectors = r.normal(shift, 1, (1500, 4))
        return pa.table(
            {
                "at": at,
                "text": texts,
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4),
            }
        )

    before = table(0, 5, 0.0, 1)

    same, moved = compare(before, table(0, 5, 0.0, 2)), compare(before, table(12, 9, 1.0, 3))

    assert {name: column.type for name, column in same.columns.items()} == {
        "at": "datetime", "text": "text", "vector": "embedding",
    }  # fmt: skip
    assert not same.drifted
    assert all(column.drifted for column in moved.columns.values())
    assert random is not None


def test_json_has_no_number_that_json_has_not() -> None:
    import json

    before = pa.table({"x": [1.0, np.inf, None, np.nan], "k": ["a", None, "b", "a"], "n": pa.nulls(4)})

    text = json.dumps(compare(before, before).to_json(), allow_nan=False)

    found = json.loads(text)
    assert set(found) >= {"rows", "columns", "drifted_share", "drifted", "seconds"}
    assert found["columns"]["x"]["missing"] == {"reference": 2, "current": 2}
    assert not found["drifted"]
