"""Reading the lake back: windows that were open at a stop, and predictions that labels look for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from observability.events import PREDICTION, TIME

JOIN_COLUMNS = ("id", "time", "model", "version", "arm", "release", "propensity")


def models_of(lake: Path, kind: str = "events") -> list[str]:
    """Models that the lake has rows of."""
    return sorted(unquote(path.name.removeprefix("model=")) for path in (lake / kind).glob("model=*"))


def tables_since(lake: Path, kind: str, model: str, since: float) -> Iterator[pa.Table]:
    """A model's stored rows with time >= since (unix seconds, at least 0), hour by hour, as they were accepted."""
    limit = pa.scalar(round(max(since, 0.0) * 1e9), pa.int64()).cast(TIME)
    for path in _files(lake, kind, model, since):
        table = pq.read_table(path, partitioning=None)
        chosen = table.filter(pc.greater_equal(table.column("time"), limit))
        if chosen.num_rows:
            yield chosen


def tables_back(lake: Path, kind: str, model: str, since: float) -> Iterator[pa.Table]:
    """A model's stored rows from the hour of a time (unix seconds) on, the newest hours first."""
    for path in reversed(_files(lake, kind, model, since)):
        yield pq.read_table(path, partitioning=None)


def predictions_with_ids(lake: Path, model: str, ids: Collection[str], since: float) -> Iterator[pa.Table]:
    """The rows of the given ids with their predictions, newest hours first, until every id was found."""
    missing = set(ids)
    for path in reversed(_files(lake, "events", model, since)):
        if not missing:
            return
        names = [name for name in pq.read_schema(path).names if name in JOIN_COLUMNS or name.startswith(PREDICTION)]
        table = pq.read_table(
            path, columns=names, partitioning=None, filters=pc.field("id").isin(pa.array(sorted(missing), pa.utf8()))
        )
        if table.num_rows:
            missing -= set(table.column("id").to_pylist())
            yield table


def _files(lake: Path, kind: str, model: str, since: float) -> list[Path]:
    root = lake / kind / f"model={quote(model, safe='')}"
    earliest = datetime.fromtimestamp(max(since, 0.0), UTC) - timedelta(hours=1)
    oldest = f"{earliest:%Y-%m-%d}", f"{earliest:%H}"
    found = [
        (date, hour, path)
        for path in root.rglob("*.parquet")
        if not path.name.startswith(("_", "."))
        and (date := path.parent.parent.name.removeprefix("date="), hour := path.parent.name.removeprefix("hour="))
        > oldest
    ]
    return [path for *_, path in sorted(found)]
