"""A table in files or in memory: its schema, its size, and its rows in batches or a few columns at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from observability.cells import ProfileError

BATCH_ROWS = 1 << 18


class InputError(ProfileError):
    """A table that cannot be read or compared; the message says what is wrong with it, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Source:
    """Rows to compare. `scan`, `read` and `lanes` take the names of the columns that are wanted."""

    name: str
    """What messages call it: a path, 'the reference' or 'the current table'."""
    schema: pa.Schema
    rows: int
    size: int
    """About how many bytes all columns take in memory."""
    scan: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
    read: Callable[[Sequence[str]], pa.Table]
    lanes: Callable[[Sequence[str], int], Iterator[Sequence[Iterator[pa.RecordBatch]]]] | None = None
    """Where columns can be read apart from each other: the rows in steps, each in at most so many lanes that may be
    read at once. A batch has only some of the columns, no two lanes of a step have one, and of each column the rows
    come in order."""
    in_memory: bool = False

    @property
    def columns(self) -> list[str]:
        return list(self.schema.names)

    @staticmethod
    def of_table(name: str, table: pa.Table) -> Source:
        """A table in memory. InputError when two of its columns have one name."""
        checked_names(name, table.schema)
        return Source(
            name=name,
            schema=table.schema,
            rows=table.num_rows,
            size=table.nbytes,
            scan=lambda columns: iter(table.select(list(columns)).to_batches(max_chunksize=BATCH_ROWS)),
            read=lambda columns: table.select(list(columns)),
            in_memory=True,
        )

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows of the columns, read while the batch before is worked on."""
        return self.scan(columns) if self.in_memory else _ahead(self.scan(columns))


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def checked_names(name: str, schema: pa.Schema) -> None:
    """InputError when the schema has no columns, or two columns of one name."""
    if not schema.names:
        raise InputError(f"{name} has no columns")
    twice = sorted(column for column, times in Counter(schema.names).items() if times > 1)
    if twice:
        raise InputError(
            f"{name} has more than one column named {', '.join(map(repr, twice))}: rename them, so that each is known"
        )
