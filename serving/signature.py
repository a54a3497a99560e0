"""A model's signature: named, typed inputs and outputs, and how values on the wire become the model's columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import ArtifactError, InvalidRequest

Array = npt.NDArray[Any]
Values = Sequence[Any] | Array  # one input's values of one request: a list from JSON or an array from a binary tensor

# Wire datatypes that an input of a declared datatype takes without loss of meaning.
_ACCEPTS = {
    "FP32": {"FP32", "FP64", "FP16", "INT64", "INT32", "INT16", "INT8", "UINT8", "UINT16", "UINT32"},
    "INT64": {"INT64", "INT32", "INT16", "INT8", "UINT8", "UINT16", "UINT32"},
    "BYTES": {"BYTES"},
    "BOOL": {"BOOL"},
}
_JSON_TYPES: dict[str, frozenset[type]] = {
    "FP32": frozenset({int, float, type(None)}),
    "INT64": frozenset({int}),
    "BYTES": frozenset({str, type(None)}),
    "BOOL": frozenset({bool, int}),
}
_MODEL_TYPES = {"FP32": np.float32, "BOOL": np.float32, "INT64": np.int64, "BYTES": np.int64}


class _Codes(dict[str | None, int]):
    """Category to code; 0 for what is not in the list."""

    def __missing__(self, key: object) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Input:
    """One input column. `categories` turn BYTES into codes: 0 = not in the list, else 1 + position."""

    name: str
    datatype: str
    categories: tuple[str, ...] | None = None
    codes: _Codes | None = None
    json_types: frozenset[type] = frozenset()

    @staticmethod
    def of(name: str, datatype: str, categories: Iterable[str] | None = None) -> Input:
        """Raises ArtifactError for a datatype that is not FP32, INT64, BYTES or BOOL, and BYTES without categories."""
        if datatype not in _ACCEPTS:
            raise ArtifactError(f"input {name!r} has datatype {datatype!r}; use FP32, INT64, BYTES or BOOL")
        if (datatype == "BYTES") != (categories is not None):
            raise ArtifactError(
                f"input {name!r} of datatype {datatype}: categories belong to BYTES inputs, and must be given"
            )
        known = None if categories is None else tuple(categories)
        codes = None if known is None else _Codes({value: 1 + place for place, value in enumerate(known)})
        return Input(name, datatype, known, codes, _JSON_TYPES[datatype])

    def check(self, datatype: str, values: Values, rows: int) -> None:
        """Raises InvalidRequest unless `values` are `rows` values that this input takes."""
        if datatype != self.datatype and datatype not in _ACCEPTS[self.datatype]:
            raise InvalidRequest(f"input {self.name!r} has datatype {datatype}, the model takes {self.datatype}")
        if len(values) != rows:
            raise InvalidRequest(f"input {self.name!r} has {len(values)} values, its shape says {rows}")
        if isinstance(values, np.ndarray):
            return
        if not self.json_types.issuperset(map(type, values)):
            kinds = ", ".join(
                sorted({type(value).__name__ for value in values} - {k.__name__ for k in self.json_types})
            )
            raise InvalidRequest(f"input {self.name!r} holds {kinds}, the model takes {self.datatype}")

    def column(self, parts: Sequence[Values]) -> Array:
        """The model's column [rows] from the values of several requests, concatenated in order."""
        values = joined(parts)
        if self.codes is not None:
            return np.fromiter(map(self.codes.__getitem__, values), np.int64, len(values))
        try:
            # A copy: torch takes no read-only memory, which is what a binary tensor's body is.
            return np.array(values, _MODEL_TYPES[self.datatype])
        except (OverflowError, ValueError, TypeError) as error:
            raise InvalidRequest(f"input {self.name!r} holds a value outside {self.datatype}: {error}") from error


def joined(parts: Sequence[Values]) -> Values:
    """The values of several requests, one behind the other; a list unless all parts are arrays."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return list(chain.from_iterable(part.tolist() if isinstance(part, np.ndarray) else part for part in parts))


@dataclass(frozen=True, slots=True)
class Output:
    """One output; its datatype on the wire is FP32."""

    name: str
    datatype: str = "FP32"


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs in the order of the model's arguments, and outputs in the order of its results."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> Signature:
        """From a manifest's `inputs` and `outputs`. Raises ArtifactError when a name is missing or doubled."""
        try:
            inputs = tuple(Input.of(i["name"], i["datatype"], i.get("categories")) for i in manifest["inputs"])
            outputs = tuple(Output(o["name"], o.get("datatype", "FP32")) for o in manifest["outputs"])
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"the manifest's inputs or outputs are incomplete: {error!r}") from error
        for group in (inputs, outputs):
            if not group or len({column.name for column in group}) != len(group):
                raise ArtifactError("the manifest must name at least one input and one output, each once")
        return Signature(inputs, outputs)

    def to_json(self) -> dict[str, Any]:
        """The manifest's `inputs` and `outputs`."""
        return {
            "inputs": [
                {
                    "name": i.name,
                    "datatype": i.datatype,
                    "categories": None if i.categories is None else list(i.categories),
                }
                for i in self.inputs
            ],
            "outputs": [{"name": o.name, "datatype": o.datatype} for o in self.outputs],
        }

    def columns(self, requests: Sequence[Sequence[Values]]) -> list[Array]:
        """One column an input from requests, each a list of values in the inputs' order."""
        return [column.column([request[place] for request in requests]) for place, column in enumerate(self.inputs)]
