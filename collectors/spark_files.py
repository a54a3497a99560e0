"""Parquet that Spark's workers read themselves: a task is a few row groups, and no row passes through the JVM.

Spark hands rows to Python through one pipe a task, filled by a thread of the JVM: that keeps two processors busy for
one task, and one of them does nothing for the profile. Here Spark only deals out names of files and numbers of row
groups. The profile is the same to the unit.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from observability.profile import Profile
from observability.table_files.parquet_files import coded_texts

# Tasks a core: with several, a slow one or a large row group at the end delays less.
_TASKS_A_CORE = 3
_BATCH_BYTES = 8 << 20
ENDINGS = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Row groups of one file that one task reads; their size in bytes."""

    file: str
    numbers: tuple[int, ...]
    size: int


def parquet_files(path: str) -> list[Path]:
    """The files of rows under a local path, without hidden ones and what lies beside Parquet. Empty if not local."""
    given = Path(path)
    found = [given] if given.exists() else [Path(match) for match in glob.glob(path)]
    files: set[Path] = set()
    for top in found:
        inside = [file for file in top.rglob("*") if file.is_file()] if top.is_dir() else [top]
        files |= {f for f in inside if not any(part.startswith(("_", ".")) for part in f.relative_to(top.parent).parts)}
    named = {file for file in files if file.suffix in ENDINGS}
    return sorted(named or files)


def row_groups(files: Sequence[Path], names: Sequence[str]) -> tuple[list[RowGroups], list[str]]:
    """Every row group of the files with the size of the columns `names`, and those of them that some file has.

    Raises pa.ArrowException or OSError for what is no Parquet.
    """
    import pyarrow.parquet as pq

    groups: list[RowGroups] = []
    present: dict[str, None] = {}
    for file in files:
        metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
        if len(set(schema.names)) < len(schema.names):
            raise pa.ArrowInvalid(f"{file} has two columns of one name")
        present |= dict.fromkeys(name for name in names if name in schema.names)
        share = sum(name in schema.names for name in names) / max(len(schema.names), 1)
        for number in range(metadata.num_row_groups):
            size = int(metadata.row_group(number).total_byte_size * share) + 1
            groups.append(RowGroups(str(file), (number,), size))
    return groups, list(present)


def dealt(groups: Sequence[RowGroups], tasks: int) -> list[list[RowGroups]]:
    """The row groups in at most `tasks` lists of about one size, those of a file beside each other."""
    total, parts = sum(group.size for group in groups), min(tasks, len(groups))
    found: list[list[RowGroups]] = [[] for _ in range(parts)]
    before = 0
    for group in groups:
        # By the middle of each row group, so that neighbours stay together.
        part = found[min(parts - 1, (2 * before + group.size) * parts // (2 * total))]
        before += group.size
        if part and part[-1].file == group.file:
            part[-1] = RowGroups(group.file, part[-1].numbers + group.numbers, part[-1].size + group.size)
        else:
            part.append(group)
    return [part for part in found if part]


class FileProfile:
    """The work of one task; carries the layout as JSON, so that it pickles small."""

    def __init__(self, layout: bytes, names: Sequence[str]) -> None:
        self._layout, self._names = layout, list(names)

    def __call__(self, tasks: Iterator[list[RowGroups]]) -> Iterator[bytes]:
        empty = profile = Profile.from_json(self._layout)
        coded = [name for name, column in empty.columns.items() if column.kind in ("categorical", "text")]
        for groups in tasks:
            for group in groups:
                for batch in _batches(group, self._names, coded):
                    profile = profile.updated(batch)
        if profile is not empty:
            yield profile.to_json()


def profile_of_files(spark: Any, groups: Sequence[RowGroups], layout: Profile) -> Profile:
    """The profile of all rows of the row groups in an empty layout, counted by Spark's workers."""
    context = spark.sparkContext
    tasks = dealt(groups, context.defaultParallelism * _TASKS_A_CORE)
    if not tasks:
        return layout
    work = FileProfile(layout.to_json(), list(layout.columns))
    total = layout
    for part in context.parallelize(tasks, len(tasks)).mapPartitions(work).collect():
        total = total + Profile.from_json(part)
    return total


def reads_files(spark: Any) -> bool:
    """Whether the workers see the files that the driver sees: they are processes of this machine."""
    try:
        return str(spark.sparkContext.master).startswith("local")
    except Exception:
        # Spark Connect has no context.
        return False


def _batches(group: RowGroups, names: Sequence[str], coded: Sequence[str]) -> Iterator[pa.RecordBatch | pa.Table]:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(group.file)
    schema = metadata.schema.to_arrow_schema()
    here = [name for name in names if name in schema.names]
    # The dictionaries that Parquet itself writes are counted by their codes.
    texts = [name for name in coded_texts(metadata) if name in coded]
    rows = max(4_096, min(65_536, _BATCH_BYTES // (8 * max(len(here), 1))))
    if not here:
        for number in group.numbers:
            yield pa.table({"": pa.nulls(metadata.row_group(number).num_rows)})
        return
    with pq.ParquetFile(
        group.file, metadata=metadata, read_dictionary=texts, buffer_size=1 << 18, pre_buffer=False
    ) as parquet:
        yield from parquet.iter_batches(rows, row_groups=list(group.numbers), columns=here, use_threads=False)
