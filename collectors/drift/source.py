"""A table to compare, wherever it is: its schema, its size, and its rows in batches or a few columns at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

BATCH_ROWS = 1 << 18


class InputError(ValueError):
    """A table that cannot be compared; the message says what is wrong with it, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Source:
    """Rows to compare. `scan` and `read` take the names of the columns that are wanted."""

    name: str
    """What messages call it: a path, 'the reference' or 'the current table'."""
    schema: pa.Schema
    rows: int
    size: int
    """About how many bytes all columns take in memory."""
    scan: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
    read: Callable[[Sequence[str]], pa.Table]

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
        )


def checked_names(name: str, schema: pa.Schema) -> None:
    """InputError when the schema has no columns, or two columns of one name."""
    if not schema.names:
        raise InputError(f"{name} has no columns")
    twice = sorted({column for column in schema.names if schema.names.count(column) > 1})
    if twice:
        raise InputError(
            f"{name} has more than one column named {', '.join(map(repr, twice))}: rename them, so that each is known"
        )
