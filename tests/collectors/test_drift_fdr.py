"""Many checks at once: the share of false alarms stays where it was set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from collectors.drift.auto import judge_cells
from collectors.drift.cells import Cells
from collectors.drift.fdr import benjamini_hochberg, cut, e_bh, e_value, p_value
from collectors.drift.thresholds import DriftThresholds

chances = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(pvalues=chances)
def test_q_values_are_scipys(pvalues: list[float]) -> None:
    np.testing.assert_allclose(
        benjamini_hochberg(np.array(pvalues)), stats.false_discovery_control(pvalues), rtol=1e-12
    )


@given(pvalues=chances, alpha=st.sampled_from([0.01, 0.05, 0.2]))
@example(pvalues=[0.0, 0.0, 0.0], alpha=0.05)
def test_the_cut_selects_what_the_q_values_select(pvalues: list[float], alpha: float) -> None:
    p = np.array(pvalues)
    at = cut(p, alpha)

    assert (p <= at * (1 + 1e-12)).sum() == (benjamini_hochberg(p) <= alpha).sum()
    assert alpha / len(p) <= at <= alpha


@given(evalues=st.lists(st.floats(0, 1e6), min_size=1, max_size=30), alpha=st.sampled_from([0.01, 0.1]))
def test_e_bh_rejects_the_largest_set_that_has_the_evidence(evalues: list[float], alpha: float) -> None:
    e = np.array(evalues)
    ordered = np.sort(e)[::-1]
    largest = max((k for k in range(1, len(e) + 1) if k * ordered[k - 1] >= len(e) / alpha), default=0)

    rejected = e_bh(e, alpha)

    assert rejected.sum() == largest
    assert not largest or e[rejected].min() >= ordered[largest - 1]


def test_e_bh_keeps_the_rate_though_the_columns_depend_on_each_other() -> None:
    random = np.random.default_rng(0)
    common = random.standard_normal((4000, 1))
    p = stats.norm.sf(0.9 * common + np.sqrt(1 - 0.81) * random.standard_normal((4000, 20)))
    evidence = e_value(p, 0.5)

    assert np.mean([e_bh(row, 0.1).any() for row in evidence]) <= 0.1


@pytest.mark.parametrize("kappa", [None, 0.1, 0.5, 0.9])
def test_evidence_has_the_expectation_one_when_nothing_is_there(kappa: float | None) -> None:
    # In u = −ln p, where the integrand is smooth; the mixture's tail 1/u² is integrated to infinity.
    expectation, _ = integrate.quad(lambda u: float(e_value(np.array([np.exp(-u)]), kappa)[0]) * np.exp(-u), 0, 600)
    beyond = 1 / 600 if kappa is None else np.exp(-600 * kappa)

    assert expectation + beyond == pytest.approx(1, abs=1e-3)


@given(p=st.floats(1e-300, 1), other=st.floats(1e-300, 1))
@settings(max_examples=200)
def test_smaller_p_values_are_more_evidence(p: float, other: float) -> None:
    low, high = sorted((p, other))
    for kappa in (None, 0.5):
        more, less = e_value(np.array([low, high]), kappa)
        assert more >= less * (1 - 1e-7)


def test_evidence_back_to_a_p_value() -> None:
    np.testing.assert_allclose(p_value(np.array([0.0, 0.5, 1.0, 20.0])), [1, 1, 1, 0.05])


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        benjamini_hochberg(np.array([0.5, wrong]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        e_value(np.array([wrong]))


def test_what_is_no_evidence_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        e_bh(np.array([1.0, -1.0]), 0.1)
    with pytest.raises(ValueError, match="kappa"):
        e_value(np.array([0.5]), 1.0)
    assert len(e_bh(np.zeros(0), 0.1)) == 0


def test_at_most_one_tick_in_twenty_alarms_with_two_hundred_columns() -> None:
    random, ticks = np.random.default_rng(11), 60
    limits = DriftThresholds(alpha=0.05, distance=0.0)
    alarms = raw = 0
    for _ in range(ticks):
        before = random.multinomial(5000, np.ones(64) / 64, 200)
        now = random.multinomial(500, np.ones(64) / 64, 200)
        found = judge_cells({str(i): (Cells(before[i], now[i], True),) for i in range(200)}, limits)
        alarms += any(verdict.drifted for verdict in found.values())
        raw += any(verdict.p_value <= 0.05 for verdict in found.values())

    assert raw == ticks
    assert alarms / ticks <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / ticks)
