"""The event lake: Parquet files by model, version and hour of event time, written whole or not at all.

Not imported by `import observability`, which need not load Parquet: `from observability.lake import read_labelled`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from observability.events import LABELS, METADATA, BadBatch, from_ipc
from observability.sinks import Batch, Rejected

Moment = float | datetime  # unix seconds, or an aware datetime
LABELLED = METADATA.append(LABELS.field("label"))

# A compaction may swap files between our listing and our reading; the next listing sees the new ones.
_LISTINGS = 5


class ParquetSink:
    """Writes each batch of events or labels (an Arrow IPC body) as a file into one folder, atomically."""

    def __init__(self, path: str | Path) -> None:
        self._folder = Path(path)

    def send(self, batch: Batch) -> None:
        try:
            write_table(from_ipc(batch.body), self._folder, batch.id)
        except ValueError as error:
            raise Rejected(str(error)) from error


def events_path(lake: str | Path, model: str, version: str, time: Moment) -> Path:
    """The folder of a version's events of one hour: LAKE/events/model=M/version=V/date=YYYY-MM-DD/hour=HH."""
    return _hour(Path(lake) / "events" / _part("model", model) / _part("version", version), time)


def labels_path(lake: str | Path, model: str, time: Moment) -> Path:
    """The folder of a model's labels of one hour: LAKE/labels/model=M/date=YYYY-MM-DD/hour=HH."""
    return _hour(Path(lake) / "labels" / _part("model", model), time)


def write_table(table: pa.Table, folder: str | Path, name: str | None = None) -> Path:
    """Writes one Parquet file into `folder` atomically and durably; the same name replaces the file. Returns its path.

    Readers see the whole file or none: it is written under a name that begins with `_`, synced, then renamed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{quote(name, safe='') if name else uuid4().hex}.parquet"
    temporary = folder / f"_{uuid4().hex}.parquet.tmp"
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(folder)
    return path


def write_events(lake: str | Path, table: pa.Table, name: str | None = None) -> list[Path]:
    """Writes events into the folders of their model, version and hour; with the same `name` it is idempotent."""
    return [
        write_table(part, events_path(lake, model, version, hour), name)
        for (model, version, hour), part in _by_hour(table, ("model", "version"))
    ]


def write_labels(lake: str | Path, table: pa.Table, name: str | None = None) -> list[Path]:
    """Writes labels into the folders of their model and hour; with the same `name` it is idempotent."""
    return [
        write_table(part, labels_path(lake, model, hour), name) for (model, hour), part in _by_hour(table, ("model",))
    ]


def read_events(
    lake: str | Path,
    model: str,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    versions: Collection[str] | None = None,
) -> pa.Table:
    """A model's events with since <= time < until, in time order. An id that was stored more than once comes once.

    Where an id was answered by a version and mirrored to a shadow, the answer is kept. Files of different columns
    are unified (missing ones are null). An empty lake gives an empty table with the metadata columns.
    """
    parts = [_part("version", version) for version in versions] if versions is not None else None
    root = Path(lake) / "events" / _part("model", model)
    table = _within(_read(root, METADATA, since, until, parts), since, until)
    shadow_last = pc.equal(table.column("arm"), "shadow")
    table = table.take(
        pc.sort_indices(table.append_column("_shadow", shadow_last), [("_shadow", "ascending"), ("time", "ascending")])
    )
    table = table.take(_first_rows(table.column("id")))
    return table.take(pc.sort_indices(table, [("time", "ascending"), ("id", "ascending")]))


def read_labels(lake: str | Path, model: str, *, since: Moment | None = None) -> pa.Table:
    """A model's labels, the latest of each id. `since` leaves out the days before it."""
    table = _read(Path(lake) / "labels" / _part("model", model), LABELS, since, None, None)
    table = table.take(pc.sort_indices(table, [("time", "descending")]))
    return table.take(_first_rows(table.column("id")))


