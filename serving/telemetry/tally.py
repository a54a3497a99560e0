"""Which columns of a reference a version's batches are, and their counts; for one thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import observability
from observability.event_names import FEATURE, PREDICTION
from observability.native import library
from serving.protocol.signature import Signature
from serving.protocol.tensors import Array
from serving.telemetry.columns import names_of

if TYPE_CHECKING:
    from observability.columns import Column
    from observability.probe import Probe
    from observability.profile import Profile

# Columns [rows, …] in the order of the inputs (none where nothing of them is counted), and the outputs' rows.
Left = tuple[Sequence[Array], Sequence[Array]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a reference a version's inputs and outputs are, by name: their places."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, tuple[int, int]]
    """Place of the output, and of the value in its row."""
    categories: Mapping[str, tuple[str, ...]]

    @staticmethod
    def of(reference: Profile, signature: Signature) -> Columns:
        """Those that a probe counts: numbers, codes of listed categories, true and false.

        Vectors stay with the events: what is kept of one costs microseconds a row, which the collector has, not the
        server.
        """
        inputs: dict[str, int] = {}
        outputs: dict[str, tuple[int, int]] = {}
        categories: dict[str, tuple[str, ...]] = {}
        for place, column in enumerate(signature.inputs):
            name = FEATURE + column.name
            known = reference.columns.get(name)
            if known is None or column.shape or not _codes_tell(known, column.categories):
                continue
            kind = "categorical" if column.categories is not None else "numeric"
            if known.kind == kind or (known.kind == "boolean" and column.datatype == "BOOL"):
                inputs[name] = place
                if column.categories is not None:
                    categories[name] = column.categories
        for place, output in enumerate(signature.outputs):
            width = 0 if -1 in output.shape else int(np.prod(output.shape))
            for value, name in enumerate(names_of(output.name, width)):
                known = reference.columns.get(PREDICTION + name)
                if known is not None and known.kind == "numeric":
                    outputs[PREDICTION + name] = place, value
        return Columns(inputs, outputs, categories)

    @property
    def names(self) -> list[str]:
        return [*self.inputs, *self.outputs]


def _codes_tell(known: Column, categories: Sequence[str] | None) -> bool:
    """Whether a model's codes say which category a text is: one that it has no code for must not be the reference's."""
    texts = getattr(known, "categories", None)
    return categories is None or texts is None or set(texts) <= set(categories)


class Tally:
    """Counts of a version's columns: a probe has those that compiled code counts, the profile's engines the others."""

    def __init__(self, reference: Profile, columns: Columns) -> None:
        self._reference = reference
        self._columns = columns
        self._probe: Probe | None = None
        self._probed: tuple[str, ...] = ()
        self._others: Profile | None = None
        self._before: Profile | None = None
        # Of the probe and the others.
        self._rows = 0

    def add(self, left: Sequence[Left]) -> None:
        """Counts batches."""
        import torch

        tensors = {name: torch.from_numpy(values) for name, values in _joined(self._columns, left)}
        rows = len(next(iter(tensors.values())))
        probed = tuple(
            name for name, values in tensors.items()
            if self._reference.columns[name].kind != "numeric" or (values.dtype is torch.float32 and library())
        )  # fmt: skip
        if probed != self._probed:
            self._before, self._probed = self.take(), probed
            self._probe = None
            if probed:
                self._probe = observability.Probe(self._reference, probed, categories=self._categories(probed))
        if self._probe is not None:
            self._probe(*(tensors.pop(name) for name in probed))
        if tensors:
            reference = observability.Profile({name: self._reference.columns[name] for name in tensors})
            found = observability.profile_of_tensors(reference, tensors, categories=self._categories(tensors))
            self._others = found if self._others is None else self._others + found
        self._rows += rows

    def take(self) -> Profile | None:
        """What has been counted since the last call; None when there was nothing."""
        taken = self._before
        if self._rows:
            found = self._reference.empty().columns
            if self._probe is not None:
                found = {**found, **self._probe.profile().columns}
                self._probe.reset()
            if self._others is not None:
                found = {**found, **self._others.columns}
            counted = observability.Profile(found)
            taken = counted if taken is None else taken + counted
        self._before, self._others, self._rows = None, None, 0
        return taken

    def _categories(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        return {name: self._columns.categories[name] for name in names if name in self._columns.categories}


def _joined(columns: Columns, left: Sequence[Left]) -> Iterator[tuple[str, Array]]:
    """The values of each column that is counted, of all batches."""
    for name, place in columns.inputs.items():
        yield name, np.concatenate([inputs[place] for inputs, _ in left])
    widths: dict[int, Array] = {}
    for name, (place, value) in columns.outputs.items():
        if place not in widths:
            # Turned, so that each value's numbers lie together.
            rows = np.concatenate([outputs[place].reshape(len(outputs[place]), -1) for _, outputs in left])
            widths[place] = np.ascontiguousarray(rows.T)
        yield name, widths[place][value]
