"""Bodies of the Open Inference Protocol V2: JSON and the binary tensor extension, both ways."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from serving.errors import InvalidRequest
from serving.signature import Array, Signature, Values

HEADER_LENGTH = b"inference-header-content-length"
_WIRE_TYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"), "BOOL": np.dtype("?"),
}  # fmt: skip


class _Tensor(msgspec.Struct, gc=False):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct, gc=False):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    inputs: list[_Tensor]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


_decode_body = msgspec.json.Decoder(_Body).decode
# Clients of the binary form repeat the same JSON header; the parsed form is only read.
_decode_header = functools.lru_cache(maxsize=256)(_decode_body)


@dataclass(slots=True)
class InferRequest:
    """A parsed request, not yet bound to a version. `tensors` maps an input's name to (datatype, values)."""

    id: str
    rows: int
    tensors: dict[str, tuple[str, Values]]
    parameters: Mapping[str, Any]
    outputs: Mapping[str, bool] | None
    binary_default: bool

    def values(self, signature: Signature) -> list[Values]:
        """The values in the order of the signature's inputs. Raises InvalidRequest naming the input that does not fit.

        Inputs that the version does not know are ignored: two versions may take different features.
        """
        values: list[Values] = []
        for column in signature.inputs:
            tensor = self.tensors.get(column.name)
            if tensor is None:
                raise InvalidRequest(
                    f"input {column.name!r} is missing; the model takes {[c.name for c in signature.inputs]}"
                )
            column.check(tensor[0], tensor[1], self.rows)
            values.append(tensor[1])
        if self.outputs is not None:
            unknown = self.outputs.keys() - {output.name for output in signature.outputs}
            if unknown:
                raise InvalidRequest(f"output {sorted(unknown)[0]!r} is unknown; the model gives {signature.outputs}")
        return values


def parse(body: bytes, header_length: int | None = None) -> InferRequest:
    """A request from its body; `header_length` is the JSON part's size when binary tensors follow. InvalidRequest."""
    try:
        if header_length is None:
            parsed, tail = _decode_body(body), memoryview(b"")
        else:
            if not 0 < header_length <= len(body):
                raise InvalidRequest(f"Inference-Header-Content-Length {header_length} does not fit {len(body)} bytes")
            parsed, tail = _decode_header(body[:header_length]), memoryview(body)[header_length:]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a V2 inference request: {error}") from error
    if not parsed.inputs:
        raise InvalidRequest("the request has no inputs")
    rows = parsed.inputs[0].shape[0] if parsed.inputs[0].shape else 0
    tensors: dict[str, tuple[str, Values]] = {}
    offset = 0
    for tensor in parsed.inputs:
        _check_shape(tensor, rows)
        size = None if tensor.parameters is None else tensor.parameters.get("binary_data_size")
        if size is None:
            tensors[tensor.name] = (tensor.datatype, _flat(tensor))
        else:
            if type(size) is not int or size < 0 or offset + size > len(tail):
                raise InvalidRequest(
                    f"input {tensor.name!r} has binary_data_size {size!r}, {len(tail) - offset} bytes are left"
                )
            tensors[tensor.name] = (tensor.datatype, _binary(tensor, tail[offset : offset + size]))
            offset += size
    if offset != len(tail):
        raise InvalidRequest(f"{len(tail) - offset} bytes behind the binary tensors belong to none")
    if len(tensors) != len(parsed.inputs):
        raise InvalidRequest("an input is named twice")
    return InferRequest(parsed.id, rows, tensors, parsed.parameters or {}, *_wanted(parsed))


def _wanted(parsed: _Body) -> tuple[dict[str, bool] | None, bool]:
    default = parsed.parameters is not None and parsed.parameters.get("binary_data_output") is True
    if parsed.outputs is None:
        return None, default
    return {o.name: bool((o.parameters or {}).get("binary_data", default)) for o in parsed.outputs}, default


def _check_shape(tensor: _Tensor, rows: int) -> None:
    shape = tensor.shape
    if rows < 1 or not shape or shape[0] != rows or (len(shape) != 1 and shape[1:] != [1]):
        raise InvalidRequest(
            f"input {tensor.name!r} has shape {shape}; inputs are [n] or [n, 1] with the same n, at least 1"
        )


def _flat(tensor: _Tensor) -> list[Any]:
    data = tensor.data
    if data is None:
        raise InvalidRequest(f"input {tensor.name!r} has neither data nor binary_data_size")
    if data and type(data[0]) is list:
        if any(type(row) is not list or len(row) != 1 for row in data):
            raise InvalidRequest(f"input {tensor.name!r}: nested data must be [[value], …] for shape {tensor.shape}")
        return [row[0] for row in data]
    return data


def _binary(tensor: _Tensor, content: memoryview) -> Values:
    if tensor.datatype == "BYTES":
        return _texts(tensor.name, content)
    kind = _WIRE_TYPES.get(tensor.datatype)
    if kind is None:
        raise InvalidRequest(f"input {tensor.name!r} has datatype {tensor.datatype!r}, which has no binary form here")
    if len(content) % kind.itemsize:
        raise InvalidRequest(f"input {tensor.name!r} has {len(content)} bytes, which is no number of {tensor.datatype}")
    return np.frombuffer(content, kind)


def _texts(name: str, content: memoryview) -> list[str]:
    """Strings of the wire: each a 4-byte little-endian length and its UTF-8 bytes."""
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


class Responder:
    """Answers of one version: what does not change from answer to answer is encoded once."""

    def __init__(self, model: str, version: int, signature: Signature) -> None:
        self._names = [output.name for output in signature.outputs]
        self._prefix = f'{{"model_name":{json.dumps(model)},"model_version":"{version}",'.encode()
        self._outputs = [
            f'{{"name":{json.dumps(output.name)},"datatype":"FP32","shape":'.encode() for output in signature.outputs
        ]

    def body(self, request: InferRequest, outputs: Sequence[Array]) -> tuple[bytes, int | None]:
        """The answer's body, and its JSON part's length where binary tensors follow."""
        parts, tail = [], []
        for place, name in enumerate(self._names):
            if request.outputs is not None and name not in request.outputs:
                continue
            values = outputs[place]
            binary = request.binary_default if request.outputs is None else request.outputs[name]
            shape = b"%d]" % len(values) if values.ndim == 1 else b"%d,%d]" % values.shape
            if binary:
                content = np.ascontiguousarray(values, "<f4").tobytes()
                parts.append(
                    b'%b[%b,"parameters":{"binary_data_size":%d}}' % (self._outputs[place], shape, len(content))
                )
                tail.append(content)
            else:
                data = msgspec.json.encode(values.reshape(-1).tolist())
                parts.append(b'%b[%b,"data":%b}' % (self._outputs[place], shape, data))
        named = b'"id":%b,' % msgspec.json.encode(request.id) if request.id else b""
        header = b'%b%b"outputs":[%b]}' % (self._prefix, named, b",".join(parts))
        return (header + b"".join(tail), len(header)) if tail else (header, None)


def error_body(message: str) -> bytes:
    """The protocol's error object."""
    return msgspec.json.encode({"error": message})
