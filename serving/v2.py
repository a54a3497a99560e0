"""Inference requests of the Open Inference Protocol V2: JSON and the binary tensor extension."""

from __future__ import annotations

import functools
from codecs import BOM_UTF8
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from serving.errors import InvalidRequest
from serving.protocol.signature import Signature, Values
from serving.protocol.tensors import NO_SHARED_MEMORY, AnyTensor, BinaryTensor, FloatTensor, Tensor, check_shape

HEADER_LENGTH = b"inference-header-content-length"


class _Wanted(msgspec.Struct, gc=False):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    inputs: list[Tensor]
    id: str | None = ""
    parameters: dict[str, Any] | None = None
    outputs: list[_Wanted] | None = None


class _FloatBody(msgspec.Struct):
    inputs: list[FloatTensor]
    id: str | None = ""
    parameters: dict[str, Any] | None = None
    outputs: list[_Wanted] | None = None


_REFUSED_OUTPUTS = frozenset({"classification", "shared_memory_region"})
_NO_PARAMETERS: Mapping[str, Any] = {}
_NO_TENSORS: Mapping[str, Tensor] = {}
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_floats = msgspec.json.Decoder(_FloatBody).decode


class InferRequest:
    """A parsed request, not yet bound to a version. `tensors` are its inputs by name, all of `rows` rows.

    `outputs` says of each requested output whether it is to be binary; None requests all of them, and then
    `binary_default` says it. `floats`: JSON's data is known to hold floats only.
    """

    __slots__ = ("_body", "_plan", "_tensors", "binary_default", "floats", "id", "outputs", "parameters", "rows")

    def __init__(
        self,
        id: str | None,
        rows: int,
        tensors: Mapping[str, AnyTensor],
        parameters: Mapping[str, Any] | None = None,
        outputs: Mapping[str, bool] | None = None,
        binary_default: bool = False,
        floats: bool = False,
    ) -> None:
        self.id = id or ""
        self.rows = rows
        self.parameters = _NO_PARAMETERS if parameters is None else parameters
        self.outputs = outputs
        self.binary_default = binary_default
        self.floats = floats
        self._tensors: Mapping[str, AnyTensor] | None = tensors
        self._plan: _Plan | None = None
        self._body: bytes = b""

    @property
    def tensors(self) -> Mapping[str, AnyTensor]:
        """The inputs by name."""
        if self._tensors is None:
            assert self._plan is not None
            self._tensors = self._plan.tensors(self._body)
        return self._tensors

    def values(self, signature: Signature) -> list[Values]:
        """The values in the order of the signature's inputs. Raises InvalidRequest naming the input that does not fit.

        Inputs that the version does not know are ignored: two versions may take different features.
        """
        if self._plan is not None and self._plan.raw_for is signature:
            return [self._plan.values(self._body)]
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
        if self._plan is not None:
            self._plan.bound(signature)
        return values

    def has_more_than(self, inputs: int) -> bool:
        """Whether there are more inputs than so many."""
        return (len(self._tensors) if self._tensors is not None else 1) > inputs

    def refuse_strangers(self, known: Collection[str]) -> None:
        """Raises InvalidRequest for an input that is not among the `known` ones of all versions."""
        strangers = [name for name in self.tensors if name not in known]
        if strangers:
            raise InvalidRequest(f"input {strangers[0]!r} is unknown; the model takes {sorted(known)}")


