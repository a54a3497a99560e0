"""How a probe's columns lie in its tables, and what its counts are as a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from observability.cells import Counts, Floats, ProfileError
from observability.columns import BooleanColumn, CategoricalColumn, NumericColumn
from observability.profile import Profile
from observability.strangers import Sample

Counted = NumericColumn | CategoricalColumn | BooleanColumn


@dataclass(frozen=True, slots=True)
class ProbeLayout:
    """Which inputs are counted as numbers and which as codes, and where a code's cell is in the reference."""

    names: tuple[str, ...]
    columns: tuple[Counted, ...]
    numeric: list[int]
    coded: list[int]
    sizes: list[int]
    booleans: list[bool]
    cells: tuple[Counts, ...]
    listed: tuple[tuple[str, ...], ...]
    nan_is_missing: bool

    @staticmethod
    def of(
        reference: Profile, names: Sequence[str], categories: Mapping[str, Sequence[str]], nan_is_missing: bool
    ) -> ProbeLayout:
        """The layout of `names`, in the order of the inputs. ProfileError for a column that cannot be counted."""
        if not names:
            raise ProfileError("a probe needs the name of at least one column")
        if doubled := sorted({name for name in names if list(names).count(name) > 1}):
            raise ProfileError(f"named more than once: {', '.join(doubled)}")
        columns = tuple(_counted(reference, name) for name in names)
        coded = [place for place, column in enumerate(columns) if not isinstance(column, NumericColumn)]
        if strange := sorted(set(categories) - {names[place] for place in coded}):
            raise ProfileError(f"categories of what is no categorical column of the probe: {', '.join(strange)}")
        listed = tuple(_listed(columns[place], categories.get(names[place])) for place in coded)
        cells = tuple(_cells(columns[place], texts) for place, texts in zip(coded, listed, strict=True))
        return ProbeLayout(
            names=tuple(names),
            columns=columns,
            numeric=[place for place in range(len(columns)) if place not in coded],
            coded=coded,
            sizes=[len(of_column) for of_column in cells],
            booleans=[isinstance(columns[place], BooleanColumn) for place in coded],
            cells=cells,
            listed=listed,
            nan_is_missing=nan_is_missing,
        )

    def edges(self) -> tuple[Floats, NDArray[np.float32]]:
        """The numeric columns' edges, a row each, filled up with +inf to a power of two; as float64 and as float32.

        A cell is the number of edges not above the value. The last edge is the next number after the reference's
        maximum, which belongs to the last closed bin. A float32 is below a float64 edge exactly where it is below the
        smallest float32 that is not below that edge: float32 values are counted like their float64 equals.
        """
        bounds = [_bounds(column.edges) for column in self.columns if isinstance(column, NumericColumn)]
        width = 1 << max((len(edges) for edges in bounds), default=1).bit_length()
        exact = np.full((len(bounds), width), np.inf)
        for row, edges in zip(exact, bounds, strict=True):
            row[: len(edges)] = edges
        with np.errstate(over="ignore"):
            rounded = exact.astype(np.float32)
        up = np.nextafter(rounded, np.float32(np.inf))
        return exact, np.where(rounded.astype(np.float64) < exact, up, rounded)

    def empty(self) -> Profile:
        """Nothing counted yet."""
        return Profile(dict(zip(self.names, self.columns, strict=True)))

    def profile(self, counts: Counts, moments: Floats, codes: Counts) -> Profile:
        """The tables as a profile."""
        found: dict[str, Any] = {}
        for row, moment, place in zip(counts, moments, self.numeric, strict=True):
            found[self.names[place]] = self._numeric(self.columns[place], row, moment)
        for number, place in enumerate(self.coded):
            found[self.names[place]] = self._coded(number, self.columns[place], codes[number])
        return Profile({name: found[name] for name in self.names})

    def _numeric(self, column: Any, row: Counts, moments: Floats) -> Any:
        positive, negative, nan, zeros = row[-4:].tolist()
        count, mean, m2, minimum, maximum = moments.tolist()
        return replace(
            column,
            counts=row[: len(column.counts)].copy(),
            missing=nan if self.nan_is_missing else 0,
            nan=0 if self.nan_is_missing else nan,
            positive_infinite=positive,
            negative_infinite=negative,
            zeros=zeros,
            mean=mean if count else 0.0,
            m2=m2,
            minimum=minimum,
            maximum=maximum,
        )

    def _coded(self, number: int, column: Any, row: Counts) -> Any:
        counts = np.zeros(len(column.counts), np.int64)
        np.add.at(counts, self.cells[number], row[: self.sizes[number]])
        found = replace(column, counts=counts, missing=int(row[-1]))
        return found if isinstance(column, BooleanColumn) else replace(found, strangers=self._strangers(number, row))

    def _strangers(self, number: int, row: Counts) -> dict[str, int]:
        """The listed texts that the reference does not know, as far as they came, with their counts."""
        known = len(self.columns[self.coded[number]].counts) - 2
        times = row[1 : self.sizes[number]]
        places = np.flatnonzero((self.cells[number][1:] >= known) & (times > 0))
        sample = Sample()
        if len(places):
            sample.add(pa.array([self.listed[number][place] for place in places], pa.utf8()), times[places])
        return sample.result()


def _counted(reference: Profile, name: str) -> Counted:
    column = reference.columns.get(name)
    if column is None:
        raise ProfileError(f"the reference has no column {name!r}: it has {', '.join(reference.columns)}")
    if not isinstance(column, NumericColumn | CategoricalColumn | BooleanColumn):
        raise ProfileError(
            f"column {name!r} is {column.kind} ({type(column).__name__}): a probe counts numeric, categorical and "
            "boolean columns over the bins and categories of a reference"
        )
    return column.empty()


def _listed(column: Any, categories: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(column, BooleanColumn):
        return ()
    return tuple(column.categories if categories is None else categories)


def _cells(column: Any, listed: Sequence[str]) -> Counts:
    """The cell in the reference of each code of a column."""
    if isinstance(column, BooleanColumn):
        return np.arange(2)
    elsewhere = len(column.categories) + (1 if column.truncated else 0)
    known = {category: cell for cell, category in enumerate(column.categories)}
    return np.array([elsewhere, *(known.get(category, elsewhere) for category in listed)], np.int64)


def _bounds(edges: Floats) -> Floats:
    return np.append(edges[:-1], np.nextafter(edges[-1], np.inf)) if len(edges) else edges
