"""Calibration on the reference's own blocks, and references by the hour of the week."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from collectors.drift.auto import auto_verdicts
from collectors.drift.calibration import Between, Calibration
from collectors.drift.seasonal import SeasonalReference
from observability.profile import Profile, ProfileError

HOUR = 3_600_000_000_000
MONDAY = 1_735_516_800_000_000_000  # 30 December 2024, 00:00 UTC


def day(number: int, random: np.random.Generator, season: float, rows: int = 500, shift: float = 0.0) -> pa.Table:
    """Rows of one day: both columns move over the week and a little from day to day."""
    phase = np.sin(2 * np.pi * number / 7)
    shares = np.exp(season * np.cos(2 * np.pi * (number + np.arange(5)) / 7))
    offset = season * (phase + 0.5 * random.standard_normal())
    return pa.table(
        {
            "x": random.normal(offset + shift, 1, rows),
            "c": random.choice(list("abcde"), rows, p=shares / shares.sum()),
        }
    )


def calibrated(
    season: float, seed: int, columns: tuple[str, ...] = ("x", "c")
) -> tuple[Profile, Calibration, np.random.Generator]:
    random = np.random.default_rng(seed)
    tables = [day(number, random, season).select(columns) for number in range(28)]
    reference = Profile.of(pa.concat_tables(tables))
    return reference, Calibration.of([reference.empty().updated(table) for table in tables]), random


def rates(season: float, seeds: range, shift: float = 0.0) -> tuple[float, float]:
    """The share of days on which column x is significant at 1 %, without calibration and with it."""
    plain, known, total = 0, 0, 0
    for seed in seeds:
        reference, calibration, random = calibrated(season, seed, ("x",))
        for number in range(70, 84):
            window = reference.empty().updated(day(number, random, season, shift=shift))
            plain += auto_verdicts(reference, window)["x"].p_value <= 0.01
            known += auto_verdicts(reference, window, calibration=calibration)["x"].p_value <= 0.01
            total += 1
    return plain / total, known / total


def test_the_seasons_of_the_reference_are_not_drift() -> None:
    plain, known = rates(0.2, range(4))

    assert plain > 0.4
    assert known <= 0.05


def test_what_is_more_than_the_seasons_is_found() -> None:
    assert rates(0.2, range(1), shift=1.5)[1] >= 0.95


def test_blocks_that_do_not_differ_change_little() -> None:
    plain, known = rates(0.0, range(5))

    assert known <= plain <= 0.05
    assert rates(0.0, range(1), shift=0.4)[1] >= 0.95


def test_the_threshold_is_the_score_of_the_p_value() -> None:
    between = Between(0.002, 4e-6, 5e-4)
    for level in (0.2, 0.01, 1e-5):
        at = between.quantile(level, 1e-4, 1e-8)
        assert between.pvalue(at, 1e-4, 1e-8) == pytest.approx(level, rel=1e-6)
    assert Between().pvalue(1.0, 1e-4, 1e-8) == 0.0
    assert Between().quantile(0.01, 1e-4, 1e-8) == 0.0


@pytest.mark.parametrize("season", [0.0, 0.3])
def test_a_verdict_is_its_score_against_its_threshold(season: float) -> None:
    reference, calibration, random = calibrated(season, 5)
    for shift in (0.0, 0.1, 0.2, 0.4, 0.8):
        window = reference.empty().updated(day(70, random, season, shift=shift))
        for verdict in auto_verdicts(reference, window, calibration=calibration).values():
            assert verdict.drifted == (verdict.score >= verdict.threshold)
            if verdict.p_value > 0.01:
                assert not verdict.drifted


def test_more_variance_between_blocks_is_a_higher_threshold() -> None:
    thresholds = []
    for season in (0.0, 0.1, 0.3):
        reference, calibration, random = calibrated(season, 7)
        window = reference.empty().updated(day(70, random, season))
        thresholds.append(auto_verdicts(reference, window, calibration=calibration)["x"].threshold)

    assert thresholds == sorted(thresholds)
    assert thresholds[2] > 1.5 * thresholds[0]


def test_missing_shares_that_come_and_go_are_calibrated_too() -> None:
    random = np.random.default_rng(2)

    def block(number: int) -> pa.Table:
        share = 0.1 + 0.08 * np.sin(number)
        return pa.table({"x": np.where(random.random(500) < share, np.nan, random.normal(size=500))})

    tables = [block(number) for number in range(30)]
    reference = Profile.of(pa.concat_tables(tables))
    calibration = Calibration.of([reference.empty().updated(table) for table in tables])
    plain = known = 0
    for number in range(40, 80):
        window = reference.empty().updated(block(number))
        plain += auto_verdicts(reference, window)["x"].missing_changed
        known += auto_verdicts(reference, window, calibration=calibration)["x"].missing_changed

    assert plain > 10
    assert known <= 2


def test_a_table_is_cut_into_blocks_in_its_order() -> None:
    random = np.random.default_rng(0)
    table = pa.table({"x": np.repeat(np.arange(20) % 2, 300) + random.normal(size=6000)})

    found = Calibration.of(table, rows=300)
    shuffled = Calibration.of(table.take(random.permutation(6000)), rows=300)

    assert found.blocks == 20
    assert found.rows == 300
    assert found.columns["x"].mean > 10 * max(shuffled.columns["x"].mean, 1e-4)
    assert Calibration.of(table, Profile.of(table), rows=1999).blocks == 3


def test_a_calibration_is_kept_as_json() -> None:
    _, calibration, _ = calibrated(0.3, 1)

    assert Calibration.from_json(calibration.to_json()) == calibration
    assert Calibration.from_json(json.dumps(calibration.to_json())) == calibration


@pytest.mark.parametrize(
    "wrong", ["{}", "[]", '{"format": 9}', "not json", '{"format":1,"blocks":3,"rows":1,"columns":3}']
)
def test_json_that_is_no_calibration_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # what is wrong differs, that it is refused does not
        Calibration.from_json(wrong)


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 blocks"):
        Calibration.of(pa.table({"x": [1.0, 2.0]}), rows=1)
    with pytest.raises(ValueError, match="at least one row"):
        Calibration.of(pa.table({"x": [1.0, 2.0]}), rows=0)


def hourly(weeks: int, per_hour: int = 40, seed: int = 0) -> pa.Table:
    """Rows of every hour from a Monday on; the mean is the hour of the day."""
    random = np.random.default_rng(seed)
    hours = np.repeat(np.arange(168 * weeks), per_hour)
    return pa.table(
        {
            "time": pa.array(MONDAY + hours * HOUR + random.integers(0, HOUR, len(hours)), pa.timestamp("ns", "UTC")),
            "x": hours % 24 + random.normal(size=len(hours)),
        }
    )


def test_a_window_is_compared_with_the_same_hours() -> None:
    seasonal = SeasonalReference.of(hourly(4), "time")
    start = MONDAY + (168 * 9 + 24 + 8) * HOUR  # a Tuesday, 08:00
    rows = np.random.default_rng(1).normal(8.5, 1.1, 400)
    window = seasonal.whole.empty().updated(pa.table({"x": rows}))

    at_the_time = seasonal.during(start, start + 2 * HOUR, fewest_rows=300)

    assert at_the_time.rows == 4 * 2 * 40
    assert auto_verdicts(seasonal.whole, window)["x"].drifted
    assert not auto_verdicts(at_the_time, window)["x"].drifted


def test_slots_add_up_to_the_whole() -> None:
    seasonal = SeasonalReference.of(hourly(2), "time")
    total = sum(seasonal.slots.values(), start=seasonal.whole.empty())

    np.testing.assert_array_equal(total.columns["x"].counts, seasonal.whole.columns["x"].counts)
    assert set(seasonal.weeks.values()) == {2}


def test_where_there_is_too_little_the_whole_is_the_reference() -> None:
    seasonal = SeasonalReference.of(hourly(2), "time")
    once = SeasonalReference.of(hourly(1), "time")

    assert seasonal.during(MONDAY, MONDAY + HOUR) is seasonal.whole
    assert seasonal.during(MONDAY, MONDAY + HOUR, fewest_rows=50) is not seasonal.whole
    assert seasonal.during(MONDAY, MONDAY) is seasonal.whole
    assert seasonal.during(MONDAY, MONDAY + 168 * HOUR, fewest_rows=1) is seasonal.whole
    assert once.during(MONDAY, MONDAY + HOUR, fewest_rows=1) is once.whole


def test_a_seasonal_reference_is_kept_as_json() -> None:
    seasonal = SeasonalReference.of(hourly(2, per_hour=3), "time")
    read = SeasonalReference.from_json(seasonal.to_json())

    assert read.weeks == seasonal.weeks
    assert read.whole.columns == seasonal.whole.columns
    assert read.slots.keys() == seasonal.slots.keys()
    with pytest.raises(ProfileError, match="not a seasonal reference"):
        SeasonalReference.from_json(b"{}")


def test_a_column_that_is_no_time_is_refused() -> None:
    with pytest.raises(ProfileError, match="not of times"):
        SeasonalReference.of(pa.table({"time": ["now"], "x": [1.0]}), "time")
    with pytest.raises(ProfileError, match="not in the table"):
        SeasonalReference.of(pa.table({"x": [1.0]}), "time")
