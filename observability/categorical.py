"""The categorical and boolean columns of a profile: counts over the reference's categories, and what lies outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from observability.blocks import chunks
from observability.cells import Counts, Kind, ProfileError, count_of, counts_of
from observability.frequent import FrequentTexts
from observability.strangers import Hashes, Sample, merged, ordered

NUM_CATEGORIES = 256
TAIL = 128
UNSEEN, OTHER = "unseen", "other"
# Rows of text that are looked up at a time.
_ROWS = 131_072


@dataclass(frozen=True, slots=True, eq=False)
class CategoricalColumn:
    """Counts of a text column over its reference's most frequent categories.

    The last two cells are `unseen` and `other`: values outside the list are unseen where the list is complete, and
    `other` where the reference itself had more categories than the list holds (`truncated`). `strangers` holds a
    bounded sample of the values outside the list, those of the smallest hashes, with their exact counts; `tail` counts
    the `other` ones by a hash of 7 bits, so that one of them that becomes frequent shows in whatever company.
    """

    categories: tuple[str, ...]
    truncated: bool
    counts: Counts
    missing: int = 0
    strangers: dict[str, int] = field(default_factory=dict)
    tail: Counts = field(default_factory=lambda: np.zeros(TAIL, np.int64))

    @staticmethod
    def layout(values: pa.ChunkedArray | pa.Array, num_categories: int = NUM_CATEGORIES) -> CategoricalColumn:
        """An empty column with the most frequent categories of `values`, most frequent first."""
        frequent = FrequentTexts()
        add_texts(frequent, values)
        return CategoricalColumn.over(*frequent.most(num_categories))

    @staticmethod
    def over(categories: tuple[str, ...], truncated: bool = False) -> CategoricalColumn:
        """An empty column over `categories`."""
        return CategoricalColumn(categories, truncated, np.zeros(len(categories) + 2, np.int64))

    def __post_init__(self) -> None:
        self.counts.setflags(write=False)
        self.tail.setflags(write=False)

    @property
    def kind(self) -> Kind:
        return "categorical"

    @property
    def count(self) -> int:
        """Values that are not null."""
        return int(self.counts.sum())

    @property
    def rows(self) -> int:
        return self.count + self.missing

    @property
    def unseen(self) -> int:
        """Values that the reference does not know."""
        return int(self.counts[-2])

    @property
    def labels(self) -> tuple[str, ...]:
        """What the cells of `counts` are."""
        return (*self.categories, UNSEEN, OTHER)

    def empty(self) -> CategoricalColumn:
        return CategoricalColumn.over(self.categories, self.truncated)

    def updated(self, values: pa.ChunkedArray | pa.Array) -> CategoricalColumn:
        """This column with `values` added. Dictionaries are counted by their codes; numbers are their decimal texts."""
        elsewhere = len(self.categories) + (1 if self.truncated else 0)
        counts, sample, missing = np.zeros_like(self.counts), Sample(), 0
        tail = np.zeros_like(self.tail)
        for texts, times, nulls in _texts(values):
            missing += nulls
            codes = _codes(texts, self.categories)
            if times is None:
                found = np.bincount(_filled(codes, elsewhere), minlength=len(counts))
                # Nulls were looked up as well, and found nowhere.
                found[elsewhere] -= nulls
                strange = codes.null_count > nulls
            else:
                found = np.zeros_like(counts)
                np.add.at(found, _filled(codes, elsewhere), times)
                strange = codes.null_count > 0
            counts += found
            if strange:
                hashes, strange_times = _add_strangers(sample, texts, times, codes)
                if self.truncated:
                    tail += tail_counts(hashes, strange_times)
        found_here = CategoricalColumn(self.categories, self.truncated, counts, missing, sample.result(), tail)
        return self + found_here

    def without_values(self, rows: int) -> CategoricalColumn:
        return replace(self, missing=self.missing + rows)

    def __add__(self, other: CategoricalColumn) -> CategoricalColumn:
        if self.truncated != other.truncated or (
            self.categories is not other.categories and self.categories != other.categories
        ):
            raise ProfileError("the categories differ: profiles add up only within one reference")
        return CategoricalColumn(
            self.categories,
            self.truncated,
            self.counts + other.counts,
            self.missing + other.missing,
            merged(self.strangers, other.strangers),
            self.tail + other.tail,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CategoricalColumn) and self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "categories": list(self.categories),
            "truncated": self.truncated,
            "counts": self.counts.tolist(),
            "missing": self.missing,
            "strangers": self.strangers,
            **({"tail": self.tail.tolist()} if self.tail.any() else {}),
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> CategoricalColumn:
        categories, counts = tuple(value["categories"]), counts_of(value["counts"])
        if not all(isinstance(category, str) for category in categories) or len(set(categories)) < len(categories):
            raise ProfileError("categories are different texts")
        if len(counts) != len(categories) + 2:
            raise ProfileError(
                f"{len(categories)} categories need {len(categories) + 2} counts, there are {len(counts)}"
            )
        strangers = {str(text): count_of(count) for text, count in value.get("strangers", {}).items()}
        tail = counts_of(value.get("tail", [0] * TAIL))
        if len(tail) != TAIL:
            raise ProfileError(f"the tail has {TAIL} counts, there are {len(tail)}")
        return CategoricalColumn(
            categories, bool(value["truncated"]), counts, count_of(value["missing"]), ordered(strangers), tail
        )


@dataclass(frozen=True, slots=True, eq=False)
class BooleanColumn:
    """Counts of a boolean column: false, true, and missing beside them."""

    counts: Counts
    missing: int = 0

    @staticmethod
    def layout(values: pa.ChunkedArray | None = None) -> BooleanColumn:
        return BooleanColumn(np.zeros(2, np.int64))

    def __post_init__(self) -> None:
        self.counts.setflags(write=False)

    @property
    def kind(self) -> Kind:
        return "boolean"

    @property
    def count(self) -> int:
        """Values that are not null."""
        return int(self.counts.sum())

    @property
    def rows(self) -> int:
        return self.count + self.missing

    @property
    def labels(self) -> tuple[str, ...]:
        """What the cells of `counts` are."""
        return ("false", "true")

    def empty(self) -> BooleanColumn:
        return BooleanColumn(np.zeros(2, np.int64))

    def updated(self, values: pa.ChunkedArray | pa.Array) -> BooleanColumn:
        """This column with `values` added: numbers count as true unless 0, NaN as missing."""
        false = true = missing = 0
        for chunk in chunks(values):
            for start in range(0, len(chunk), _ROWS):
                booleans = _booleans(chunk.slice(start, _ROWS))
                missing += booleans.null_count
                true += booleans.true_count
                false += booleans.false_count
        return self + BooleanColumn(np.array([false, true], np.int64), missing)

    def without_values(self, rows: int) -> BooleanColumn:
        return replace(self, missing=self.missing + rows)

    def __add__(self, other: BooleanColumn) -> BooleanColumn:
        return BooleanColumn(self.counts + other.counts, self.missing + other.missing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BooleanColumn) and self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "counts": self.counts.tolist(), "missing": self.missing}

    @staticmethod
    def from_json(value: dict[str, Any]) -> BooleanColumn:
        counts = counts_of(value["counts"])
        if len(counts) != 2:
            raise ProfileError(f"a boolean column has 2 counts, there are {len(counts)}")
        return BooleanColumn(counts, count_of(value["missing"]))


def add_texts(frequent: FrequentTexts, values: pa.ChunkedArray | pa.Array) -> None:
    """Adds the values of a column, as categories, to a count of the frequent ones."""
    for texts, times, _ in _texts(values):
        if times is None:
            counted = texts.drop_null().value_counts()
            texts, times = counted.field("values"), counted.field("counts").to_numpy()
        frequent.add((text, count) for text, count in zip(texts.to_pylist(), times.tolist(), strict=True) if count)


def _texts(values: pa.ChunkedArray | pa.Array) -> Iterator[tuple[pa.Array, Counts | None, int]]:
    """The column as texts: (texts of rows, None, nulls among them), or (different texts, how often each, nulls)."""
    for chunk in chunks(values):
        if pa.types.is_dictionary(chunk.type):
            yield _coded(chunk)
            continue
        if pa.types.is_null(chunk.type):
            yield pa.array([], pa.utf8()), np.empty(0, np.int64), len(chunk)
            continue
        for start in range(0, len(chunk), _ROWS):
            part = chunk.slice(start, _ROWS)
            if pa.types.is_string(part.type) or pa.types.is_large_string(part.type):
                yield part, None, part.null_count
            elif pa.types.is_string_view(part.type):
                yield part.cast(pa.utf8()), None, part.null_count
            else:
                yield _coded(_encoded(part))


def _coded(array: pa.DictionaryArray) -> tuple[pa.Array, Counts, int]:
    """The different texts of a dictionary array that occur, how often each does, and the nulls: nothing is decoded."""
    dictionary, indices = array.dictionary, array.indices
    times, missing = np.zeros(len(dictionary), np.int64), indices.null_count
    # Counting must not cost more than the rows do, however large the dictionary is.
    rows = max(65_536, 2 * len(dictionary))
    for start in range(0, len(indices), rows):
        part = indices.slice(start, rows)
        if part.null_count:
            part = part.drop_null()
        codes = np.asarray(part.to_numpy())
        times += np.bincount(codes if codes.dtype != np.uint64 else codes.astype(np.int64), minlength=len(times))
    present = times > 0
    # NaN is no category.
    if dictionary.null_count or pa.types.is_floating(dictionary.type):
        null = np.asarray(dictionary.is_null(nan_is_null=True))
        missing += int(times[null].sum())
        present &= ~null
    if not present.all():
        places = np.flatnonzero(present)
        dictionary, times = dictionary.take(pa.array(places)), times[places]
    return _as_texts(dictionary), times, missing


def _encoded(part: pa.Array) -> pa.DictionaryArray:
    if pa.types.is_run_end_encoded(part.type):
        import pyarrow.compute as pc

        part = pc.run_end_decode(part)
    if pa.types.is_float16(part.type):
        part = part.cast(pa.float32())
    return part.dictionary_encode()


def _as_texts(values: pa.Array) -> pa.Array:
    """Different values as text; a float that is a whole number is written as one: 1 and 1.0 are one category."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return values
    if pa.types.is_floating(kind):
        return pa.array([_decimal(number) for number in values.to_pylist()], pa.utf8())
    if pa.types.is_decimal(kind):
        return pa.array([str(number) for number in values.to_pylist()], pa.utf8())
    return values.cast(pa.utf8())


