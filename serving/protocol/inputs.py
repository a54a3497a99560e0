"""One input of a model: its name, datatype and shape, and how values on the wire become its tensor."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from serving.errors import ArtifactError, InvalidRequest
from serving.protocol.ragged import padded
from serving.protocol.tensors import BFLOAT16, WIRE_TYPES, AnyTensor, Array, BinaryTensor, NumberTensor, Tensor

# One input's values of one request, in C order: bytes of the model's own type, an array, or a list.
Values = Sequence[Any] | Array | bytes | memoryview

# A BOOL input that has a shape: a column of flags is a feature as others are, a tensor of them is a mask.
_MASK = "BOOL[]"
_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
_FLOATS = ("FP16", "FP32", "FP64")
# What a model gets for a declared datatype.
_MODEL_TYPES: dict[str, np.dtype[Any]] = {
    **{name: WIRE_TYPES[name] for name in (*_FLOATS, "INT8", "INT16", "INT32", "INT64", "UINT8")},
    "BOOL": np.dtype("<f4"),
    _MASK: np.dtype("?"),
    "BYTES": np.dtype("<i8"),
}
# Wire datatypes that an input takes: numbers go into floats; integers into integers, where they fit.
_ACCEPTS: dict[str, frozenset[str]] = {
    **{name: frozenset((*_FLOATS, *_INTEGERS, BFLOAT16)) for name in _FLOATS},
    **{name: frozenset(_INTEGERS) for name in ("INT8", "INT16", "INT32", "INT64", "UINT8")},
    "BYTES": frozenset({"BYTES"}),
    "BOOL": frozenset({"BOOL"}),
}
_JSON_TYPES: dict[str, frozenset[type]] = {
    **{name: frozenset({int, float, type(None)}) for name in _FLOATS},
    **{name: frozenset({int}) for name in ("INT8", "INT16", "INT32", "INT64", "UINT8")},
    "BOOL": frozenset({bool, int}),
}
_PACKED = {
    "FP16": "e", "FP32": "f", "FP64": "d", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B",
    "BOOL": "f", _MASK: "?",
}  # fmt: skip
# Longer lists are turned into an array: a packer of their length would be made for few.
_MAX_PACKED = 4096


class _Codes(dict[str | None, int]):
    """Category to code; 0 for what is not in the list."""

    def __missing__(self, key: object) -> int:
        return 0


@functools.lru_cache(maxsize=1024)
def packer(datatype: str, count: int) -> Callable[..., bytes]:
    """Packs `count` numbers into the bytes of an input's own datatype."""
    return struct.Struct(f"<{count}{_PACKED[datatype]}").pack


