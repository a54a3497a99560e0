"""Where the demo keeps the joined table of flights: beside its folder, where no run removes it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from trimtab.demo import flights


def all_flights(data: Path) -> pa.Table:
    """The year's flights; `data` is the demo's folder."""
    return flights.load_flights(_cache(data))


def training_table(data: Path) -> pa.Table:
    """January and February."""
    return flights.training_table(_cache(data))


def _cache(data: Path) -> Path:
    return data.parent / "cache"