def decoded_floats(body: bytes) -> _FloatBody | None:
    """A JSON body whose tensors are flat and hold floats; None for any other."""
    try:
        return _decode_floats(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def plain_plan(body: bytes, header_length: int, signature: Signature) -> _Plan | None:
    """What a binary request's header says, where it was bound to this signature before and asks for nothing special."""
    if header_length > _MAX_CACHED_HEADER:
        return None
    try:
        plan = _cached_plan(body[:header_length])
    except InvalidRequest:
        return None
    return plan if plan.raw_for is signature and plan.plain and len(body) == plan.total else None


def parse(body: bytes, header_length: int | None = None, floats: bool = False) -> InferRequest:
    """A request from its body; `header_length` is the JSON part's size when binary tensors follow. InvalidRequest.

    With `floats` the model's inputs are all floats, and JSON that holds nothing else is read faster.
    """
    if header_length is not None:
        return _parse_binary(body, header_length)
    if floats:
        # Nested data, a null, or something worse: the general form tells them apart.
        quick = decoded_floats(body)
        if quick is not None:
            inputs = quick.inputs
            if len(inputs) == 1 and quick.parameters is None and quick.outputs is None:
                # The usual request, without a check that would be made for nothing.
                tensor = inputs[0]
                check_shape(tensor.name, tensor.shape)
                if tensor.parameters is None:
                    return InferRequest(quick.id, tensor.shape[0], {tensor.name: tensor}, floats=True)
            elif all(tensor.parameters is None for tensor in inputs):
                rows, tensors = _rows(inputs), _by_name(inputs)
                return InferRequest(quick.id, rows, tensors, quick.parameters, *_wanted(quick), floats=True)
    parsed = decoded(body)
    if any(tensor.parameters and "binary_data_size" in tensor.parameters for tensor in parsed.inputs):
        return _parse_binary(body, len(body))
    return request_of(parsed, parsed.inputs)


def request_of(parsed: _Body, inputs: Sequence[Any]) -> InferRequest:
    """The request of a decoded body, its inputs as they are given. Raises InvalidRequest."""
    return InferRequest(parsed.id, _rows(inputs), _by_name(inputs), parsed.parameters, *_wanted(parsed))


def _parse_binary(body: bytes, header_length: int) -> InferRequest:
    if not 0 < header_length <= len(body):
        raise InvalidRequest(f"Inference-Header-Content-Length {header_length} does not fit {len(body)} bytes")
    return _plan(body[:header_length]).request(body)


class _Plan:
    """What a JSON header says about the binary tensors behind it; clients repeat the same header again and again."""

    __slots__ = ("_parsed", "_places", "_size", "_start", "outputs", "plain", "raw_for", "rows", "total")

    def __init__(self, header: bytes) -> None:
        self._parsed = parsed = decoded(header)
        self.rows = _rows(parsed.inputs)
        self.outputs = _wanted(parsed)
        self._places: list[tuple[Tensor, int, int]] = []
        self._start = len(header)
        self._size = 0
        # The signature that the tensor was found to fit, of a request with one binary tensor whose bytes it takes.
        self.raw_for: Signature | None = None
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
        self.total = self._start + self._size
        # No id, and no parameter but those that say which outputs are binary.
        self.plain = not parsed.id and not (parsed.parameters or {}).keys() - {"binary_data_output"}

    def request(self, body: bytes) -> InferRequest:
        """The request whose header this is."""
        if len(body) != self.total:
            raise InvalidRequest(self._misfit(len(body) - self._start))
        parsed = self._parsed
        request = InferRequest(parsed.id, self.rows, _NO_TENSORS, parsed.parameters, *self.outputs)
        request._plan, request._body = self, body
        request._tensors = None if len(self._places) == 1 else self.tensors(body)
        return request

    def tensors(self, body: bytes) -> dict[str, AnyTensor]:
        """The inputs of a body by name."""
        content = memoryview(body)[self._start :]
        return {
            tensor.name: tensor if offset < 0
            else BinaryTensor(tensor.name, tensor.datatype, tensor.shape, content[offset : offset + size])
            for tensor, offset, size in self._places
        }  # fmt: skip

    def values(self, body: bytes) -> bytes | memoryview:
        """The values for `raw_for`: the bytes behind the header."""
        return body[self._start :] if self._size <= _MAX_COPIED else memoryview(body)[self._start :]

    def bound(self, signature: Signature) -> None:
        """Notes that the tensors fit the signature; their bytes are what decides from now on."""
        (tensor, offset, _), inputs = self._places[0], signature.inputs
        alone = len(self._places) == 1 and len(inputs) == 1 and offset == 0
        if alone and inputs[0].takes_bytes and tensor.datatype == inputs[0].datatype:
            self.raw_for = signature

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
# A copy of few bytes is cheaper than a view of them.
_MAX_COPIED = 16384


def _plan(header: bytes) -> _Plan:
    return _cached_plan(header) if len(header) <= _MAX_CACHED_HEADER else _Plan(header)


def decoded(body: bytes) -> _Body:
    """A JSON body, or a binary one's JSON part. Raises InvalidRequest."""
    # Some clients begin with a mark, which a reader may pass over (RFC 8259, 8.1).
    body = body.removeprefix(BOM_UTF8)
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
    # An empty list names none: as with Triton, all are meant. Clients write null and [] for what they leave out.
    if not parsed.outputs:
        return None, default
    for output in parsed.outputs:
        if output.parameters and not _REFUSED_OUTPUTS.isdisjoint(output.parameters):
            raise InvalidRequest(f"output {output.name!r}: {_refusal(output.parameters)}")
    return {o.name: bool((o.parameters or {}).get("binary_data", default)) for o in parsed.outputs}, default


def _refusal(parameters: Mapping[str, Any]) -> str:
    if "classification" in parameters:
        return "classification is not offered; ask for the output itself and take its largest values"
    return NO_SHARED_MEMORY
