"""Rows that come twice: a 64-bit hash of each row's features, and how many of the latest rows share one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

FEWEST_ROWS = 100

_MISSING = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def row_hashes(table: pa.Table, columns: Sequence[str]) -> Hashes:
    """A hash of each row `[rows]` over the columns that the table has; equal rows have equal hashes.

    Numbers are compared by their bits (so that -0.0 differs from 0.0), all else by its text; a missing value equals
    another missing one. The mixer is splitmix64's finaliser (Steele, Lea & Flood 2014).
    """
    total = np.zeros(table.num_rows, np.uint64)
    for name in columns:
        if name in table.schema.names:
            total = _mixed(total * np.uint64(31) + _column_hashes(table.column(name)))
    return total


@dataclass(slots=True)
class RecentRows:
    """The hashes of the latest `limit` rows of one source."""

    limit: int = 20_000
    _parts: deque[Hashes] = field(default_factory=deque)
    _rows: int = 0

    def add(self, hashes: Hashes) -> None:
        """Takes in a batch; the oldest batches beyond the limit are forgotten whole."""
        self._parts.append(hashes[-self.limit :])
        self._rows += len(self._parts[-1])
        while len(self._parts) > 1 and self._rows - len(self._parts[0]) >= self.limit:
            self._rows -= len(self._parts.popleft())

    @property
    def rows(self) -> int:
        return self._rows

    def duplicated_ratio(self) -> float:
        """Share of the rows that repeat an earlier one of them; 0 of fewer than a hundred, which say nothing."""
        if self._rows < FEWEST_ROWS:
            return 0.0
        return 1.0 - len(np.unique(np.concatenate(self._parts))) / self._rows


def _column_hashes(values: pa.ChunkedArray) -> Hashes:
    kind = values.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        numbers = values if kind == pa.float64() else values.cast(pa.float64(), safe=False)
        bits = np.ascontiguousarray(numbers.to_numpy()).view(np.uint64)
        if not values.null_count:
            return bits
        bits = bits.copy()
        bits[values.is_null().to_numpy()] = _MISSING
        return bits
    parts = [_named_hashes(chunk) for chunk in values.chunks]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _named_hashes(values: pa.Array) -> Hashes:
    coded = values if pa.types.is_dictionary(values.type) else _texts(values).dictionary_encode()
    known = np.array([_text_hash(value) for value in coded.dictionary.to_pylist()] + [int(_MISSING)], np.uint64)
    codes = coded.indices.fill_null(len(known) - 1) if coded.null_count else coded.indices
    found: Hashes = known[codes.to_numpy(False)]
    return found


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_nested(values.type):
        return pa.array([None if value is None else repr(value) for value in values.to_pylist()], pa.utf8())
    return values.cast(pa.utf8())


def _text_hash(value: object) -> int:
    return int.from_bytes(blake2b(str(value).encode(), digest_size=8).digest(), "little")


def _mixed(hashes: Hashes) -> Hashes:
    mixed = (hashes ^ (hashes >> np.uint64(30))) * _MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
    return mixed ^ (mixed >> np.uint64(31))
