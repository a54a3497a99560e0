"""The embedding column of a profile: norms, moments of each dimension, and the mean embedding of the vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from observability.blocks import chunks, number_blocks
from observability.cells import Counts, Floats, Kind, ProfileError, count_of, packed, unpacked
from observability.fourier import FourierEmbedding, median_distance
from observability.loglinear import LogLinearColumn
from observability.numeric import NumericColumn
from observability.text_shape import Part, part_from_json

# Numbers of a block of vectors: half a megabyte of float64.
_NUMBERS = 65_536
_SAMPLE_ROWS = 4_096


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingColumn:
    """A column of vectors of one length, of which a profile keeps the norms, the moments and the mean embedding.

    `mean` and `m2` are those of each dimension over the `count` finite vectors. A vector with a NaN or an infinity is
    counted by `norm` as NaN; one of another length in `misshapen`. `fourier` is None before there is a reference.
    """

    dimensions: int
    norm: Part
    mean: Floats
    m2: Floats
    fourier: FourierEmbedding | None = None
    misshapen: int = 0

    @staticmethod
    def layout(values: pa.ChunkedArray | pa.Array) -> EmbeddingColumn:
        """An empty column of the vectors' most frequent length, with their norms' bins. ProfileError without any."""
        dimensions = _dimensions(values)
        norms, sample = [], np.empty((0, dimensions))
        for block in _blocks(values, dimensions):
            norms.append(_norms(block.vectors))
            if len(sample) < _SAMPLE_ROWS:
                finite = block.vectors[np.isfinite(norms[-1])]
                sample = np.concatenate([sample, finite[: _SAMPLE_ROWS - len(sample)]])
        norm = NumericColumn.layout(pa.array(np.concatenate(norms) if norms else np.empty(0)))
        fourier = FourierEmbedding.layout(dimensions, median_distance(sample))
        return EmbeddingColumn(dimensions, norm, np.zeros(dimensions), np.zeros(dimensions), fourier)

    @staticmethod
    def without_layout(values: pa.ChunkedArray | pa.Array) -> EmbeddingColumn:
        """An empty column whose norms are counted over log-linear cells."""
        dimensions = _dimensions(values)
        return EmbeddingColumn(dimensions, LogLinearColumn.layout(), np.zeros(dimensions), np.zeros(dimensions))

    def __post_init__(self) -> None:
        self.mean.setflags(write=False)
        self.m2.setflags(write=False)

    @property
    def kind(self) -> Kind:
        return "embedding"

    @property
    def counts(self) -> Counts:
        """Those of the norms."""
        return self.norm.counts

    @property
    def count(self) -> int:
        """Finite vectors."""
        return self.norm.count

    @property
    def missing(self) -> int:
        return self.norm.missing

    @property
    def rows(self) -> int:
        return self.norm.rows + self.misshapen

    def empty(self) -> EmbeddingColumn:
        zeros = np.zeros(self.dimensions)
        fourier = None if self.fourier is None else self.fourier.empty()
        return EmbeddingColumn(self.dimensions, self.norm.empty(), zeros, np.zeros(self.dimensions), fourier)

    def updated(self, values: pa.ChunkedArray | pa.Array) -> EmbeddingColumn:
        """This column with `values` (lists of numbers) added. Raises pa.ArrowException if they are something else."""
        total = self
        for block in _blocks(values, self.dimensions):
            total = total + total._counted(block)
        return total

    def without_values(self, rows: int) -> EmbeddingColumn:
        return replace(self, norm=self.norm.without_values(rows))

    def __add__(self, other: EmbeddingColumn) -> EmbeddingColumn:
        if self.dimensions != other.dimensions:
            raise ProfileError(f"vectors of {self.dimensions} and of {other.dimensions} numbers do not add up")
        if (self.fourier is None) != (other.fourier is None) or type(self.norm) is not type(other.norm):
            raise ProfileError("one embedding column has a reference's bins and the other has none: use `rebinned`")
        total = self.count + other.count
        share = other.count / total if total else 0.0
        delta = other.mean - self.mean
        return EmbeddingColumn(
            self.dimensions,
            self.norm + other.norm,  # type: ignore[operator]  # of one type, which the union cannot say
            self.mean
            if share == 0.0
            else other.mean
            if share == 1.0
            else self.mean * (1.0 - share) + other.mean * share,
            self.m2 + other.m2 + (delta * delta * (self.count * share) if 0.0 < share < 1.0 else 0.0),
            None if self.fourier is None or other.fourier is None else self.fourier + other.fourier,
            self.misshapen + other.misshapen,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmbeddingColumn) and self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "dimensions": self.dimensions,
            "norm": self.norm.to_json(),
            "mean": packed(self.mean),
            "m2": packed(self.m2),
            "fourier": None if self.fourier is None else self.fourier.to_json(),
            "misshapen": self.misshapen,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> EmbeddingColumn:
        dimensions, mean, m2 = count_of(value["dimensions"]), unpacked(value["mean"]), unpacked(value["m2"])
        fourier = None if value["fourier"] is None else FourierEmbedding.from_json(value["fourier"])
        if {len(mean), len(m2), dimensions if fourier is None else fourier.dimensions} != {dimensions}:
            raise ProfileError(f"vectors of {dimensions} numbers have as many means, deviations and frequencies")
        return EmbeddingColumn(
            dimensions, part_from_json(value["norm"]), mean, m2, fourier, count_of(value["misshapen"])
        )

    def _counted(self, block: _Vectors) -> EmbeddingColumn:
        norms = _norms(block.vectors)
        norm = self.norm.empty().updated(pa.array(norms)).without_values(block.missing)
        finite = block.vectors if np.isfinite(norms).all() else block.vectors[np.isfinite(norms)]
        mean = finite.mean(axis=0) if len(finite) else np.zeros(self.dimensions)
        deviations = finite - mean
        m2 = np.einsum("ij,ij->j", deviations, deviations)
        fourier = None if self.fourier is None else self.fourier.empty().updated(finite)
        return EmbeddingColumn(self.dimensions, norm, mean, m2, fourier, block.misshapen)


@dataclass(frozen=True, slots=True)
class _Vectors:
    vectors: Floats
    missing: int
    misshapen: int


def _norms(vectors: Floats) -> Floats:
    """The length of each vector; NaN where a number is not finite, whatever else is in it."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms: Floats = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    norms[~np.isfinite(norms)] = np.nan
    return norms


