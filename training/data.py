"""A tabular task, its fitted encoding, and tensors from Arrow tables: what the training loop learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

UNKNOWN = 0


class DataError(ValueError):
    """A table that the task cannot learn from; the message names the column or the number of rows."""


class TabularNetwork(Protocol):
    """A binary classifier that takes one tensor `[batch]` an input: codes (int64), then numbers (float32, NaN allowed).

    Called, it gives the probability `[batch]`; `logits` is what the loss wants. An `nn.Module`.
    """

    def logits(self, *inputs: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Encoding:
    """What was fitted on the training rows: categories by column, and mean and deviation by numeric column."""

    vocabularies: Mapping[str, tuple[str, ...]]
    means: Mapping[str, float]
    deviations: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularTask:
    """Binary classification of the rows of a table."""

    model: str
    """Name in the registry."""
    categorical: tuple[str, ...]
    """Text columns; a value that training saw too rarely, or not at all, is one and the same unknown."""
    numeric: tuple[str, ...]
    """Number columns; null and NaN are missing."""
    label: str
    """Column of 0 and 1; null where it is not known."""
    group: str
    """Column whose values hang together (a day): a split never divides one."""
    output: str
    """Name of the model's output."""
    network: Callable[[Encoding], nn.Module]
    """Makes a fresh TabularNetwork."""
    time: str | None = None
    """Column of event times (UTC), for a reference by the hour of the week; a retraining takes those of the events."""
    min_count: int = 20
    """Training rows that a category needs to get a code of its own."""

    @property
    def features(self) -> tuple[str, ...]:
        """The inputs, in the order in which the network takes them."""
        return self.categorical + self.numeric


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows: one tensor `[rows]` an input in the task's order, labels float32 `[rows]`, groups as numpy text."""

    inputs: tuple[Tensor, ...]
    labels: Tensor
    groups: npt.NDArray[np.object_]
    _digest: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """SHA-256 of inputs and labels, taken once, in about a second a gigabyte."""
        if not self._digest:
            found = hashlib.sha256()
            for column in (*self.inputs, self.labels):
                found.update(f"{column.dtype} {list(column.shape)}".encode())
                found.update(column.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._digest.append(found.hexdigest())
        return self._digest[0]


@dataclass(frozen=True, slots=True)
class Split:
    """Two tables that share no group; `held_out` has the latest groups."""

    train: pa.Table
    held_out: pa.Table


def plain(task: TabularTask, table: pa.Table) -> pa.Table:
    """The table with texts as texts and numbers as numbers, however Arrow or pandas keep them.

    DataError if a column of the task is missing, there twice, or of a kind that it cannot be.
    """
    wanted = (*task.features, task.label, task.group)
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise DataError(f"column {missing[0]!r} is missing: {task.model} needs {', '.join(wanted)}")
    for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if name not in wanted:
            continue
        if table.column_names.count(name) > 1:
            raise DataError(f"column {name!r} is there twice: rename one of them")
        if pa.types.is_dictionary(column.type):  # a categorical of pandas
            column = pc.cast(column, column.type.value_type)
        kind = column.type
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            column = pc.cast(column, pa.string())
        elif name in task.categorical and not (pa.types.is_string(kind) or pa.types.is_null(kind)):
            raise DataError(f"column {name!r} is {kind}: a categorical column must hold text; convert it to text")
        if name == task.label or name in task.numeric:
            _check_numbers(name, column)
        if column is not table.column(place):
            table = table.set_column(place, name, column)
    return table


def labelled(task: TabularTask, table: pa.Table) -> pa.Table:
    """The rows whose label is known, `plain`. DataError as there."""
    table = plain(task, table)
    label = pc.cast(table.column(task.label), pa.float64())
    return table.filter(pc.fill_null(pc.is_finite(label), False))


def split_recent(table: pa.Table, group: str, share: float) -> Split:
    """Holds out the last `share` of the groups, in order of their value (ISO dates sort as time does); at least one."""
    groups = sorted(value for value in pc.unique(table.column(group)).to_pylist() if value is not None)
    if len(groups) < 2:
        raise DataError(f"{len(groups)} value of {group!r} in {table.num_rows} rows: a split needs at least two")
    held_out = groups[-min(max(1, round(len(groups) * share)), len(groups) - 1) :]
    chosen = pc.is_in(table.column(group), pa.array(held_out))
    known = pc.is_valid(table.column(group))
    return Split(table.filter(pc.and_(pc.invert(chosen), known)), table.filter(chosen))


def fit(task: TabularTask, table: pa.Table) -> Encoding:
    """Categories (sorted, those with `min_count` rows), mean and deviation of the finite numbers of `table`."""
    means, deviations = {}, {}
    for name in task.numeric:
        values = _numbers(table.column(name))
        values = values[np.isfinite(values)]
        if not len(values):
            raise DataError(f"column {name!r} has no finite value in {table.num_rows} rows")
        means[name] = float(values.mean())
        # A constant column carries nothing; 1 keeps its standardised value at 0 instead of NaN.
        deviations[name] = float(values.std()) or 1.0
    vocabularies = {name: _categories(table.column(name), task.min_count) for name in task.categorical}
    return Encoding(vocabularies, means, deviations)


def encode(task: TabularTask, vocabularies: Mapping[str, tuple[str, ...]], table: pa.Table) -> tuple[Tensor, ...]:
    """The inputs of `table` as the served model gets them: code 0 is unknown or null, else 1 + position."""
    codes = tuple(_codes(table.column(name), vocabularies[name]) for name in task.categorical)
    return codes + tuple(torch.from_numpy(_numbers(table.column(name)).astype(np.float32)) for name in task.numeric)


def encode_rows(task: TabularTask, vocabularies: Mapping[str, tuple[str, ...]], table: pa.Table) -> Rows:
    """Inputs, labels and groups of a table in which every label is known."""
    labels = torch.from_numpy(_numbers(table.column(task.label)).astype(np.float32))
    groups = table.column(task.group).to_numpy(zero_copy_only=False).astype(object)
    return Rows(encode(task, vocabularies, table), labels, groups)


def batches(
    rows: Rows, size: int, seed: int, epoch: int, start: int = 0
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Shuffled batches of an epoch from batch `start` on; the order depends on `(seed, epoch)` alone, so it resumes."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    for first in range(start * size, len(rows), size):
        chosen = order[first : first + size]
        yield tuple(column[chosen] for column in rows.inputs), rows.labels[chosen]


def predict(network: nn.Module, inputs: tuple[Tensor, ...], size: int = 16_384) -> npt.NDArray[np.float64]:
    """The probabilities `[rows]` of a network in evaluation mode, or of an exported program, in batches of `size`."""
    parts = []
    with torch.inference_mode():
        for first in range(0, len(inputs[0]), size):
            part = network(*(column[first : first + size] for column in inputs))
            parts.append(part.double().cpu().numpy())
    return np.concatenate(parts) if parts else np.empty(0)


def _check_numbers(name: str, column: pa.ChunkedArray) -> None:
    try:
        pc.cast(column, pa.float64())
    except pa.ArrowException as error:
        raise DataError(f"column {name!r} is {column.type} and cannot be read as numbers: {error}") from None


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    return cast("npt.NDArray[np.float64]", pc.fill_null(pc.cast(column, pa.float64()), float("nan")).to_numpy())


def _codes(column: pa.ChunkedArray, vocabulary: tuple[str, ...]) -> Tensor:
    position = pc.index_in(column, value_set=pa.array(vocabulary, pa.string()))
    return torch.from_numpy(pc.add(pc.cast(pc.fill_null(position, -1), pa.int64()), 1).to_numpy().copy())


def _categories(column: pa.ChunkedArray, min_count: int) -> tuple[str, ...]:
    counted = pc.value_counts(column).to_pylist()
    return tuple(sorted(c["values"] for c in counted if c["values"] is not None and c["counts"] >= min_count))
