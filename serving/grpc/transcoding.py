"""gRPC messages of the V2 protocol to its HTTP bodies and back: tensors keep their bytes, the rest is small."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from serving.errors import InvalidRequest
from serving.grpc.messages import message
from serving.protocol.answers import decode_answer
from serving.protocol.long_answers import LongBody, whole
from serving.protocol.tensors import NO_SHARED_MEMORY
from serving.transport.gateway import Reply
from serving.v2 import HEADER_LENGTH

# Datatype: where typed contents hold it, and its form as raw bytes.
_CONTENTS: dict[str, tuple[str, str]] = {
    "BOOL": ("bool_contents", "?"), "INT8": ("int_contents", "i1"), "INT16": ("int_contents", "<i2"),
    "INT32": ("int_contents", "<i4"), "INT64": ("int64_contents", "<i8"), "UINT8": ("uint_contents", "u1"),
    "UINT16": ("uint_contents", "<u2"), "UINT32": ("uint_contents", "<u4"), "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"), "FP64": ("fp64_contents", "<f8"),
}  # fmt: skip
# Numbers of the fields whose bytes are written past protobuf, which would copy them several times.
_RAW_OUTPUT, _STREAMED_RESPONSE = 6, 2
_STEP_VALUES = 8 * 1024


def infer_body(request: Any) -> tuple[bytes, int]:
    """A ModelInferRequest as a body of the binary extension and the length of its JSON part. Raises InvalidRequest."""
    raw = request.raw_input_contents
    for tensor in (*request.inputs, *request.outputs):
        if "shared_memory_region" in tensor.parameters:
            raise InvalidRequest(f"tensor {tensor.name!r}: {NO_SHARED_MEMORY}")
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs; give one an input")
    inputs, tail = [], []
    for place, tensor in enumerate(request.inputs):
        parameters = _values(tensor.parameters)
        if raw and tensor.HasField("contents"):
            raise InvalidRequest(f"input {tensor.name!r} has contents and raw_input_contents; give one of them")
        content = raw[place] if raw else _raw(tensor)
        parameters["binary_data_size"] = len(content)
        tail.append(content)
        inputs.append(
            {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": parameters}
        )
    body: dict[str, Any] = {
        "id": request.id, "parameters": {**_values(request.parameters), "binary_data_output": True}, "inputs": inputs
    }  # fmt: skip
    if request.outputs:
        body["outputs"] = [
            {"name": output.name, "parameters": {**_values(output.parameters), "binary_data": True}}
            for output in request.outputs
        ]
    header = msgspec.json.encode(body)
    return b"".join((header, *tail)), len(header)


def infer_answer(
    reply: Reply, *, typed: bool, parameters: Mapping[str, Any] | None = None, between: Callable[[], object] = int
) -> list[bytes]:
    """The front's answer as a ModelInferResponse, in pieces that follow one another, with more `parameters`; its
    tensors raw, or `typed` as the request's were. `between` is called after each step of a long one.
    """
    cut = _Cutter(reply.body)
    length = reply.headers.get(HEADER_LENGTH)
    answer = decode_answer(b"".join(cut.next(len(reply.body) if length is None else int(length))))
    response = message("ModelInferResponse")(
        model_name=answer.model_name, model_version=answer.model_version, id=answer.id
    )
    set_parameters(response.parameters, {**(answer.parameters or {}), **(parameters or {})})
    # Numbers that typed contents have no place for travel raw, and then all do.
    typed = typed and all(tensor.datatype == "BYTES" or tensor.datatype in _CONTENTS for tensor in answer.outputs)
    raw: list[bytes] = []
    for tensor in answer.outputs:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        count = (tensor.parameters or {}).get("binary_data_size")
        content = [_packed(tensor.name, tensor.datatype, tensor.data or [])] if count is None else cut.next(count)
        if not typed:
            raw += [_field(_RAW_OUTPUT, content), *content]
        elif tensor.datatype == "BYTES":
            output.contents.bytes_contents.extend(_split(b"".join(content)))
        else:
            field, kind = _CONTENTS[tensor.datatype]
            values = np.frombuffer(b"".join(content), kind)
            for at in range(0, len(values), _STEP_VALUES):
                getattr(output.contents, field).extend(values[at : at + _STEP_VALUES].tolist())
                between()
    return [response.SerializeToString(), *raw]


def streamed_answer(response: list[bytes]) -> list[bytes]:
    """A ModelStreamInferResponse in pieces, of those of its ModelInferResponse."""
    return [_field(_STREAMED_RESPONSE, response), *response]


def _field(number: int, content: Sequence[bytes]) -> bytes:
    """What stands before the bytes of a field (https://protobuf.dev/programming-guides/encoding/)."""
    size = sum(map(len, content))
    head = bytearray((number << 3 | 2,))
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes((*head, size))


class _Cutter:
    """Takes a body apart from its start; its pieces stay as they are where no cut goes through them."""

    def __init__(self, body: bytes | LongBody) -> None:
        self._pieces: deque[bytes | memoryview] = deque(body.pieces if isinstance(body, LongBody) else [body])

    def next(self, count: int) -> list[bytes]:
        """The next so many bytes."""
        taken: list[bytes] = []
        while count > 0 and self._pieces:
            piece = self._pieces.popleft()
            if len(piece) > count:
                self._pieces.appendleft(memoryview(piece)[count:])
                piece = piece[:count]
            taken.append(bytes(piece))
            count -= len(piece)
        return taken


def set_parameters(target: Any, values: Mapping[str, Any]) -> None:
    """Writes plain values into a map of InferParameter."""
    for name, value in values.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = str(value)


def _values(parameters: Any) -> dict[str, Any]:
    if not parameters:
        return {}
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = None if choice is None else getattr(parameter, choice)
    return values


def _raw(tensor: Any) -> bytes:
    contents, datatype = tensor.contents, tensor.datatype
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(text)) + text for text in contents.bytes_contents)
    if datatype not in _CONTENTS:
        raise InvalidRequest(
            f"input {tensor.name!r} has datatype {datatype!r}; typed contents hold BYTES, {', '.join(_CONTENTS)}, "
            "send others as raw_input_contents"
        )
    return _packed(tensor.name, datatype, getattr(contents, _CONTENTS[datatype][0]))


def _packed(name: str, datatype: str, values: Any) -> bytes:
    if datatype == "BYTES":
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    try:
        return np.array(list(values), _CONTENTS[datatype][1]).tobytes()
    except (OverflowError, ValueError) as error:
        raise InvalidRequest(f"input {name!r} holds a value outside {datatype}: {error}") from error


def _split(content: bytes) -> list[bytes]:
    texts, offset = [], 0
    while offset < len(content):
        (length,) = struct.unpack_from("<I", content, offset)
        texts.append(content[offset + 4 : offset + 4 + length])
        offset += 4 + length
    return texts


def error_of(reply: Reply) -> str:
    """What an error answer says."""
    try:
        return str(msgspec.json.decode(whole(reply.body))["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"status {reply.status}"