def read_labelled(
    lake: str | Path,
    model: str,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    versions: Collection[str] | None = None,
) -> pa.Table:
    """A model's labelled events in time order, since <= event time < until: `read_events` with the latest `label`.

    Events without a label yet are left out. `versions=None` means all. Times are unix seconds or aware datetimes.
    """
    events = read_events(lake, model, since=since, until=until, versions=versions)
    labels = read_labels(lake, model)
    found = pc.index_in(events.column("id"), value_set=labels.column("id").combine_chunks())
    joined = events.append_column(LABELS.field("label"), labels.column("label").take(found))
    return joined.filter(pc.is_valid(found))


def _part(key: str, value: str) -> str:
    return f"{key}={quote(value, safe='')}"


def _hour(folder: Path, time: Moment) -> Path:
    moment = datetime.fromtimestamp(_seconds(time), UTC)
    return folder / f"date={moment:%Y-%m-%d}" / f"hour={moment:%H}"


def _seconds(time: Moment) -> float:
    if not isinstance(time, datetime):
        return float(time)
    if time.tzinfo is None:
        raise ValueError(f"the time {time} has no time zone: give an aware datetime or unix seconds")
    return time.timestamp()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _by_hour(table: pa.Table, keys: tuple[str, ...]) -> Iterator[tuple[tuple[Any, ...], pa.Table]]:
    """The rows of each (key…, hour), in their order; the hour comes as unix seconds."""
    hours = pc.divide(table.column("time").cast(pa.int64()), 3_600_000_000_000)
    keyed = pa.table({**{key: table.column(key) for key in keys}, "hour": hours, "row": np.arange(len(table))})
    for group in keyed.group_by([*keys, "hour"], use_threads=False).aggregate([("row", "list")]).to_pylist():
        yield (*(group[key] for key in keys), group["hour"] * 3600), table.take(group["row_list"])


def _read(
    root: Path, schema: pa.Schema, since: Moment | None, until: Moment | None, parts: list[str] | None
) -> pa.Table:
    for listing in range(_LISTINGS):
        try:
            tables = [pq.read_table(path, partitioning=None) for path in _files(root, since, until, parts)]
            break
        except FileNotFoundError:
            if listing == _LISTINGS - 1:
                raise
    try:
        return pa.concat_tables([schema.empty_table(), *tables], promote_options="permissive")
    except (pa.ArrowException, TypeError) as error:
        raise BadBatch(f"the files under {root} have columns whose types do not go together: {error}") from error


def _files(root: Path, since: Moment | None, until: Moment | None, parts: list[str] | None) -> list[Path]:
    folders = [root] if parts is None else [root / part for part in parts]
    paths = (path for folder in folders for path in folder.rglob("*.parquet") if not path.name.startswith(("_", ".")))
    return sorted(path for path in paths if _overlaps(path.parent, since, until))


def _overlaps(hour_folder: Path, since: Moment | None, until: Moment | None) -> bool:
    date, hour = hour_folder.parent.name.removeprefix("date="), hour_folder.name.removeprefix("hour=")
    start = datetime.strptime(f"{date} {hour}", "%Y-%m-%d %H").replace(tzinfo=UTC)
    after = since is None or (start + timedelta(hours=1)).timestamp() > _seconds(since)
    return after and (until is None or start.timestamp() < _seconds(until))


def _within(table: pa.Table, since: Moment | None, until: Moment | None) -> pa.Table:
    times = table.column("time")
    for moment, compare in ((since, pc.greater_equal), (until, pc.less)):
        if moment is not None:
            limit = pa.scalar(round(_seconds(moment) * 1e9), pa.int64()).cast(times.type)
            table = table.filter(compare(times, limit))
            times = table.column("time")
    return table


def _first_rows(ids: pa.ChunkedArray) -> pa.Array:
    """The positions of the first row of each id, ascending."""
    rows = pa.table({"id": ids, "row": np.arange(len(ids))})
    first = rows.group_by("id", use_threads=False).aggregate([("row", "min")]).column("row_min")
    return first.take(pc.sort_indices(first))
