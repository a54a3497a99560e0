"""Long lists of numbers in a JSON request, read piece by piece: no step keeps other threads waiting for long.

A whole body is decoded in one call, which lets nothing else run for tens of milliseconds. Here the lists are cut out,
the little that is left is decoded as usual, and the lists follow in pieces. Whatever is not as expected is left to the
usual way, which says what is wrong with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np

from serving import v2
from serving.errors import InvalidRequest
from serving.protocol.tensors import BFLOAT16, WIRE_TYPES, Array, NumberTensor, Tensor

# Bytes of a body from which its lists are looked for: fewer are read in about a millisecond.
LONG_BODY = 256 * 1024
# Bytes of a list that is cut out, and of a piece: about a quarter of a millisecond.
_LONG_LIST = 64 * 1024
_PIECE = 64 * 1024
_MAX_TENSORS = 64
_LIST = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*(\[?)')
_COMMA = re.compile(rb"[ \t\r\n]*,")
_SPACE = b" \t\r\n"
# Nobody can send what stands for a list.
_MARK = os.urandom(16).hex()

# By whether the numbers are floats, and whether they are in rows.
_DECODERS: dict[tuple[bool, bool], Callable[[bytes], list[Any]]] = {
    (True, False): msgspec.json.Decoder(list[float | None]).decode,
    (True, True): msgspec.json.Decoder(list[list[float | None]]).decode,
    (False, False): msgspec.json.Decoder(list[int]).decode,
    (False, True): msgspec.json.Decoder(list[list[int]]).decode,
}


class _Cut(NamedTuple):
    """A list between its brackets, which are at `start - 1` and `end`."""

    start: int
    end: int
    nested: bool


def parse_long(body: bytes, between: Callable[[], None]) -> v2.InferRequest | None:
    """The request of a JSON body, `between` called after each piece; None where the usual way must read it.

    Raises InvalidRequest, and whatever `between` raises.
    """
    cuts = list(_cuts(body))
    if not cuts:
        return None
    rest, at = [], 0
    for place, cut in enumerate(cuts):
        rest += [body[at : cut.start], b'"%b-%d"' % (_MARK.encode(), place)]
        at = cut.end
    try:
        parsed = v2.decoded(b"".join((*rest, body[at:])))
    except InvalidRequest:
        return None
    if any(tensor.parameters and "binary_data_size" in tensor.parameters for tensor in parsed.inputs):
        return None
    marks = {f"{_MARK}-{place}": cut for place, cut in enumerate(cuts)}
    inputs: list[Tensor | NumberTensor] = []
    for tensor in parsed.inputs:
        data = tensor.data
        found = marks.pop(data[0], None) if data and len(data) == 1 and type(data[0]) is str else None
        if found is None:
            inputs.append(tensor)
            continue
        numbers = _numbers(body, found, tensor, between)
        if numbers is None:
            return None
        inputs.append(NumberTensor(tensor.name, tensor.datatype, tensor.shape, numbers))
    if marks:
        return None
    return v2.request_of(parsed, inputs)


def _cuts(body: bytes) -> Iterator[_Cut]:
    at = 0
    for _ in range(_MAX_TENSORS):
        at = body.find(b'"data"', at)
        if at < 0:
            return
        found = _LIST.match(body, at)
        if found is None:
            at += 1
            continue
        nested = bool(found[1])
        start = at = found.end() - nested
        # Neither stands in a list of numbers; behind it comes one or the other.
        quote = body.find(b'"', start)
        behind = len(body) if quote < 0 else quote
        brace = body.find(b"}", start, behind)
        end = body.rfind(b"]", start, behind if brace < 0 else brace)
        if end - start >= _LONG_LIST:
            yield _Cut(start, end, nested)
            at = end


def _numbers(body: bytes, cut: _Cut, tensor: Tensor, between: Callable[[], None]) -> Array | None:
    """The numbers in C order, float64 or int64; None where they are not what the tensor says."""
    kind = WIRE_TYPES.get(tensor.datatype)
    floats = tensor.datatype == BFLOAT16 or (kind is not None and kind.kind == "f")
    if not floats and (kind is None or kind.kind not in "iu"):
        return None
    shape = tensor.shape
    # A number takes two bytes at least: a shape that lies claims no memory.
    if not shape or min(shape) < 1 or prod(shape) > (cut.end - cut.start) // 2 + 1 or (cut.nested and len(shape) != 2):
        return None
    values = np.empty(prod(shape), np.float64 if floats else np.int64)
    at = 0
    decode = _DECODERS[floats, cut.nested]
    try:
        for piece in _pieces(body, cut):
            numbers = decode(b"[%b]" % piece)
            if not numbers:
                return None
            if cut.nested:
                if set(map(len, numbers)) != {shape[1]}:
                    return None
                numbers = list(chain.from_iterable(numbers))
            values[at : at + len(numbers)] = numbers
            at += len(numbers)
            between()
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError):
        return None
    return values if at == len(values) else None


def _pieces(body: bytes, cut: _Cut) -> Iterator[bytes]:
    """The list's text in pieces of whole items, without the commas between the pieces. ValueError: it is no list."""
    at, end, behind = cut.start, cut.end, b"]" if cut.nested else b","
    while (stop := body.find(behind, at + _PIECE, end)) >= 0:
        stop += cut.nested
        yield body[at:stop]
        comma = _COMMA.match(body, stop, end)
        if comma is None:
            if body[stop:end].strip(_SPACE):
                raise ValueError("no comma between two items")
            return
        at = comma.end()
    yield body[at:end]
