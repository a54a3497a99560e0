"""The columns of a profile: fixed-size summaries of one column that merge by addition.

Each kind keeps a layout (bin edges or categories, taken from the reference) and integer counts over it. Two
summaries of one layout add up to the summary of both sets of rows, exactly on every count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from observability.cells import Counts, Kind, ProfileError
from observability.numeric import NumericColumn

__all__ = ["BooleanColumn", "CategoricalColumn", "Column", "Kind", "NumericColumn", "ProfileError"]

NUM_CATEGORIES = 256
UNSEEN, OTHER = "unseen", "other"


@dataclass(frozen=True, slots=True, eq=False)
class CategoricalColumn:
    """Counts of a text column over its reference's most frequent categories.

    The last two cells are `unseen` and `other`: values outside the list are unseen where the list is complete, and
    `other` where the reference itself had more categories than the list holds (`truncated`).
    """

    categories: tuple[str, ...]
    truncated: bool
    counts: Counts
    missing: int = 0

    @staticmethod
    def layout(values: pa.ChunkedArray, num_categories: int = NUM_CATEGORIES) -> CategoricalColumn:
        """An empty column with the most frequent categories of `values`, most frequent first."""
        counted = _texts(values).drop_null().value_counts()
        pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
        ordered = [category for category, _ in sorted(pairs, key=lambda pair: (-pair[1], pair[0]))]
        kept = tuple(ordered[:num_categories])
        return CategoricalColumn(kept, len(ordered) > num_categories, np.zeros(len(kept) + 2, np.int64))

    def __post_init__(self) -> None:
        self.counts.setflags(write=False)

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
        return CategoricalColumn(self.categories, self.truncated, np.zeros_like(self.counts))

    def updated(self, values: pa.ChunkedArray) -> CategoricalColumn:
        # A third as much again as all else that `import observability` loads.
        import pyarrow.compute as pc

        present = _texts(values).drop_null()
        codes = pc.index_in(present, value_set=pa.array(self.categories, pa.utf8()))
        elsewhere = len(self.categories) + (1 if self.truncated else 0)
        filled = codes.fill_null(elsewhere).to_numpy()
        counts = np.bincount(filled, minlength=len(self.counts)).astype(np.int64)
        return self + CategoricalColumn(self.categories, self.truncated, counts, len(values) - len(present))

    def without_values(self, rows: int) -> CategoricalColumn:
        return replace(self, missing=self.missing + rows)

    def __add__(self, other: CategoricalColumn) -> CategoricalColumn:
        if (self.categories, self.truncated) != (other.categories, other.truncated):
            raise ProfileError("the categories differ: profiles add up only within one reference")
        missing = self.missing + other.missing
        return CategoricalColumn(self.categories, self.truncated, self.counts + other.counts, missing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CategoricalColumn) and self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "categories": list(self.categories),
            "truncated": self.truncated,
            "counts": self.counts.tolist(),
            "missing": self.missing,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> CategoricalColumn:
        categories, counts = tuple(value["categories"]), np.array(value["counts"], np.int64)
        if len(counts) != len(categories) + 2:
            raise ProfileError(
                f"{len(categories)} categories need {len(categories) + 2} counts, there are {len(counts)}"
            )
        return CategoricalColumn(categories, bool(value["truncated"]), counts, int(value["missing"]))


@dataclass(frozen=True, slots=True, eq=False)
class BooleanColumn:
    """Counts of a boolean column: false, true, and missing beside them."""

    counts: Counts
    missing: int = 0

    @staticmethod
    def layout(values: pa.ChunkedArray) -> BooleanColumn:
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

    def updated(self, values: pa.ChunkedArray) -> BooleanColumn:
        booleans = values.cast(pa.bool_())
        true = sum(chunk.true_count for chunk in booleans.chunks)
        counts = np.array([len(values) - values.null_count - true, true], np.int64)
        return self + BooleanColumn(counts, values.null_count)

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
        counts = np.array(value["counts"], np.int64)
        if len(counts) != 2:
            raise ProfileError(f"a boolean column has 2 counts, there are {len(counts)}")
        return BooleanColumn(counts, int(value["missing"]))


Column = NumericColumn | CategoricalColumn | BooleanColumn


def _texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values if values.type == pa.utf8() else values.cast(pa.utf8())
