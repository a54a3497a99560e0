"""Times that moved: births and expiries are drift, what goes on from day to day is not."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from collectors.drift.compare import compare, saved_profile
from collectors.drift.comparison import ColumnComparison, Mode
from collectors.drift.histogram import bars_of
from collectors.drift.page import page
from collectors.drift.terminal import rendered
from observability.columns import DatetimeColumn
from observability.profile import Profile

DAY = 86_400
Draw = Callable[[np.random.Generator], np.ndarray]


def dates(days: np.ndarray) -> pa.Table:
    return pa.table({"t": pa.array(days.astype(np.int32), pa.int32()).cast(pa.date32())})


def times(days: np.ndarray) -> pa.Table:
    return pa.table({"t": pa.array((days * DAY * 1e6).astype(np.int64)).cast(pa.timestamp("us"))})


def found(before: pa.Table, now: pa.Table, mode: Mode = "exact") -> ColumnComparison:
    return compare(before, now, mode=mode).columns["t"]


def of(seed: int, draw: Draw) -> np.ndarray:
    return draw(np.random.default_rng(seed))


@pytest.mark.parametrize("mode", ["exact", "profile"])
@pytest.mark.parametrize(
    ("make", "before", "now"),
    [
        pytest.param(
            dates, lambda r: r.integers(-7000, 11000, 3000), lambda r: r.integers(-3350, 14650, 3000), id="births"
        ),
        pytest.param(dates, lambda r: r.normal(20000, 400, 3000), lambda r: r.normal(20200, 400, 3000), id="expiries"),
        pytest.param(dates, lambda r: r.integers(0, 900, 3000), lambda r: r.integers(-900, 0, 3000), id="backwards"),
        pytest.param(times, lambda r: r.normal(5000, 3650, 3000), lambda r: r.normal(8650, 3650, 3000), id="a bell"),
        pytest.param(
            times,
            lambda r: r.uniform(18000, 19000, 3000),
            lambda r: np.concatenate([r.uniform(18000, 19000, 2700), r.uniform(0, 700, 300)]),
            id="a few long ago",
        ),
    ],
)
def test_dates_that_moved_are_drift(
    make: Callable[[np.ndarray], pa.Table], before: Draw, now: Draw, mode: Mode
) -> None:
    moved = found(make(of(1, before)), make(of(2, now)), mode)
    same = found(make(of(1, before)), make(of(2, before)), mode)

    assert (moved.drifted, moved.method) == (True, "cdf_distance")
    assert "by its value" in moved.reason
    assert not same.drifted


@pytest.mark.parametrize("mode", ["exact", "profile"])
@pytest.mark.parametrize(
    ("make", "before", "now"),
    [
        pytest.param(times, lambda r: r.uniform(0, 28, 5000), lambda r: r.uniform(28, 56, 5000), id="next"),
        pytest.param(dates, lambda r: r.integers(0, 364, 5000), lambda r: r.integers(364, 728, 5000), id="next dates"),
        pytest.param(times, lambda r: r.uniform(0, 35, 5000), lambda r: r.uniform(21, 56, 5000), id="overlap"),
        pytest.param(times, lambda r: r.uniform(0, 364, 5000), lambda r: r.uniform(200, 242, 5000), id="within"),
        pytest.param(times, lambda r: r.uniform(0, 364, 5000), lambda r: r.uniform(357, 364, 5000), id="the last days"),
    ],
)
def test_times_of_events_that_went_on_are_none(
    make: Callable[[np.ndarray], pa.Table], before: Draw, now: Draw, mode: Mode
) -> None:
    went_on = found(make(of(3, before)), make(of(4, now)), mode)

    assert not went_on.drifted
    assert "now 19" in went_on.reason


def test_equal_times_are_rarely_called_drift() -> None:
    draw = np.random.default_rng(5)
    alarms = sum(
        found(make(draw.normal(8000, 1000, 600)), make(draw.normal(8000, 1000, 600))).drifted
        for make in (dates, times)
        for _ in range(100)
    )

    # One in a hundred, and less: 200 at 1 %.
    assert alarms <= 7


def test_bins_of_times_add_up_survive_a_file_and_cost_no_identity() -> None:
    table = times(of(6, lambda r: r.normal(8000, 1000, 3000)))
    reference = Profile.of(table)
    whole = reference.empty().updated(table)
    parts = [reference.empty().updated(table.slice(start, 700)) for start in range(0, 3000, 700)]
    column = whole.columns["t"]

    assert isinstance(column, DatetimeColumn)
    assert column.span is not None
    assert column.span.count == column.count == 3000
    assert column == column.empty() + column
    summed = sum(parts[1:], parts[0]).columns["t"]
    assert isinstance(summed, DatetimeColumn)
    assert summed.span is not None
    assert summed.span.counts.tolist() == column.span.counts.tolist()
    assert summed.span.m2 == pytest.approx(column.span.m2, rel=1e-9)
    assert Profile.from_json(whole.to_json()) == whole


def test_saved_profiles_know_when_and_those_of_former_versions_the_hours(tmp_path: Path) -> None:
    before, now = (
        dates(of(7, lambda r: r.integers(0, 9000, 3000))),
        dates(of(8, lambda r: r.integers(3000, 12000, 3000))),
    )
    pq.write_table(now, tmp_path / "now.parquet")
    (tmp_path / "before.json").write_bytes(saved_profile(before))
    (tmp_path / "now.json").write_bytes(saved_profile(now))
    old = Profile.of(before)
    former = Profile({"t": DatetimeColumn(old.columns["t"].counts, 0, 0, 1)})

    assert compare(tmp_path / "before.json", tmp_path / "now.parquet").columns["t"].drifted
    assert compare(tmp_path / "before.json", tmp_path / "now.json").columns["t"].drifted
    assert not compare(former, now).columns["t"].drifted


def test_profiles_without_a_reference_still_add_up() -> None:
    first, second = (Profile.without_reference(dates(np.arange(start, start + 50))) for start in (0, 400))

    assert (first + second).columns["t"].count == 100


def test_what_is_shown_of_dates_that_moved_is_their_years() -> None:
    before = dates(of(9, lambda r: r.normal(10000, 500, 3000)))
    moved = found(before, dates(of(10, lambda r: r.normal(10400, 500, 3000))))
    same = found(before, dates(of(11, lambda r: r.normal(10000, 500, 3000))))

    drawn, week = bars_of(moved, 16), bars_of(replace(same, method="chi_square"), 16)
    assert drawn is not None
    assert week is not None
    assert drawn.labels[1].startswith("199")
    assert np.abs(drawn.shares.reference - drawn.shares.current).sum() > 0.3
    assert week.labels[0] == "Mon"


def test_a_column_without_a_name_is_seen_and_times_that_stayed_say_nothing() -> None:
    table = dates(of(12, lambda r: r.integers(0, 9000, 500))).append_column("", pa.array([1.0] * 500))
    same = compare(table, table)

    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(rendered(same))
    told = capture.get()

    assert '""' in told
    assert "hour of the week" not in told
    assert "by its value" not in told
    assert "&quot;&quot;" in page(same, "two")
