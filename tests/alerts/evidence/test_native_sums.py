"""Compiled sums have the bits of those in Python, and both those that verdicts of earlier releases were made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.evidence import (
    Pace,
    Segment,
    Slow,
    errors,
    latency,
    log_evidence,
    log_rate_safety,
    log_ratio_safety,
    log_split_evidence,
    sample_ratio,
    segments,
)
from alerts.evidence.native_sums import native_sums

BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0)
SHARES = st.sampled_from([0.0, 0.01, 0.1, 1 / 3, 0.5, 0.98, 1.0])
WHOLE = st.integers(0, 10**6).map(float)
COUNTS = WHOLE | st.floats(0.0, 1e9)
ROWS = st.lists(st.tuples(SHARES, COUNTS, COUNTS), max_size=6)
ABOVE = st.lists(st.integers(0, 50).map(float), min_size=len(BOUNDS), max_size=len(BOUNDS)).map(tuple)
LOOKS = st.lists(st.tuples(ABOVE, ABOVE, st.integers(0, 60), st.integers(0, 60)), max_size=30)


@contextmanager
def in_python() -> Iterator[None]:
    """As on a machine without a compiler."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (segments, errors, sample_ratio, latency):
            patch.setattr(module, "native_sums", lambda: None)
        yield


def alike(call: Callable[[], object]) -> None:
    compiled = repr(call())
    with in_python():
        assert repr(call()) == compiled


def paced(looks: Sequence[tuple[tuple[float, ...], tuple[float, ...], int, int]], since_any: bool) -> Pace:
    pace = Pace()
    for canary, stable, asked, others in looks:
        look = Slow(0.1, canary, stable, float(asked), float(others))
        pace = pace.after((look,), BOUNDS, tolerance=1.05, floor_seconds=0.05, since_any=since_any)
    return pace


def test_the_sums_are_compiled_where_there_is_a_compiler() -> None:
    assert native_sums() is not None


@given(ROWS, st.sampled_from([1.0, 1.2, 3.0]), st.sampled_from([1.5, 2.0]))
def test_mixtures_over_ratios_have_the_same_bits(
    rows: list[tuple[float, float, float]], tolerance: float, ratio: float
) -> None:
    parts = [Segment(rho, canary, canary + stable) for rho, canary, stable in rows]
    alike(lambda: (log_evidence(parts, tolerance=tolerance), log_ratio_safety(parts, ratio)))


@given(COUNTS, COUNTS, st.sampled_from([0.001, 0.01, 0.3]))
def test_mixtures_over_rates_have_the_same_bits(failed: float, clean: float, rate: float) -> None:
    requests = failed + clean
    alike(lambda: log_rate_safety(min(failed, requests), requests, rate))


@given(ROWS)
def test_the_split_has_the_same_bits(rows: list[tuple[float, float, float]]) -> None:
    alike(lambda: log_split_evidence(rows))


@given(LOOKS, st.booleans())
def test_bets_on_slower_answers_have_the_same_bits(
    looks: Sequence[tuple[tuple[float, ...], tuple[float, ...], int, int]], since_any: bool
) -> None:
    alike(lambda: (paced(looks, since_any), paced(looks, since_any).evidence()))


def test_verdicts_of_earlier_releases_are_made_of_the_same_bits() -> None:
    rows = [(0.01, 7.0, 60.0), (0.1, 31.0, 170.0), (0.5, 90.5, 171.0)]
    parts = [Segment(*row) for row in rows]
    looks = [((9.0, 5.0 + n % 3, 2.0, 0.0, 0.0), (70.0, 30.0 + n % 7, 8.0, 1.0, 0.0), 11, 97) for n in range(40)]

    def found() -> list[str]:
        values = [
            log_evidence(parts), log_evidence(parts, tolerance=1.2), log_ratio_safety(parts, 2.0),
            log_rate_safety(3.0, 5000.0, 0.01), log_split_evidence([(0.1, 480.0, 4200.0), (0.5, 900.0, 950.0)]),
            paced(looks, since_any=False).evidence().log_evidence, paced(looks, since_any=True).evidence().log_evidence,
        ]  # fmt: skip
        return [value.hex() for value in values]

    assert found() == EARLIER
    with in_python():
        assert found() == EARLIER


def test_what_cannot_be_is_refused_alike() -> None:
    refused: tuple[tuple[Callable[[], float], str], ...] = (
        (lambda: log_split_evidence([(0.5, -1.0, 1.0)]), "counts are at least 0"),
        (lambda: log_split_evidence([(0.0, 1.0, 1.0), (1.5, 1.0, 1.0)]), "propensity is a probability"),
        (lambda: log_rate_safety(3.0, 2.0, 0.01), "within requests"),
        (lambda: log_evidence([Segment(0.1, 1.0, 1.0)], tolerance=-1.0), "above 0"),
    )
    for call, wrong in refused:
        with pytest.raises(ValueError, match=wrong):
            call()
        with in_python(), pytest.raises(ValueError, match=wrong):
            call()
    assert log_split_evidence([(0.0, 1.0, 1.0)]) == math.inf


# Logarithms of e-values as the release before the sums were compiled gave them.
EARLIER = [
    "0x1.647f20e6703f7p+1",
    "-0x1.d1cb019359b50p-1",
    "-0x1.ef422ea3c78b0p-3",
    "0x1.243095114f009p+5",
    "-0x1.50ff111f56c80p+1",
    "0x1.a5218d92bcd83p+4",
    "0x1.afe0532756f73p+4",
]
