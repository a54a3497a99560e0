"""The compiled tally counts what the sorting one counts, on every processor."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability import NumericColumn, native, native_tally
from observability.blocks import number_blocks
from observability.native_tally import MOST_EDGES, NativeTally, tally_over
from observability.tally import Tally

SOURCE = Path(native.__file__).with_name("tally.c")
AWKWARD = [0.0, -0.0, 5e-324, -5e-324, np.inf, -np.inf, np.nan, 1.7e308, -1.7e308, 1.0, np.nextafter(1.0, 2.0), 1e-300]
EDGES = {
    "none": np.empty(0),
    "closed bin": np.array([1.0, np.nextafter(1.0, 2.0)]),
    "few": np.array([-3.0, 0.0, 0.1, 1.0, 2.5]),
    "128 bins": np.linspace(-2.0, 2.0, 129),
    "most": np.linspace(-1e3, 1e3, MOST_EDGES),
    "to the end": np.array([-1.7976931348623157e308, 0.0, 1.7976931348623157e308]),
}
TYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "u8", "u1")


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """The functions compiled for any processor of this kind."""
    path = tmp_path_factory.mktemp("portable") / "tally.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") or ""
    subprocess.run([compiler, *native.FLAGS, str(SOURCE), "-o", str(path), "-lm"], check=True)
    loaded = native._declared(ctypes.CDLL(str(path)), "tally")
    return lambda name: loaded


@pytest.fixture(params=["this processor", "any processor"])
def compiled(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, portable: Callable[[str], ctypes.CDLL]
) -> None:
    if request.param == "any processor":
        monkeypatch.setattr(native_tally, "library", portable)


def assert_equal(found: NativeTally | Tally, wanted: Tally) -> None:
    assert found.counts().tolist() == wanted.counts().tolist()
    for name in ("rows", "missing", "nan", "positive_infinite", "negative_infinite", "zeros"):
        assert getattr(found, name) == getattr(wanted, name), name
    ours, theirs = found.moments, wanted.moments
    assert (ours.count, ours.minimum, ours.maximum) == (theirs.count, theirs.minimum, theirs.maximum)
    scale = max(abs(theirs.minimum), abs(theirs.maximum)) if theirs.count else 0.0
    assert ours.mean == pytest.approx(theirs.mean, rel=1e-9, abs=1e-12 * scale)
    assert ours.m2 == pytest.approx(theirs.m2, rel=1e-9, abs=1e-18 * scale * scale * theirs.count)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("rows", [1, 7, 1_023, 3_000, 60_000])
def test_counts_what_sorting_counts(edges: np.ndarray, rows: int) -> None:
    for kind in TYPES:
        assert_same_counts(edges, kind, rows)


def assert_same_counts(edges: np.ndarray, kind: str, rows: int) -> None:
    generator = np.random.default_rng(rows)
    drawn = generator.normal(size=rows) * 40
    if np.dtype(kind).kind != "f":
        drawn = np.abs(drawn)
    elif rows > 1:
        places = generator.integers(0, rows, rows // 6)
        drawn[places] = generator.choice(np.concatenate([AWKWARD[:7], edges[1:-1]]), len(places))
    with np.errstate(over="ignore"):
        values = drawn.astype(kind)
    valid = generator.random(rows) < 0.9
    found, wanted = NativeTally(edges), Tally(edges)
    for tally in (found, wanted):
        tally.add_all(number_blocks(pa.array(values)))
        tally.add_all(number_blocks(pa.array(values, mask=~valid)))
        tally.add_all([(values[::2][:49_152], None)])
    assert_equal(found, wanted)


@pytest.mark.usefixtures("compiled")
@given(st.lists(st.sampled_from(AWKWARD) | st.floats(allow_nan=True, width=32), max_size=40), st.sampled_from("fd"))
@settings(max_examples=60, deadline=None)
def test_any_numbers(values: list[float], kind: str) -> None:
    with np.errstate(over="ignore"):
        numbers = np.array(values, kind)
    for edges in EDGES.values():
        found, wanted = NativeTally(edges), Tally(edges)
        found.add_all([(numbers, None)])
        wanted.add_all([(numbers, None)])
        assert found.counts().tolist() == wanted.counts().tolist()
        assert (found.nan, found.zeros, found.positive_infinite) == (wanted.nan, wanted.zeros, wanted.positive_infinite)
        assert (found.moments.minimum, found.moments.maximum) == (wanted.moments.minimum, wanted.moments.maximum)
        assert not np.isnan(found.moments.mean)
        assert not np.isnan(found.moments.m2)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", ["f8", "f4"])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_moments_of_numbers_far_from_zero(kind: str, offset: float) -> None:
    values = (np.random.default_rng(3).normal(size=300_000) + offset).astype(kind)
    found = NativeTally(EDGES["128 bins"])
    found.add_all(number_blocks(pa.array(values)))
    exact = values.astype(np.longdouble)
    assert found.moments.mean == pytest.approx(float(exact.mean()), rel=1e-12)
    assert found.moments.m2 == pytest.approx(float(np.square(exact - exact.mean()).sum()), rel=1e-9)


@pytest.mark.usefixtures("compiled")
def test_sums_that_overflow() -> None:
    values = np.full(5_000, 1.7e308)
    values[::2] = 1.6e308
    found = NativeTally(EDGES["few"])
    found.add_all(number_blocks(pa.array(values)))
    assert found.moments.mean == pytest.approx(1.65e308, rel=1e-9)
    assert found.moments.m2 == np.inf


def test_numpy_counts_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    values = pa.chunked_array([np.random.default_rng(4).normal(size=100_000)])
    empty = NumericColumn.layout(values)
    compiled = empty.updated(values)
    monkeypatch.setattr(native_tally, "library", lambda name: None)
    assert isinstance(tally_over(empty.edges), Tally)
    sorted_ = empty.updated(values)
    assert sorted_.counts.tolist() == compiled.counts.tolist()
    assert sorted_.mean == pytest.approx(compiled.mean, rel=1e-9)
    assert sorted_.m2 == pytest.approx(compiled.m2, rel=1e-9)


def test_more_edges_than_the_compiled_search_holds() -> None:
    edges = np.linspace(0.0, 1.0, MOST_EDGES + 1)
    values = np.random.default_rng(5).random(10_000)
    assert isinstance(tally_over(edges), Tally)
    assert NumericColumn.over(edges).updated(pa.array(values)).counts[1:-1].tolist() == (
        np.histogram(values, edges)[0].tolist()
    )
