"""One column of two tables, value by value: numbers sorted once a side, categories counted once a side.

Everything else is read from the sorted values or from the counts: quantile bins, order statistics, distinct values, the
distances and the tests. Sorting and counting run outside the interpreter's lock, so that threads take a column each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.drift.bins import Counts, Floats
from collectors.drift.comparison import Sides
from observability.columns import BooleanColumn, CategoricalColumn, NumericColumn
from observability.numeric import NUM_BINS, quantile_edges

NUM_CATEGORIES = 256
_BLOCK = 1 << 15


@dataclass(frozen=True, slots=True)
class Ordered:
    """The finite values of one side in ascending order, and how many rows have none."""

    values: Floats
    missing: int
    nan: int
    positive_infinite: int
    negative_infinite: int

    @property
    def infinite(self) -> int:
        return self.positive_infinite + self.negative_infinite

    @property
    def rows(self) -> int:
        return len(self.values) + self.missing + self.nan + self.infinite


@dataclass(frozen=True, slots=True)
class Counted:
    """Both sides' counts over one list of categories: all that occur."""

    labels: pa.Array
    counts: Sides[Counts]
    missing: Sides[int]

    @property
    def distinct(self) -> Sides[int]:
        return Sides(int(np.count_nonzero(self.counts.reference)), int(np.count_nonzero(self.counts.current)))


def ordered(values: pa.ChunkedArray) -> Ordered:
    """The numbers of a column, sorted. pa.ArrowInvalid when they are no numbers."""
    if not pa.types.is_floating(values.type) or values.type.bit_width == 16:
        values = values.cast(pa.float64(), safe=False)
    missing = values.null_count
    present = values.drop_null() if missing else values
    raw = _one_array(present)
    # float32 sorts in half the time, and every float32 is a float64.
    owned = np.sort(raw)
    count = len(owned)
    first = int(np.searchsorted(owned, -np.inf, "right"))
    last = int(np.searchsorted(owned, np.inf, "left"))
    # NaN sorts behind infinity.
    numbers = int(np.searchsorted(owned, np.inf, "right"))
    finite = owned[first:last].astype(np.float64, copy=False)
    return Ordered(finite, missing, count - numbers, numbers - last, first)


def counted(reference: pa.ChunkedArray, current: pa.ChunkedArray) -> Counted:
    """How often each category occurs on either side; text, truth values and codes alike."""
    before, before_counts = _value_counts(reference)
    now, now_counts = _value_counts(current)
    if before.type != now.type:
        before, now = before.cast(pa.string()), now.cast(pa.string())
    merged = pa.chunked_array([before, now]).combine_chunks().dictionary_encode()
    codes = np.asarray(merged.indices)
    size = len(merged.dictionary)
    # A dictionary may hold a value twice, so that counts are added and not placed.
    first = np.bincount(codes[: len(before)], before_counts, size).astype(np.int64)
    second = np.bincount(codes[len(before) :], now_counts, size).astype(np.int64)
    held = (first + second) > 0
    labels = merged.dictionary if held.all() else merged.dictionary.filter(pa.array(held))
    return Counted(labels, Sides(first[held], second[held]), Sides(reference.null_count, current.null_count))


def distinct_up_to(first: Floats, second: Floats, limit: int) -> int:
    """How many distinct values two sorted arrays have together, counted to `limit + 1` at most."""
    found, i, j = 0, 0, 0
    while (i < len(first) or j < len(second)) and found <= limit:
        value = min(first[i] if i < len(first) else math.inf, second[j] if j < len(second) else math.inf)
        i += int(np.searchsorted(first[i:], value, "right"))
        j += int(np.searchsorted(second[j:], value, "right"))
        found += 1
    return found


def per_value(pair: Sides[Ordered]) -> Sides[Counts]:
    """Counts of each distinct value of both sides, ascending."""
    sides = (pair.reference.values, pair.current.values)
    values = np.unique(np.concatenate([np.unique(side) for side in sides]))
    first, second = (np.searchsorted(side, values, "right") - np.searchsorted(side, values, "left") for side in sides)
    return Sides(first.astype(np.int64), second.astype(np.int64))


def numeric_cells(pair: Sides[Ordered]) -> Sides[NumericColumn]:
    """What a profile counts (`NumericColumn`), from the sorted values: bins of the reference's quantiles."""
    edges = _quantile_edges(pair.reference.values)
    return Sides(_cells(pair.reference, edges), _cells(pair.current, edges))


