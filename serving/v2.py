"""Inference requests of the Open Inference Protocol V2: JSON and the binary tensor extension."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from serving.errors import InvalidRequest
from serving.signature import Signature, Values
from serving.tensors import NO_SHARED_MEMORY, BinaryTensor, FloatTensor, Tensor, check_shape

HEADER_LENGTH = b"inference-header-content-length"


class _Wanted(msgspec.Struct, gc=False):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    inputs: list[Tensor]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[_Wanted] | None = None


class _FloatBody(msgspec.Struct):
    inputs: list[FloatTensor]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[_Wanted] | None = None


_REFUSED_OUTPUTS = frozenset({"classification", "shared_memory_region"})
_NO_PARAMETERS: Mapping[str, Any] = {}
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_floats = msgspec.json.Decoder(_FloatBody).decode


class InferRequest:
    """A parsed request, not yet bound to a version. `tensors` are its inputs by name, all of `rows` rows.

    `outputs` says of each requested output whether it is to be binary; None requests all of them, and then
    `binary_default` says it. `floats`: JSON's data is known to hold floats only.
    """

    __slots__ = ("binary_default", "floats", "id", "outputs", "parameters", "rows", "tensors")

    def __init__(
        self,
        id: str,
        rows: int,
        tensors: Mapping[str, Tensor | BinaryTensor],
        parameters: Mapping[str, Any] | None = None,
        outputs: Mapping[str, bool] | None = None,
        binary_default: bool = False,
        floats: bool = False,
    ) -> None:
        self.id = id
        self.rows = rows
        self.tensors = tensors
        self.parameters = _NO_PARAMETERS if parameters is None else parameters
        self.outputs = outputs
        self.binary_default = binary_default
        self.floats = floats

    def values(self, signature: Signature) -> list[Values]:
        """The values in the order of the signature's inputs. Raises InvalidRequest naming the input that does not fit.

        Inputs that the version does not know are ignored: two versions may take different features.
        """
        tensors, floats = self.tensors, self.floats
        try:
            if signature.lengths:
                bound = [
                    None if place in signature.lengths else column.bind(tensors[column.name], floats)
                    for place, column in enumerate(signature.inputs)
                ]
                values = signature.filled(bound, self.rows)
            else:
                values = [column.bind(tensors[column.name], floats) for column in signature.inputs]
        except KeyError as error:
            raise InvalidRequest(
                f"input {error.args[0]!r} is missing; the model takes {[c.name for c in signature.inputs]}"
            ) from None
        if self.outputs is not None:
            unknown = self.outputs.keys() - {output.name for output in signature.outputs}
            if unknown:
                raise InvalidRequest(
                    f"output {min(unknown)!r} is unknown; the model gives {[o.name for o in signature.outputs]}"
                )
        return values

    def refuse_strangers(self, known: Collection[str]) -> None:
        """Raises InvalidRequest for an input that is not among the `known` ones of all versions."""
        strangers = [name for name in self.tensors if name not in known]
        if strangers:
            raise InvalidRequest(f"input {strangers[0]!r} is unknown; the model takes {sorted(known)}")


def parse(body: bytes, header_length: int | None = None, floats: bool = False) -> InferRequest:
    """A request from its body; `header_length` is the JSON part's size when binary tensors follow. InvalidRequest.

    With `floats` the model's inputs are all floats, and JSON that holds nothing else is read faster.
    """
    if header_length is not None:
        return _parse_binary(body, header_length)
    if floats:
        try:
            quick = _decode_floats(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # Nested data, a null, or something worse: the general form tells them apart.
            pass
        else:
            if all(tensor.parameters is None for tensor in quick.inputs):
                rows, tensors = _rows(quick.inputs), _by_name(quick.inputs)
                return InferRequest(quick.id, rows, tensors, quick.parameters, *_wanted(quick), floats=True)
    parsed = _decoded(body)
    if any(tensor.parameters and "binary_data_size" in tensor.parameters for tensor in parsed.inputs):
        return _parse_binary(body, len(body))
    rows, tensors = _rows(parsed.inputs), _by_name(parsed.inputs)
    return InferRequest(parsed.id, rows, tensors, parsed.parameters, *_wanted(parsed))


def _parse_binary(body: bytes, header_length: int) -> InferRequest:
    if not 0 < header_length <= len(body):
        raise InvalidRequest(f"Inference-Header-Content-Length {header_length} does not fit {len(body)} bytes")
    return _plan(body[:header_length]).request(body, header_length)


class _Plan:
    """What a JSON header says about the binary tensors behind it; clients repeat the same header again and again."""

    __slots__ = ("_names", "_outputs", "_parsed", "_places", "_rows", "_size")

    def __init__(self, header: bytes) -> None:
        self._parsed = parsed = _decoded(header)
        self._rows = _rows(parsed.inputs)
        self._outputs = _wanted(parsed)
        self._places: list[tuple[Tensor, int, int]] = []
        self._size = 0
        _by_name(parsed.inputs)
        for tensor in parsed.inputs:
            size = None if tensor.parameters is None else tensor.parameters.get("binary_data_size")
            if size is None:
                self._places.append((tensor, -1, 0))
            elif type(size) is not int or size < 0:
                raise InvalidRequest(f"input {tensor.name!r} has binary_data_size {size!r}: give a number of bytes")
            else:
                self._places.append((tensor, self._size, size))
                self._size += size

    def request(self, body: bytes, header_length: int) -> InferRequest:
        """The request whose header this is."""
        left = len(body) - header_length
        if left != self._size:
            raise InvalidRequest(self._misfit(left))
        tensors: dict[str, Tensor | BinaryTensor] = {}
        content = memoryview(body)[header_length:]
        for tensor, offset, size in self._places:
            tensors[tensor.name] = (
                tensor if offset < 0
                else BinaryTensor(tensor.name, tensor.datatype, tensor.shape, content[offset : offset + size])
            )  # fmt: skip
        parsed = self._parsed
        return InferRequest(parsed.id, self._rows, tensors, parsed.parameters, *self._outputs)

    def _misfit(self, left: int) -> str:
        for tensor, offset, size in self._places:
            if offset >= 0 and offset + size > left:
                return (
                    f"input {tensor.name!r} has binary_data_size {size}, {max(0, left - offset)} bytes are left: the "
                    "body is cut off, or Inference-Header-Content-Length is missing or wrong"
                )
        return f"{left - self._size} bytes behind the binary tensors belong to none"


# The parsed header is only read; a body that is no small header is not worth its place.
_cached_plan = functools.lru_cache(maxsize=256)(_Plan)
_MAX_CACHED_HEADER = 4096


def _plan(header: bytes) -> _Plan:
    return _cached_plan(header) if len(header) <= _MAX_CACHED_HEADER else _Plan(header)


def _decoded(body: bytes) -> _Body:
    try:
        return _decode_body(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a V2 inference request: {error}") from error


def _rows(inputs: Sequence[Tensor]) -> int:
    if not inputs:
        raise InvalidRequest("the request has no inputs")
    rows = 0
    for tensor in inputs:
        check_shape(tensor.name, tensor.shape)
        if rows and tensor.shape[0] != rows:
            raise InvalidRequest(
                f"input {tensor.name!r} has shape {tensor.shape}, input {inputs[0].name!r} has {rows} rows; "
                "give all inputs the same number"
            )
        rows = tensor.shape[0]
    return rows


def _by_name(inputs: Sequence[Any]) -> dict[str, Tensor]:
    tensors = {tensor.name: tensor for tensor in inputs}
    if len(tensors) != len(inputs):
        raise InvalidRequest("an input is named twice")
    return tensors


def _wanted(parsed: _Body | _FloatBody) -> tuple[dict[str, bool] | None, bool]:
    default = parsed.parameters is not None and parsed.parameters.get("binary_data_output") is True
    if parsed.outputs is None:
        return None, default
    for output in parsed.outputs:
        if output.parameters and not _REFUSED_OUTPUTS.isdisjoint(output.parameters):
            raise InvalidRequest(f"output {output.name!r}: {_refusal(output.parameters)}")
    return {o.name: bool((o.parameters or {}).get("binary_data", default)) for o in parsed.outputs}, default


def _refusal(parameters: Mapping[str, Any]) -> str:
    if "classification" in parameters:
        return "classification is not offered; ask for the output itself and take its largest values"
    return NO_SHARED_MEMORY
