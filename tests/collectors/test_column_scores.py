"""The statistics of many columns at once are those of each column by itself, from the single functions."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from collectors.drift import (
    column_scores,
    compare,
    hellinger,
    jensen_shannon,
    kolmogorov_smirnov,
    kolmogorov_smirnov_bound,
    native_sums,
    psi,
    regroup_ordered,
    total_variation,
    wasserstein,
)
from collectors.drift.column_scores import (
    Scores,
    block_scores,
    category_scores,
    category_scores_each,
    cell_scores,
    cell_scores_each,
)
from collectors.drift.comparison import Sides
from collectors.drift.distances import distances_of
from collectors.drift.null import ordered_test
from collectors.drift.number_block import number_blocks
from observability.columns import NumericColumn
from observability.profile import Profile

ROWS = st.integers(12, 600)
LAW = ("first", "second", "third", "largest", "next_largest")


def tables(seed: int, rows: int, others: int) -> tuple[Profile, Profile]:
    """Smooth, tied, constant, skewed, shifted, partly missing and equal columns."""
    random = np.random.default_rng(seed)

    def table(size: int, shift: float) -> dict[str, np.ndarray]:
        holes = random.normal(size=size)
        holes[random.random(size) < 0.2] = np.nan
        return {
            **{f"n{i}": random.normal(shift * i / 4, 1 + i, size) for i in range(6)},
            **{f"i{i}": random.integers(0, 1 + 5 * i, size) + 0.0 for i in range(5)},
            "constant": np.full(size, 3.0 + (shift > 0.5)),
            "skewed": random.exponential(1 + shift, size) ** 4,
            "holes": holes,
        }

    before = Profile.of(table(rows, 0.0))
    return before, before.empty().updated(table(others, random.uniform(0, 1)))


def alone(before: NumericColumn, now: NumericColumn) -> Scores:
    """What the single functions say of one column."""
    r, w = before.counts / before.count, now.counts / now.count
    few = regroup_ordered(before.counts, now.counts, 10)
    ranges = ((before.minimum, before.maximum), (now.minimum, now.maximum))
    deviation = math.sqrt(before.variance)
    normed = wasserstein(before.counts, now.counts, before.edges, deviation, *ranges)
    ks = kolmogorov_smirnov(before.counts, now.counts)
    low = min(before.minimum, now.minimum, before.edges[0])
    high = max(before.maximum, now.maximum, before.edges[-1])
    widths = np.diff(np.concatenate([[low], before.edges, [high]]))
    widths[1:-1] /= 2
    weights = (r + np.append(r[1:], 0.0)) / 2
    return {
        "psi": psi(*few),
        "js_distance": jensen_shannon(*few),
        "hellinger": hellinger(*few),
        "total_variation": total_variation(*few),
        "ks": ks,
        "ks_pvalue": float(stats.kstwo.sf(ks, max(round(before.count * now.count / (before.count + now.count)), 1))),
        "ks_error": kolmogorov_smirnov_bound(before.counts, now.counts),
        "cramer_von_mises": float(np.sum(weights * np.square(np.cumsum(r - w)))),
        "wasserstein": normed * max(deviation, 0.001),
        "wasserstein_normed": normed,
        "wasserstein_error": float(np.sum(widths * (r + w))),
    }


@given(seed=st.integers(0, 2**32 - 1), rows=ROWS, others=ROWS)
@settings(max_examples=40, deadline=None)
def test_numbers_together_have_the_scores_that_they_have_alone(seed: int, rows: int, others: int) -> None:
    before, now = tables(seed, rows, others)
    by_cells: dict[int, list[str]] = {}
    for name, column in before.columns.items():
        by_cells.setdefault(len(column.counts), []).append(name)

    for names in by_cells.values():
        pairs = [(before.columns[name], now.columns[name]) for name in names]
        together = cell_scores_each(pairs)  # type: ignore[arg-type]

        for (one, other), found in zip(pairs, together, strict=True):
            assert isinstance(one, NumericColumn)
            assert isinstance(other, NumericColumn)
            expected = alone(one, other)
            assert found.keys() == expected.keys()
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
            assert found == pytest.approx(cell_scores(one, other), rel=1e-12, abs=1e-14)


@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 70), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_categories_together_have_the_scores_that_they_have_alone(seed: int, sizes: list[int]) -> None:
    random = np.random.default_rng(seed)
    pairs = [(random.multinomial(80, np.ones(n) / n), random.multinomial(50, np.ones(n) / n)) for n in sizes]

    together = category_scores_each(pairs)

    for (before, now), found in zip(pairs, together, strict=True):
        held = (before + now) > 0
        table = np.array([before[held], now[held]])
        expected = {
            "psi": psi(before[held], now[held]),
            "js_distance": jensen_shannon(before, now),
            "hellinger": hellinger(before, now),
            "total_variation": total_variation(before, now),
            "chi2_pvalue": float(stats.chi2_contingency(table, correction=False).pvalue) if held.sum() > 1 else 1.0,
        }
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert found == pytest.approx(category_scores(before, now), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("method", ["psi", "ks", "wasserstein"])
def test_a_column_gets_one_verdict_alone_and_among_others(method: str) -> None:
    before, now = tables(7, 500, 400)
    whole = compare(before, now, mode="profile", method=method)

    for name, column in whole.columns.items():
        single = compare(Profile({name: before.columns[name]}), Profile({name: now.columns[name]}), method=method)
        assert single.columns[name].score == pytest.approx(column.score, rel=1e-12, abs=1e-14)
        assert single.columns[name].threshold == column.threshold
        assert (single.columns[name].missing, single.rows) == (column.missing, whole.rows)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rows=ROWS, others=ROWS)
def test_compiled_code_finds_what_numpy_does(seed: int, rows: int, others: int) -> None:
    before, now = tables(seed, rows, others)
    pairs = {name: Sides(column, now.columns[name]) for name, column in before.columns.items()}
    blocks, _ = number_blocks(pairs)

    def found() -> list[dict[str, np.ndarray]]:
        answers = []
        for block in blocks:
            scores, law = ordered_test(block.counts.reference, block.counts.current)
            answers.append({**block_scores(block), "score": scores, **{name: getattr(law, name) for name in LAW}})
        return answers

    compiled = found()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_sums, "native_sums", lambda: None)
        patch.setattr(column_scores, "native_sums", lambda: None)
        by_numpy = found()
    for one, other in zip(compiled, by_numpy, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert np.allclose(values, other[name], rtol=1e-12, atol=1e-12, equal_nan=True), name


def test_a_live_windows_distance_in_deviations_is_none_where_the_variance_overflows() -> None:
    values = np.random.default_rng(6).normal(size=1_000)
    for size, known in ((1e150, True), (1e200, False)):
        reference = Profile.of(pa.table({"x": values * size}))
        window = reference.empty().updated(pa.table({"x": (values + 1) * size}))
        found = distances_of([], {"x": Sides(reference.columns["x"], window.columns["x"])}, 10)["x"]

        assert found.wasserstein == (pytest.approx(1.0, rel=0.05) if known else None)