def categorical_cells(found: Counted) -> Sides[CategoricalColumn]:
    """Both sides over the reference's most frequent categories; what else there is is unseen, or other."""
    before, now = found.counts.reference, found.counts.current
    seen = np.flatnonzero(before)
    order = seen[np.argsort(-before[seen], kind="stable")][:NUM_CATEGORIES]
    truncated = len(seen) > len(order)
    names = tuple(str(label) for label in found.labels.take(pa.array(order)).cast(pa.string()).to_pylist())
    unseen = int(now[before == 0].sum())
    pooled = Sides(int(before.sum() - before[order].sum()), int(now.sum() - now[order].sum()))
    tails = ((0, pooled.reference), (0, pooled.current)) if truncated else ((0, 0), (unseen, 0))
    first, second = (
        CategoricalColumn(names, truncated, np.append(counts[order], tail).astype(np.int64), missing)
        for counts, tail, missing in zip(
            (before, now), tails, (found.missing.reference, found.missing.current), strict=True
        )
    )
    return Sides(first, second)


def boolean_cells(found: Counted) -> Sides[BooleanColumn]:
    """False and true of both sides."""
    place = [0 if label in (False, "false") else 1 for label in found.labels.to_pylist()]
    sides = []
    for counts, missing in (
        (found.counts.reference, found.missing.reference),
        (found.counts.current, found.missing.current),
    ):
        sides.append(BooleanColumn(np.bincount(place, counts, 2).astype(np.int64), missing))
    return Sides(sides[0], sides[1])


def _one_array(values: pa.ChunkedArray) -> Floats:
    if values.num_chunks == 1:
        return np.asarray(values.chunk(0).to_numpy(zero_copy_only=False))
    return np.asarray(values.to_numpy())


def _value_counts(values: pa.ChunkedArray) -> tuple[pa.Array, Counts]:
    """Distinct values that are not null, and their counts; a dictionary's codes are counted, not its values."""
    if pa.types.is_dictionary(values.type):
        unified = values.unify_dictionaries()
        if not unified.num_chunks:
            return pa.array([], values.type.value_type), np.zeros(0, np.int64)
        dictionary = unified.chunk(0).dictionary
        counts = np.zeros(len(dictionary), np.int64)
        for chunk in unified.chunks:
            indices = chunk.indices.drop_null() if chunk.null_count else chunk.indices
            codes = np.asarray(indices)
            # Numpy makes int64 of what it counts: of a block that stays in the cache.
            block = max(_BLOCK, len(dictionary))
            for start in range(0, len(codes), block):
                counts += np.bincount(codes[start : start + block], minlength=len(dictionary))
        return dictionary, counts
    if pa.types.is_boolean(values.type):
        true = sum(chunk.true_count for chunk in values.chunks)
        both = np.array([len(values) - values.null_count - true, true], np.int64)
        return pa.array([False, True]), both
    found = pc.value_counts(values.drop_null() if values.null_count else values)
    return _flat(found.field("values")), np.asarray(_flat(found.field("counts")), np.int64)


def _flat(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _quantile_edges(values: Floats) -> Floats:
    """The edges that a profile takes from sorted values, which need not be sorted again."""
    at = np.floor(np.linspace(0.0, 1.0, NUM_BINS + 1) * (len(values) - 1)).astype(np.intp)
    return quantile_edges(values[at] if len(values) else values)


def _cells(side: Ordered, edges: Floats) -> NumericColumn:
    values, count = side.values, len(side.values)
    common = {
        "missing": side.missing,
        "nan": side.nan,
        "positive_infinite": side.positive_infinite,
        "negative_infinite": side.negative_infinite,
    }
    if not len(edges):
        return NumericColumn(edges, np.array([count], np.int64), **common)
    starts = np.searchsorted(values, edges, "left")
    starts[-1] = np.searchsorted(values, edges[-1], "right")
    counts = np.diff(starts, prepend=0, append=count).astype(np.int64)
    if not count:
        return NumericColumn(edges, counts, **common)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(values.mean())
        m2 = _squared_deviations(values, mean)
    zeros = int(np.searchsorted(values, 0.0, "right") - np.searchsorted(values, 0.0, "left"))
    return NumericColumn(
        edges=edges,
        counts=counts,
        zeros=zeros,
        mean=mean,
        m2=m2,
        minimum=float(values[0]),
        maximum=float(values[-1]),
        **common,
    )


def _squared_deviations(values: Floats, mean: float) -> float:
    """`Σ (x − mean)²`, in blocks that stay in the processor's cache."""
    held = np.empty(min(_BLOCK, len(values)))
    total = []
    for start in range(0, len(values), _BLOCK):
        part = values[start : start + _BLOCK]
        deviations = np.subtract(part, mean, out=held[: len(part)])
        total.append(float(np.square(deviations, out=deviations).sum()))
    return math.fsum(total)
