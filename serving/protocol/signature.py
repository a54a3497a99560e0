"""A model's signature: its inputs and outputs, and how the values of requests become its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving.errors import ArtifactError, InvalidRequest
from serving.protocol.inputs import Input, Values, packer
from serving.protocol.ragged import LENGTH_SUFFIX, bucket, cut, varying
from serving.protocol.tensors import WIRE_TYPES, Array

__all__ = ["Input", "Output", "Signature", "Values", "packer"]


@dataclass(frozen=True, slots=True)
class Output:
    """One output and its datatype on the wire. `shape` holds the dimensions behind the rows; () leaves them open."""

    name: str
    datatype: str = "FP32"
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.datatype not in WIRE_TYPES:
            raise ArtifactError(f"output {self.name!r} has datatype {self.datatype!r}; use one of {sorted(WIRE_TYPES)}")

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a result of this shape, rows first, is what was declared."""
        if not self.shape:
            return True
        return len(shape) == 1 + len(self.shape) and all(
            wanted in (-1, found) for found, wanted in zip(shape[1:], self.shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs in the order of the model's arguments, and outputs in the order of its results.

    An input `NAME.length` beside an input NAME whose shape has -1 says that the model takes padding: the server pads
    NAME with zeros to the next of `buckets` and fills in each row's lengths. Raises ArtifactError unless it is INT64,
    of shape [] for one length and [k] for k of them.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    # Padded lengths, ascending; powers of two where the list ends.
    buckets: tuple[int, ...] = field(default=(), compare=False)
    # Whether some input has a length that varies.
    ragged: bool = field(init=False, repr=False, compare=False)
    # Place of each input that the server fills with lengths, and of the input that it measures.
    lengths: Mapping[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        places = {column.name: place for place, column in enumerate(self.inputs) if column.ragged}
        lengths = {
            place: places[column.name.removesuffix(LENGTH_SUFFIX)]
            for place, column in enumerate(self.inputs)
            if column.name.endswith(LENGTH_SUFFIX) and column.name.removesuffix(LENGTH_SUFFIX) in places
        }
        for place, measured in lengths.items():
            column, count = self.inputs[place], self.inputs[measured].shape.count(-1)
            if column.datatype != "INT64" or column.shape != (() if count == 1 else (count,)):
                raise ArtifactError(
                    f"input {column.name!r} holds the {count} lengths of {self.inputs[measured].name!r}; declare it "
                    f"INT64 of shape {[] if count == 1 else [count]}, not {column.datatype} of {list(column.shape)}"
                )
        object.__setattr__(self, "ragged", bool(places))
        object.__setattr__(self, "lengths", lengths)

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> Signature:
        """From a manifest's `inputs` and `outputs`. Raises ArtifactError when a name is missing or doubled."""
        try:
            inputs = tuple(
                Input.of(i["name"], i["datatype"], i.get("categories"), i.get("shape") or ())
                for i in manifest["inputs"]
            )
            outputs = tuple(
                Output(o["name"], o.get("datatype", "FP32"), tuple(o.get("shape") or ())) for o in manifest["outputs"]
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"the manifest's inputs or outputs are incomplete: {error!r}") from error
        for group in (inputs, outputs):
            if not group or len({column.name for column in group}) != len(group):
                raise ArtifactError("the manifest must name at least one input and one output, each once")
        return Signature(inputs, outputs)

    @property
    def floats(self) -> bool:
        """Whether all inputs are floats: then JSON is decoded to floats at once."""
        return all(column.floating for column in self.inputs)

    def to_json(self) -> dict[str, Any]:
        """The manifest's `inputs` and `outputs`; a shape only where there is one."""
        return {
            "inputs": [
                {
                    "name": i.name,
                    "datatype": i.datatype,
                    "categories": None if i.categories is None else list(i.categories),
                    **({"shape": list(i.shape)} if i.shape else {}),
                }
                for i in self.inputs
            ],
            "outputs": [
                {"name": o.name, "datatype": o.datatype, **({"shape": list(o.shape)} if o.shape else {})}
                for o in self.outputs
            ],
        }

    def columns(self, requests: Sequence[Sequence[Values]]) -> list[Array]:
        """One tensor an input from requests, each a list of values in the inputs' order."""
        if not self.lengths:
            return [column.column([request[place] for request in requests]) for place, column in enumerate(self.inputs)]
        columns = []
        measured = self.lengths.values()
        for place, column in enumerate(self.inputs):
            parts = [request[place] for request in requests]
            columns.append(column.padded(parts, self.buckets) if place in measured else column.column(parts))
        return columns

    def filled(self, values: Sequence[Values | None], rows: int) -> list[Values]:
        """The values of one request, those of its length inputs filled in."""
        whole = list(values)
        for place, measured in self.lengths.items():
            whole[place] = np.tile(np.array(self._varying(measured, whole[measured]), np.int64), (rows, 1))
        return whole  # type: ignore[return-value]

    def cut(self, outputs: Sequence[Array], values: Sequence[Values]) -> list[Array]:
        """One request's outputs without what its inputs were padded by."""
        lengths = [length for place in sorted(self.lengths.values()) for length in self._varying(place, values[place])]
        return [cut(part, output.shape, lengths) for output, part in zip(self.outputs, outputs, strict=True)]

    def _varying(self, place: int, values: Any) -> tuple[int, ...]:
        return varying(self.inputs[place].dimensions(values), self.inputs[place].shape)

    def example(self, example: Mapping[str, Any], times: int = 1) -> list[Array]:
        """The model's tensors for a manifest's example, its rows repeated. Raises ArtifactError if it does not fit."""
        try:
            values: list[Any] = [
                None if place in self.lengths else column.example(example[column.name])
                for place, column in enumerate(self.inputs)
            ]
        except (KeyError, InvalidRequest, ValueError, TypeError) as error:
            raise ArtifactError(f"the example does not fit the inputs: {error}") from error
        if self.lengths:
            values = self.filled(values, len(values[next(iter(self.lengths.values()))]))
        return self.columns([values] * times)

    def key(self, values: Sequence[Values]) -> tuple[tuple[int, ...], ...]:
        """What requests of one batch have in common: the lengths that vary, or where they are padded, the buckets."""
        measured = self.lengths.values()
        return tuple(
            tuple(bucket(length, self.buckets) for length in self._varying(place, values[place]))
            if place in measured
            else column.dimensions(values[place])
            for place, column in enumerate(self.inputs)
            if column.ragged
        )