def _dimensions(values: pa.ChunkedArray | pa.Array) -> int:
    """The most frequent length of the vectors, the smallest of equally frequent ones. ProfileError without any."""
    kind = values.type.storage_type if isinstance(values.type, pa.BaseExtensionType) else values.type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    lengths = [_lengths(chunk) for chunk in chunks(values)]
    found = np.concatenate(lengths) if lengths else np.empty(0, np.int64)
    if not len(found):
        raise ProfileError("there is no vector to take the number of dimensions from")
    different, counts = np.unique(found, return_counts=True)
    return int(different[np.argmax(counts)])


def _lengths(array: pa.Array) -> NDArray[np.int64]:
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise pa.ArrowInvalid(f"{array.type} is not a list of numbers")
    return np.asarray(array.value_lengths().drop_null().to_numpy(), np.int64)


def _blocks(values: pa.ChunkedArray | pa.Array, dimensions: int) -> Iterator[_Vectors]:
    """The vectors of the right length as float64 [n, dimensions], a bounded number at a time."""
    rows = max(1, _NUMBERS // max(dimensions, 1))
    for chunk in chunks(values):
        for start in range(0, len(chunk), rows):
            part = chunk.slice(start, rows)
            missing = part.null_count
            if missing:
                part = part.drop_null()
            misshapen = 0
            if pa.types.is_fixed_size_list(part.type):
                if part.type.list_size != dimensions:
                    part, misshapen = part.slice(0, 0), len(part)
            elif not pa.types.is_null(part.type):
                right = _lengths(part) == dimensions
                misshapen = len(part) - int(right.sum())
                if misshapen:
                    part = part.filter(pa.array(right))
            yield _Vectors(_matrix(part, dimensions), missing, misshapen)


def _matrix(part: pa.Array, dimensions: int) -> Floats:
    if not len(part) or pa.types.is_null(part.type):
        return np.empty((0, dimensions))
    numbers = np.empty(len(part) * dimensions)
    place = 0
    for block, valid in number_blocks(part.flatten()):
        numbers[place : place + len(block)] = block
        if valid is not None:
            numbers[place : place + len(block)][~valid] = np.nan
        place += len(block)
    return numbers.reshape(len(part), dimensions)
