"""Answers of one version in the Open Inference Protocol V2: what does not change between them is encoded once."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np

from serving.protocol.long_answers import LongBody, content_pieces, text_pieces
from serving.protocol.outputs import LONG_VALUES, Outputs, Rows
from serving.protocol.signature import Signature
from serving.protocol.tensors import WIRE_TYPES, Array
from serving.v2 import InferRequest

_Plan = Sequence[tuple[int, bool, bytes]]
# Of an answer with one output: its place, whether it is binary, and all that stands before its values.
Frame = tuple[int | None, bool, bytes]
_MAX_PLANS = 1024
# An answer is long from so many numbers as JSON or so many bytes as they are, and with it all of its batch where that
# has so many times as much.
_LONG_BYTES = 256 * 1024
_LONG_BATCH = 2
_LONG_BATCH_BYTES = 16
# Of a number as text, about.
_TEXT_BYTES = 12


class Responder:
    """Writes the bodies of one version's answers."""

    def __init__(self, model: str, version: int, signature: Signature) -> None:
        self._outputs = signature.outputs
        self._prefix = f'{{"model_name":{json.dumps(model)},"model_version":"{version}",'.encode()
        self._plans: dict[Hashable, _Plan] = {}
        # Numbers a row of what the model gave last; 0 before it was run.
        self.row_values = 0
        # Whether requests may be read as floats at once.
        self.floats = signature.floats

    def body(self, request: InferRequest, outputs: Sequence[Array]) -> tuple[bytes, int | None]:
        """The answer's body, and its JSON part's length where binary tensors follow."""
        # `isinstance` of an abstract class is many times slower.
        rows = outputs if type(outputs) is Rows else self.rows(outputs, request.rows)
        batch, start, stop = rows.batch, rows.start, rows.stop
        asked = request.outputs
        if not request.id:
            return self.answer(batch, start, stop, asked, request.binary_default)
        return self._written(batch, start, stop, asked, request.binary_default, request.id)

    def long(self, request: InferRequest, rows: Rows) -> int:
        """About how many bytes a long answer will take; 0 of one that is written at once."""
        batch, asked = rows.batch, request.outputs
        texts = contents = 0
        for output, array in zip(self._outputs, batch.arrays, strict=True):
            if asked is not None and output.name not in asked:
                continue
            if request.binary_default if asked is None else asked[output.name]:
                contents += array.nbytes
            else:
                texts += array.size
        share = (rows.stop - rows.start) / max(1, batch.rows)
        if (
            texts * share >= LONG_VALUES or contents * share >= _LONG_BYTES
            or texts >= _LONG_BATCH * LONG_VALUES or contents >= _LONG_BATCH_BYTES * _LONG_BYTES
        ):  # fmt: skip
            return int(share * (contents + _TEXT_BYTES * texts)) + 1
        return 0

    def long_body(self, request: InferRequest, rows: Rows, between: Callable[[], None]) -> tuple[LongBody, int | None]:
        """The same as `body`, in pieces, `between` called after each."""
        header: list[bytes] = []
        tail: list[bytes] = []

        def write(pieces: list[bytes], parts: Iterable[bytes]) -> None:
            for part in parts:
                pieces.append(part)
                between()

        plan = self._plan(rows.batch.arrays, rows.stop - rows.start, request.outputs, request.binary_default)
        header.append(self._prefix + self._named(request.id))
        for place, binary, piece in plan:
            header.append(piece)
            values = rows[place]
            write(tail if binary else header, content_pieces(values) if binary else text_pieces(values))
        header.append(self._end(plan))
        return LongBody((*header, *tail)), sum(map(len, header)) if any(binary for _, binary, _ in plan) else None

    def answer(
        self, batch: Outputs, start: int, stop: int, asked: Mapping[str, bool] | None, default: bool
    ) -> tuple[bytes, int | None]:
        """The body for rows `start` to `stop` of a batch, to a request without an id."""
        place, binary, before = self.frame(batch, stop - start, asked, default)
        if place is None:
            return self._written(batch, start, stop, asked, default, "")
        if binary:
            return before + batch.content(place, start, stop), len(before)
        return b"%b%b]}]}" % (before, batch.text(place, start, stop)), None

    def frame(self, batch: Outputs, rows: int, asked: Mapping[str, bool] | None, default: bool) -> Frame:
        """What stands before the values of a batch's answers of so many rows."""
        # Requests of a batch share their `asked` by identity, where they share a header.
        key = (rows, default, id(asked))
        frame: Frame | None = batch.frames.get(key)
        if frame is None:
            frame = batch.frames[key] = self._frame(batch.arrays, rows, asked, default)
        return frame

    def _written(
        self, batch: Outputs, start: int, stop: int, asked: Mapping[str, bool] | None, default: bool, id: str
    ) -> tuple[bytes, int | None]:
        plan = self._plan(batch.arrays, stop - start, asked, default)
        pieces = [self._prefix, self._named(id)]
        tail = []
        for place, binary, piece in plan:
            pieces.append(piece)
            if binary:
                tail.append(batch.content(place, start, stop))
            else:
                pieces.append(batch.text(place, start, stop))
        pieces.append(self._end(plan))
        header = b"".join(pieces)
        return (b"".join((header, *tail)), len(header)) if tail else (header, None)

    @staticmethod
    def _named(id: str) -> bytes:
        return b'"id":%b,' % msgspec.json.encode(id) if id else b""

    @staticmethod
    def _end(plan: _Plan) -> bytes:
        return b"}]}" if plan and plan[-1][1] else b"]}]}" if plan else b'"outputs":[]}'

    def _frame(self, arrays: Sequence[Array], rows: int, asked: Mapping[str, bool] | None, binary: bool) -> Frame:
        plan = self._plan(arrays, rows, asked, binary)
        if len(plan) != 1:
            return None, False, b""
        place, packed, piece = plan[0]
        return place, packed, self._prefix + piece + (b"}]}" if packed else b"")

    def rows(self, outputs: Sequence[Array], rows: int) -> Rows:
        """The outputs of one request that are no part of a batch's."""
        kinds = [WIRE_TYPES[output.datatype] for output in self._outputs]
        arrays = [np.asarray(values, kind) for values, kind in zip(outputs, kinds, strict=True)]
        return Rows(Outputs(arrays, rows), 0, rows)

    def _plan(self, arrays: Sequence[Array], rows: int, asked: Mapping[str, bool] | None, binary: bool) -> _Plan:
        """What stands before each output's values: (place, whether it is binary, text); kept for the usual requests."""
        shapes = [array.shape[1:] for array in arrays]
        key = (rows, binary, None if asked is None else tuple(asked.items()), *shapes)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._made(shapes, rows, asked, binary)
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _made(
        self, shapes: Sequence[Sequence[int]], rows: int, asked: Mapping[str, bool] | None, default: bool
    ) -> _Plan:
        plan: list[tuple[int, bool, bytes]] = []
        before = b'"outputs":['
        for place, (output, shape) in enumerate(zip(self._outputs, shapes, strict=True)):
            if asked is not None and output.name not in asked:
                continue
            binary = default if asked is None else asked[output.name]
            size = rows * prod(shape) * WIRE_TYPES[output.datatype].itemsize
            dimensions = ",".join(map(str, (rows, *shape)))
            head = f'{{"name":{json.dumps(output.name)},"datatype":"{output.datatype}","shape":[{dimensions}]'
            after = f',"parameters":{{"binary_data_size":{size}}}' if binary else ',"data":['
            plan.append((place, binary, before + head.encode() + after.encode()))
            before = b"}," if binary else b"]},"
        return plan


def error_body(message: str, details: Mapping[str, Any] | None = None) -> bytes:
    """The protocol's error object, with `details` beside its message."""
    return msgspec.json.encode({"error": message, **details} if details else {"error": message})