def _decimal(number: float) -> str:
    return str(int(number)) if abs(number) < 1e15 and number == int(number) else repr(number)


@lru_cache(maxsize=4_096)
def _value_set(categories: tuple[str, ...], large: bool) -> pa.Array:
    return pa.array(categories, pa.large_utf8() if large else pa.utf8())


def _codes(texts: pa.Array, categories: tuple[str, ...]) -> pa.Array:
    # A third as much again as all else that `import observability` loads.
    import pyarrow.compute as pc

    return pc.index_in(texts, value_set=_value_set(categories, pa.types.is_large_string(texts.type)))


def _filled(codes: pa.Array, elsewhere: int) -> Counts:
    filled = codes.fill_null(elsewhere) if codes.null_count else codes
    return np.asarray(filled.to_numpy())


def tail_counts(hashes: Hashes, times: Counts | None) -> Counts:
    """How many rows have a hash with each of its last 7 bits; each text is there once, or as often as `times` says."""
    cells = (hashes & np.uint64(TAIL - 1)).astype(np.int64)
    counts = np.zeros(TAIL, np.int64)
    np.add.at(counts, cells, 1 if times is None else times)
    return counts


def _add_strangers(
    sample: Sample, texts: pa.Array, times: Counts | None, codes: pa.Array
) -> tuple[Hashes, Counts | None]:
    strange = np.asarray(codes.is_null())
    if times is None and texts.null_count:
        strange = strange & np.asarray(texts.is_valid())
    places = np.flatnonzero(strange)
    chosen = None if times is None else times[places]
    return sample.add(texts.take(pa.array(places)), chosen), chosen


def _booleans(part: pa.Array) -> pa.Array:
    if pa.types.is_boolean(part.type):
        return part
    if pa.types.is_dictionary(part.type):
        part = part.dictionary_decode()
    if pa.types.is_integer(part.type) or pa.types.is_floating(part.type):
        floats = np.asarray(part.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        # Nulls have become NaN.
        return pa.array(floats != 0, mask=np.isnan(floats))
    return part.cast(pa.bool_())
