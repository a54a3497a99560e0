"""Which flights the demo trains on, and where it keeps the joined table from one run to the next."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trimtab.demo.flights import GROUP, load_flights

FIRST_DAY, LAST_DAY = "2013-01-01", "2013-02-28"


def all_flights(data: Path) -> pa.Table:
    """The year's flights; `data` is the demo's folder, and the cache lies beside it, where no run removes it."""
    return load_flights(data.parent / "cache")


def training_table(data: Path) -> pa.Table:
    """January and February."""
    flights = all_flights(data)
    days = flights[GROUP]
    return flights.filter(pc.and_(pc.greater_equal(days, FIRST_DAY), pc.less_equal(days, LAST_DAY)))
