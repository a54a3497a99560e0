"""Whether rows are fit to be learned from, before anything is: columns, labels, groups, what is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.data import DataError, Split, TabularTask

_MOSTLY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What was found. `warnings` are for the eye; what must not be is a DataError instead."""

    rows: int
    train_rows: int
    held_out_rows: int
    groups: int
    window: tuple[str, str]
    """First and last group."""
    positives: float
    missing: Mapping[str, float]
    """Share of rows by feature, where there are any."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        said = {name: getattr(self, name) for name in self.__slots__}
        return {**said, "window": list(self.window), "missing": dict(self.missing), "warnings": list(self.warnings)}


def validated(task: TabularTask, rows: pa.Table, split: Split) -> DataReport:
    """The report on labelled rows. DataError where nothing can be learned from them, or nothing judged."""
    labels = pc.cast(rows.column(task.label), pa.float64()).to_numpy()
    odd = sorted(set(np.unique(labels).tolist()) - {0.0, 1.0})
    if odd:
        raise DataError(f"the label {task.label!r} has the value {odd[0]:g}: it must be 0 or 1")
    for name, part in (("trained on", split.train), ("held out", split.held_out)):
        known = pc.count_distinct(part.column(task.label)).as_py()
        if known < 2:
            raise DataError(f"all {part.num_rows} rows to be {name} have the same {task.label!r}: both are needed")
    missing = {name: share for name in task.features if (share := _missing(rows.column(name)))}
    empty = [name for name, share in missing.items() if share == 1.0]
    if empty:
        raise DataError(f"column {empty[0]!r} has no value in {rows.num_rows} rows")
    notes = [
        f"{name} is missing in {share:.0%} of the rows, {after:.0%} of those held out"
        for name, share in missing.items()
        if (after := _missing(split.held_out.column(name))) > _MOSTLY or share > _MOSTLY
    ]
    for name in task.categorical:
        new = pc.is_in(split.held_out.column(name), pc.unique(split.train.column(name)))
        unseen = 1.0 - (pc.mean(pc.cast(new, pa.float64())).as_py() or 0.0)
        if unseen > _MOSTLY:
            notes.append(f"{name} of {unseen:.0%} of the rows held out was never trained on")
    bounds = pc.min_max(rows.column(task.group)).as_py()
    return DataReport(
        rows=rows.num_rows,
        train_rows=split.train.num_rows,
        held_out_rows=split.held_out.num_rows,
        groups=pc.count_distinct(rows.column(task.group)).as_py(),
        window=(str(bounds["min"]), str(bounds["max"])),
        positives=float(labels.mean()),
        missing=missing,
        warnings=tuple(notes),
    )


def digest(table: pa.Table) -> str:
    """SHA-256 of the values of a table, whatever pieces it is in."""
    hashed = hashlib.sha256()

    class Sink:
        closed = False

        def write(self, content: Any) -> int:
            hashed.update(content)
            return len(content)

        def flush(self) -> None:
            pass

        def close(self) -> None:
            pass

    whole = table.combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(Sink(), mode="w"), whole.schema) as stream:
        stream.write_table(whole)
    return hashed.hexdigest()


def _missing(column: pa.ChunkedArray) -> float:
    if not len(column):
        return 0.0
    absent = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    return float(pc.mean(pc.cast(absent, pa.float64())).as_py())
