"""Rows that come twice: a 64-bit hash of each row's features, and how many of the latest rows share one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

FEWEST_ROWS = 100

_MISSING = np.uint64(0x9E3779B97F4A7C15)
_NOT_A_NUMBER = np.uint64(0x7FF8000000000000)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def row_hashes(table: pa.Table, columns: Sequence[str]) -> Hashes:
    """A hash of each row `[rows]` over the columns that the table has; equal rows have equal hashes.

    Numbers, and those of vectors, are compared by their bits (so that -0.0 differs from 0.0), all else by its text; a
    missing value equals another missing one. The mixer is splitmix64's finaliser (Steele, Lea & Flood 2014). Hashes of
    texts are this process's own.
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
    if _is_number(values.type):
        return _bits(values)
    hashes = _vector_hashes if _is_vector(values.type) else _named_hashes
    parts = [hashes(chunk) for chunk in values.chunks]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _bits(values: pa.ChunkedArray | pa.Array) -> Hashes:
    numbers = values if values.type == pa.float64() else values.cast(pa.float64(), safe=False)
    bits = np.ascontiguousarray(numbers.to_numpy(zero_copy_only=False)).view(np.uint64)
    if not values.null_count:
        return bits
    bits = bits.copy()
    bits[values.is_null().to_numpy(zero_copy_only=False)] = _MISSING
    return bits


def _vector_hashes(values: pa.Array) -> Hashes:
    """A multilinear hash of each vector's numbers and of its length. Every NaN is the same, however it is kept."""
    if pa.types.is_fixed_size_list(values.type):
        lengths = np.full(len(values), values.type.list_size, np.int64)
    else:
        lengths = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    missing = values.is_null().to_numpy(zero_copy_only=False)
    lengths[missing] = 0
    flat = values.flatten()  # without what stands at null rows
    bits = _bits(flat)
    numbers = bits.view(np.float64)
    if np.isnan(numbers).any():
        bits = np.where(np.isnan(numbers), _NOT_A_NUMBER, bits)
        if flat.null_count:
            bits[flat.is_null().to_numpy(zero_copy_only=False)] = _MISSING
    # The low half of a float32's bits is all zeros: folded in, so that products differ in their low halves as well.
    folded = bits ^ (bits >> np.uint64(32))
    longest = int(lengths.max(initial=0))
    if len(folded) == len(values) * longest:
        found: Hashes = folded.reshape(len(values), longest) @ _multipliers(longest)
    else:
        ends = np.cumsum(lengths)
        place = np.arange(len(folded)) - np.repeat(ends - lengths, lengths)
        # Sums around 2**64: the difference of two running totals is right whatever has overflowed.
        totals = np.concatenate([[np.uint64(0)], np.cumsum(folded * _multipliers(longest)[place], dtype=np.uint64)])
        found = totals[ends] - totals[ends - lengths]
    found = _mixed(found + lengths.astype(np.uint64))
    found[missing] = _MISSING
    return found


@lru_cache(maxsize=64)
def _multipliers(number: int) -> Hashes:
    """Odd numbers that look random, one a place."""
    return _mixed(np.arange(1, number + 1, dtype=np.uint64) * _MISSING) | np.uint64(1)


def _named_hashes(values: pa.Array) -> Hashes:
    coded = values if pa.types.is_dictionary(values.type) else _texts(values).dictionary_encode()
    known = np.empty(len(coded.dictionary) + 1, np.uint64)
    known[:-1] = np.fromiter(map(hash, _plain(coded.dictionary)), np.int64, len(coded.dictionary)).view(np.uint64)
    known[-1] = _MISSING
    codes = coded.indices.fill_null(len(known) - 1) if coded.null_count else coded.indices
    found: Hashes = known[codes.to_numpy(False)]
    return found


def _plain(values: pa.Array) -> list[str]:
    return [str(value) for value in values.to_pylist()]


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_nested(values.type):
        return pa.array([None if value is None else repr(value) for value in values.to_pylist()], pa.utf8())
    return values.cast(pa.utf8())


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and _is_number(kind.value_type))


def _mixed(hashes: Hashes) -> Hashes:
    mixed = (hashes ^ (hashes >> np.uint64(30))) * _MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
    return mixed ^ (mixed >> np.uint64(31))
