"""One input tensor of a request, as the wire has it: its values are read when they are bound to a model's input."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest

Array = npt.NDArray[Any]
# The protocol's datatypes and their bytes in the binary extension; BYTES has lengths of its own.
WIRE_TYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
# Half of a float32, without the bits behind; numpy has no such type. Models get it as a wider float.
BFLOAT16 = "BF16"
NO_SHARED_MEMORY = "shared memory is not offered; send tensors in the body, as JSON or as binary data"
_TEXT_TYPES = frozenset({str, type(None)})


class Tensor(msgspec.Struct, gc=False):
    """An input of a request. `data` is JSON's, flat or nested; in the binary extension it is a `BinaryTensor`."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None

    def flat(self) -> list[Any]:
        """The values in C order, `prod(shape)` of them. Raises InvalidRequest."""
        data = self.data
        if data is None:
            if self.parameters and "shared_memory_region" in self.parameters:
                raise InvalidRequest(f"input {self.name!r}: {NO_SHARED_MEMORY}")
            raise InvalidRequest(f"input {self.name!r} has neither data nor binary_data_size")
        if data and type(data[0]) is list:
            data = self._unnested(data)
        if len(data) != prod(self.shape):
            raise InvalidRequest(
                f"input {self.name!r} has {len(data)} values, its shape {self.shape} says {prod(self.shape)}"
            )
        return data

    def texts(self) -> list[str | None]:
        """The strings of a BYTES tensor, `prod(shape)` of them. Raises InvalidRequest."""
        texts = self.flat()
        if not _TEXT_TYPES.issuperset(map(type, texts)):
            kinds = ", ".join(sorted({type(text).__name__ for text in texts} - {"str", "NoneType"}))
            raise InvalidRequest(f"input {self.name!r} holds {kinds}, the model takes BYTES")
        return texts

    def _unnested(self, data: list[Any]) -> list[Any]:
        """Nested lists, one level a dimension of the shape, as one list."""
        for depth, length in enumerate(self.shape[:-1]):
            width = self.shape[depth + 1]
            fits = all(type(item) is list and len(item) == width for item in data)
            if not fits or (depth == 0 and len(data) != length):
                raise InvalidRequest(
                    f"input {self.name!r}: its data is not nested as its shape {self.shape} says: "
                    f"{length} lists of {width} values are wanted in dimension {depth + 1}"
                )
            data = list(chain.from_iterable(data))
        return data


class FloatTensor(Tensor, gc=False):
    """A tensor whose JSON data is flat and holds floats only."""

    data: list[float]


class BinaryTensor(msgspec.Struct, gc=False):
    """An input whose values are bytes behind the JSON part."""

    name: str
    datatype: str
    shape: list[int]
    raw: memoryview | bytes

    def array(self) -> Array:
        """The values in the wire's datatype, `prod(shape)` of them. Raises InvalidRequest."""
        if self.datatype == BFLOAT16:
            self.check_bytes(2)
            return (np.frombuffer(self.raw, "<u2").astype("<u4") << 16).view("<f4")
        kind = WIRE_TYPES.get(self.datatype)
        if kind is None:
            raise InvalidRequest(f"input {self.name!r} has datatype {self.datatype!r}, which has no binary form here")
        self.check_bytes(kind.itemsize)
        if self.datatype == "BOOL":
            return np.not_equal(np.frombuffer(self.raw, np.uint8), 0)
        return np.frombuffer(self.raw, kind)

    def check_bytes(self, itemsize: int) -> None:
        """Raises InvalidRequest unless there are as many bytes as the shape says."""
        if len(self.raw) != prod(self.shape) * itemsize:
            raise InvalidRequest(
                f"input {self.name!r} has {len(self.raw)} bytes, its shape {self.shape} of {self.datatype} says "
                f"{prod(self.shape) * itemsize}"
            )

    def texts(self) -> list[str | None]:
        """The strings of a BYTES tensor, `prod(shape)` of them, each behind its length of 4 bytes. InvalidRequest."""
        texts = _length_prefixed(self.name, memoryview(self.raw))
        if len(texts) != prod(self.shape):
            raise InvalidRequest(
                f"input {self.name!r} has {len(texts)} strings, its shape {self.shape} says {prod(self.shape)}"
            )
        return texts


class NumberTensor(msgspec.Struct, gc=False):
    """An input of numbers that were read already: as many as its shape says, in C order, float64 or int64."""

    name: str
    datatype: str
    shape: list[int]
    numbers: Array


AnyTensor = Tensor | BinaryTensor | NumberTensor


def _length_prefixed(name: str, content: memoryview) -> list[Any]:
    texts, offset, end = [], 0, len(content)
    try:
        while offset < end:
            (length,) = struct.unpack_from("<I", content, offset)
            offset += 4 + length
            if offset > end:
                raise InvalidRequest(f"input {name!r}: a string of {length} bytes runs over the tensor's end")
            texts.append(str(content[offset - length : offset], "utf-8"))
    except (struct.error, UnicodeDecodeError) as error:
        raise InvalidRequest(f"input {name!r} is no sequence of length-prefixed UTF-8 strings: {error}") from error
    return texts


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Raises InvalidRequest unless the shape has a batch dimension of 1 or more and no negative one."""
    if not shape or shape[0] < 1 or min(shape) < 0:
        raise InvalidRequest(f"input {name!r} has shape {list(shape)}; give [n, …] with the same n, at least 1")
