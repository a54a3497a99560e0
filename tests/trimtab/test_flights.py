from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from trimtab.demo import flights


@pytest.fixture
def cache(flights_cache: tuple[Path, pa.Table]) -> Path:
    return flights_cache[0]


@pytest.fixture
def table(flights_cache: tuple[Path, pa.Table]) -> pa.Table:
    return flights_cache[1]


def test_all_flights_come_in_the_order_of_the_schedule(table: pa.Table):
    scheduled = table["scheduled"].to_numpy()

    assert len(table) == 336_776
    assert (np.diff(scheduled.astype("int64")) >= 0).all()
    assert pc.count_distinct(table["id"]).as_py() == len(table)
    assert pc.count_distinct(table["flight_day"]).as_py() == 365


def test_the_package_is_read_but_never_imported(table: pa.Table):
    assert flights.PACKAGE not in sys.modules


def test_the_label_is_an_arrival_more_than_fifteen_minutes_late_and_unknown_without_an_arrival(table: pa.Table):
    raw = pd.read_csv(flights.source_folder() / "flights.csv.zip", usecols=["arr_delay"])["arr_delay"]

    late = table["late"].to_pandas()
    assert late.isna().sum() == raw.isna().sum() == 9430
    assert late.sum() == (raw > 15).sum()
    assert table["known_at"].null_count == 9430


def test_a_label_is_known_only_after_departure_was_due(table: pa.Table):
    wait = pc.subtract(table["known_at"], table["scheduled"]).drop_null().cast(pa.int64()).to_numpy() / 60e9

    assert np.quantile(wait, 0.001) > 15
    assert 120 < np.median(wait) < 240


def test_scheduled_time_in_the_air_agrees_with_the_distance(table: pa.Table):
    known = table.filter(pc.is_valid(table["late"]))
    hours = known["scheduled_minutes"].to_numpy() / 60

    assert hours.min() > 0.5
    assert np.corrcoef(known["distance"].to_numpy(), hours)[0, 1] > 0.98


def test_missing_weather_stays_missing(table: pa.Table):
    missing = {name: table[name].null_count / len(table) for name in flights.WEATHER}

    assert missing["temp"] == pytest.approx(0.0047, abs=0.0005)
    assert missing["pressure"] == pytest.approx(0.115, abs=0.005)


def test_the_second_reading_comes_from_the_cache_and_is_equal(cache: Path, table: pa.Table, tmp_path: Path):
    # A source that does not exist proves that nothing but the cache was read.
    assert flights.load_flights(cache, source=tmp_path / "none").equals(table)


def test_the_training_table_ends_with_february(cache: Path, table: pa.Table):
    days = flights.training_table(cache)["flight_day"].to_pylist()

    assert (days[0], days[-1], len(days)) == ("2013-01-01", "2013-02-28", 51_955)


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flights, "PACKAGE", "no-such-package-of-flights")

    with pytest.raises(flights.FlightsUnavailable, match=r"trimtab\[demo\]"):
        flights.source_folder()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution(flights.PACKAGE)