@dataclass(frozen=True, slots=True)
class Input:
    """One input of the model, which gets it as one tensor [rows, *shape].

    `shape` holds the dimensions behind the rows: () is a column, [n] or [n, 1] on the wire; -1 is a length that may
    differ from request to request. `categories` turn BYTES into codes: 0 = not in the list, else 1 + position. A BOOL
    column reaches the model as float32, BOOL of a shape as torch.bool.
    Raises ArtifactError for an unknown datatype, BYTES without categories, and dimensions that are none.
    """

    name: str
    datatype: str
    categories: tuple[str, ...] | None = None
    shape: tuple[int, ...] = ()
    codes: _Codes | None = field(init=False, repr=False, compare=False)
    size: int = field(init=False, repr=False, compare=False)  # values a row; 0 when it varies
    _kind: str = field(init=False, repr=False, compare=False)  # of what the model gets
    _dtype: np.dtype[Any] = field(init=False, repr=False, compare=False)
    _wanted: list[int] = field(init=False, repr=False, compare=False)  # the dimensions as a tensor has them

    def __post_init__(self) -> None:
        if self.datatype not in _ACCEPTS:
            raise ArtifactError(f"input {self.name!r} has datatype {self.datatype!r}; use one of {', '.join(_ACCEPTS)}")
        if (self.datatype == "BYTES") != (self.categories is not None):
            raise ArtifactError(
                f"input {self.name!r} of datatype {self.datatype}: categories belong to BYTES inputs, and must be given"
            )
        if not all(type(length) is int and (length > 0 or length == -1) for length in self.shape):
            raise ArtifactError(f"input {self.name!r} has shape {self.shape}; dimensions are positive, or -1")
        if self.categories is not None and -1 in self.shape:
            raise ArtifactError(f"input {self.name!r} of datatype BYTES has shape {self.shape}; its lengths are fixed")
        known = self.categories
        codes = None if known is None else _Codes({value: 1 + place for place, value in enumerate(known)})
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "size", 0 if -1 in self.shape else prod(self.shape))
        object.__setattr__(self, "_kind", _MASK if self.datatype == "BOOL" and self.shape else self.datatype)
        object.__setattr__(self, "_dtype", _MODEL_TYPES[self._kind])
        object.__setattr__(self, "_wanted", list(self.shape))

    @staticmethod
    def of(name: str, datatype: str, categories: Iterable[str] | None = None, shape: Iterable[int] = ()) -> Input:
        """The input from any iterables, as a manifest has them."""
        return Input(name, datatype, None if categories is None else tuple(categories), tuple(shape))

    @property
    def ragged(self) -> bool:
        """Whether requests may differ in a dimension."""
        return self.size == 0

    @property
    def floating(self) -> bool:
        """Whether its values are floats: whole numbers lose digits as such, and fractions are no whole numbers."""
        return self.datatype in _FLOATS

    @property
    def takes_bytes(self) -> bool:
        """Whether the bytes of a binary tensor of its own datatype are what the model gets."""
        return self.size > 0 and self.datatype not in ("BOOL", "BYTES")

    @property
    def wire_shape(self) -> list[int]:
        """The shape in the model's metadata: -1 for the rows, [-1, 1] for a column."""
        return [-1, *(self.shape or (1,))]

    def bind(self, tensor: AnyTensor, floats: bool = False) -> Values:
        """The tensor's values as this input takes them; `floats`: its JSON data is known to hold floats only.

        NaN is taken, as null is in JSON: both say that a value is missing. Raises InvalidRequest naming the input, what
        it has and what the model takes.
        """
        if tensor.datatype != self.datatype or tensor.shape[1:] != self._wanted:
            self._check(tensor)
        if isinstance(tensor, NumberTensor):
            return self._from_numbers(tensor)
        if self.codes is not None:
            return tensor.texts()
        if isinstance(tensor, BinaryTensor):
            return self._from_bytes(tensor)
        if floats:
            data: list[Any] = tensor.data  # type: ignore[assignment]
            if len(data) != prod(tensor.shape):
                data = tensor.flat()
        else:
            data = tensor.flat()
            self._check_types(data)
        if self.size and len(data) <= _MAX_PACKED:
            try:
                return packer(self._kind, len(data))(*data)
            except (struct.error, OverflowError):
                # A null, or a value that does not fit: the array knows which.
                pass
        return self._from_json(tensor, data)

    def _check(self, tensor: AnyTensor) -> None:
        if tensor.datatype != self.datatype and tensor.datatype not in _ACCEPTS[self.datatype]:
            raise InvalidRequest(f"input {self.name!r} has datatype {tensor.datatype}, the model takes {self.datatype}")
        seen, wanted = tensor.shape[1:], self.shape
        if not wanted:
            fits = not seen or seen == [1]
        elif self.size:
            fits = seen == list(wanted)
        else:
            fits = len(seen) == len(wanted) and all(w in (-1, s) and s > 0 for s, w in zip(seen, wanted, strict=True))
        if not fits:
            takes = "[-1] or [-1, 1]" if not wanted else self.wire_shape
            raise InvalidRequest(f"input {self.name!r} has shape {tensor.shape}, the model takes {takes}")

    def _from_bytes(self, tensor: BinaryTensor) -> Values:
        if self.takes_bytes and tensor.datatype == self.datatype:
            tensor.check_bytes(self._dtype.itemsize)
            return tensor.raw
        values = tensor.array()
        if self._dtype.kind in "iu" and values.dtype != self._dtype and values.size:
            self._check_range(values)
        return values.reshape(tensor.shape) if self.ragged else values

    def _check_types(self, data: list[Any]) -> None:
        types = _JSON_TYPES[self.datatype]
        if not types.issuperset(map(type, data)):
            kinds = ", ".join(sorted({type(value).__name__ for value in data} - {kind.__name__ for kind in types}))
            raise InvalidRequest(f"input {self.name!r} holds {kinds}, the model takes {self.datatype}")

    def _from_json(self, tensor: Tensor, data: list[Any]) -> Values:
        try:
            with np.errstate(over="ignore"):
                values = np.array(data, self._dtype)
        except (OverflowError, ValueError, TypeError) as error:
            raise InvalidRequest(f"input {self.name!r} holds a value outside {self.datatype}: {error}") from error
        return self._fitting(tensor, values)

    def _from_numbers(self, tensor: NumberTensor) -> Values:
        numbers = tensor.numbers
        if self._dtype.kind in "iu":
            self._check_range(numbers)
        with np.errstate(over="ignore"):
            return self._fitting(tensor, numbers.astype(self._dtype))

    def _fitting(self, tensor: Tensor | NumberTensor, values: Array) -> Values:
        if self._dtype.kind == "f" and np.isinf(values).any():
            raise InvalidRequest(f"input {self.name!r} holds a value outside {self.datatype}")
        return values.reshape(tensor.shape) if self.ragged else values

    def _check_range(self, values: Array) -> None:
        bounds = np.iinfo(self._dtype)
        if int(values.min()) < bounds.min or int(values.max()) > bounds.max:
            raise InvalidRequest(f"input {self.name!r} holds a value outside {self.datatype}")

    def column(self, parts: Sequence[Values]) -> Array:
        """The model's tensor [rows, *shape] from the values of several requests, one behind the other; a new array."""
        if self.codes is not None:
            count = sum(map(len, parts))
            codes = np.fromiter(map(self.codes.__getitem__, chain.from_iterable(parts)), np.int64, count)
            return codes.reshape(-1, *self.shape) if self.shape else codes
        if all(isinstance(part, (bytes, memoryview)) for part in parts):
            # torch takes no read-only memory, which is what a binary tensor's body is.
            flat = np.frombuffer(bytearray().join(parts), self._dtype)  # type: ignore[arg-type]
        elif self.ragged:
            return np.concatenate([np.asarray(part, self._dtype) for part in parts])
        else:
            flat = self.joined(parts).astype(self._dtype)
        return flat.reshape(-1, *self.shape) if self.shape else flat

    def padded(self, parts: Sequence[Values], buckets: Sequence[int]) -> Array:
        """The model's tensor as `column` gives it, of parts that differ in length; zeros stand behind the shorter."""
        return padded([np.asarray(part, self._dtype) for part in parts], self.shape, buckets)

    def joined(self, parts: Sequence[Values]) -> Array:
        """The values of several requests as one flat array, one behind the other."""
        return np.concatenate([self._flat(part) for part in parts])

    def _flat(self, part: Values) -> Array:
        if isinstance(part, (bytes, memoryview)):
            return np.frombuffer(part, self._dtype)
        try:
            return np.asarray(part, self._dtype).reshape(-1)
        except (OverflowError, ValueError, TypeError) as error:
            raise InvalidRequest(f"input {self.name!r} holds a value outside {self.datatype}: {error}") from error

    def dimensions(self, values: Values) -> tuple[int, ...]:
        """The shape of one row of the values, as they are with lengths that vary."""
        return values.shape[1:] if self.ragged and isinstance(values, np.ndarray) else self.shape

    def example(self, values: Any) -> Values:
        """The values of a manifest's example, one row or more, nested or flat. Raises InvalidRequest."""
        array = np.asarray(values, object if self.codes is not None else None)
        shape = [len(array), *(array.shape[1:] if self.shape else ())]
        if self.size and self.shape and array.ndim == 1:
            shape = [len(array) // self.size, *self.shape]
        datatype = self.datatype
        return self.bind(Tensor(self.name, datatype, shape, array.reshape(-1).tolist()))
