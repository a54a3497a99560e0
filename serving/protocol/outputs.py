"""A batch's outputs, and one request's rows of them: what the answers need is encoded once for the whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import orjson

from serving.protocol.tensors import Array

_NUMPY = orjson.OPT_SERIALIZE_NUMPY
# Numbers of a batch from which its answers may be long: so many are a millisecond's work as JSON.
LONG_VALUES = 32 * 1024


class Outputs:
    """The outputs of a batch, one array [rows, …] each."""

    __slots__ = ("_bytes", "_texts", "arrays", "frames", "long", "rows")

    def __init__(self, arrays: Sequence[Array], rows: int) -> None:
        self.arrays = arrays
        self.rows = rows
        self.long = sum([array.size for array in arrays]) >= LONG_VALUES
        # What stands around the values of requests of one kind: the responder's.
        self.frames: dict[Any, Any] = {}
        self._texts: dict[int, list[bytes]] = {}
        self._bytes: dict[int, bytes] = {}

    def text(self, place: int, start: int, stop: int) -> bytes:
        """Rows of an output as JSON values in C order, without brackets."""
        if stop - start == self.rows or self.long:
            return values_text(self.arrays[place][start:stop])
        texts = self.texts(place)
        # Rows without a value have no comma between them either.
        return texts[start] if stop - start == 1 or not texts[start] else b",".join(texts[start:stop])

    def texts(self, place: int) -> list[bytes]:
        """The same of each row."""
        texts = self._texts.get(place)
        if texts is None:
            texts = self._texts[place] = self._row_texts(place)
        return texts

    def _row_texts(self, place: int) -> list[bytes]:
        values = np.ascontiguousarray(self.arrays[place])
        if values.ndim == 1:
            return orjson.dumps(values, option=_NUMPY)[1:-1].split(b",")
        return orjson.dumps(values.reshape(len(values), -1), option=_NUMPY)[2:-2].split(b"],[")

    def content(self, place: int, start: int, stop: int) -> bytes:
        """Rows of an output as the binary extension has them."""
        if self.long:
            return self.arrays[place][start:stop].tobytes()
        content = self.contents(place)
        width = len(content) // self.rows
        return content[start * width : stop * width]

    def contents(self, place: int) -> bytes:
        """The same of all rows."""
        content = self._bytes.get(place)
        if content is None:
            content = self._bytes[place] = self.arrays[place].tobytes()
        return content


class Rows(Sequence[Array]):
    """One request's outputs: rows `start` to `stop` of its batch, as arrays when they are asked for."""

    __slots__ = ("batch", "start", "stop")

    def __init__(self, batch: Outputs, start: int, stop: int) -> None:
        self.batch = batch
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return len(self.batch.arrays)

    @overload
    def __getitem__(self, place: int) -> Array: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Array]: ...

    def __getitem__(self, place: int | slice) -> Array | Sequence[Array]:
        if isinstance(place, slice):
            return [array[self.start : self.stop] for array in self.batch.arrays[place]]
        return self.batch.arrays[place][self.start : self.stop]

    def __iter__(self) -> Iterator[Array]:
        return (array[self.start : self.stop] for array in self.batch.arrays)


def values_text(values: Array) -> bytes:
    """The values as JSON in C order, without brackets; a float is the shortest text that gives it back."""
    return orjson.dumps(np.ascontiguousarray(values).reshape(-1), option=_NUMPY)[1:-1]
