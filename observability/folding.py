"""A column of a profile while rows are counted into it, batch after batch."""

from __future__ import annotations

import pyarrow as pa

from observability.blocks import number_blocks
from observability.columns import Column, NumericColumn
from observability.native_tally import tally_over
from observability.reference import fitted


class Fold:
    """One column to which batches of values are added; `column` is the sum of all so far.

    The same as `updated` batch by batch, but numbers go through one tally to the end: to set one up for each batch
    takes as long as counting some thousand values.
    """

    __slots__ = ("_column", "_name", "_tally")

    def __init__(self, name: str, column: Column) -> None:
        self._name, self._column = name, column
        self._tally = tally_over(column.edges) if isinstance(column, NumericColumn) else None

    def add(self, values: pa.ChunkedArray | pa.Array) -> None:
        """Counts the values. ProfileError, which names the column, if they are not of its kind."""
        fitted(self._name, self._column.kind, values.type, lambda: self._add(values))

    def column(self) -> Column:
        """The column with all values that were added."""
        if self._tally is None or not isinstance(self._column, NumericColumn):
            return self._column
        return self._column.tallied(self._tally)

    def _add(self, values: pa.ChunkedArray | pa.Array) -> None:
        if self._tally is not None:
            self._tally.add_all(number_blocks(values))
        else:
            self._column = self._column.updated(values)
