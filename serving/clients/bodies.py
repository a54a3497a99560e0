"""A client's side of the V2 bodies: numpy arrays and lists to a request, an answer to numpy arrays."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from serving.protocol.answers import AnswerTensor, decode_answer
from serving.protocol.tensors import WIRE_TYPES, Array

HEADER_LENGTH = "inference-header-content-length"
_DATATYPES = {kind: name for name, kind in WIRE_TYPES.items()}


@dataclass(frozen=True, slots=True)
class InferResult:
    """An answer. `outputs` maps a name to an array [rows, …]; `tries` requests were sent for it, in `seconds`."""

    model: str
    version: str
    id: str
    outputs: Mapping[str, Array]
    arm: str | None = None
    tries: int = 1
    seconds: float = 0.0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        """The output of this name. KeyError when the answer has none."""
        return self.outputs[name]


def request_body(
    inputs: Mapping[str, Any],
    *,
    id: str,
    outputs: Sequence[str] | None,
    parameters: Mapping[str, Any],
    binary: bool,
) -> tuple[bytes, dict[str, str]]:
    """The body of an inference request and its headers. Raises ValueError for what no tensor can hold.

    An array is sent as its dtype; a list as FP32, INT64, BOOL or BYTES, whichever its values are; None is a missing
    value, and a tensor of texts that has one travels as JSON.
    """
    if not inputs:
        raise ValueError("there are no inputs; give a mapping of names to arrays or lists")
    tensors, tail = [], []
    for name, values in inputs.items():
        array = _array(name, values)
        tensor: dict[str, Any] = {"name": name, "datatype": _datatype(name, array), "shape": list(array.shape)}
        content = _bytes(array) if binary else None
        if content is None:
            tensor["data"] = _json_values(array)
        else:
            tensor["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        tensors.append(tensor)
    body: dict[str, Any] = {"id": id, "inputs": tensors}
    sent = {**parameters, **({"binary_data_output": True} if binary else {})}
    if sent:
        body["parameters"] = sent
    if outputs is not None:
        body["outputs"] = [{"name": name, "parameters": {"binary_data": binary}} for name in outputs]
    header = msgspec.json.encode(body)
    if not tail:
        return header, {"content-type": "application/json"}
    return b"".join((header, *tail)), {
        "content-type": "application/octet-stream", HEADER_LENGTH: str(len(header)),
    }  # fmt: skip


def result_of(body: bytes, headers: Mapping[str, str], tries: int, seconds: float) -> InferResult:
    """A 200 answer, JSON or binary. Raises ValueError when it is no V2 answer."""
    try:
        length = headers.get(HEADER_LENGTH)
        size = len(body) if length is None else int(length)
        answer = decode_answer(body[:size])
        outputs: dict[str, Array] = {}
        offset = size
        for tensor in answer.outputs:
            count = (tensor.parameters or {}).get("binary_data_size")
            content = None if count is None else body[offset : offset + count]
            offset += count or 0
            outputs[tensor.name] = _values(tensor, content)
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, struct.error) as error:
        raise ValueError(f"the answer is not V2: {error}") from error
    return InferResult(
        answer.model_name, answer.model_version, answer.id, outputs, headers.get("x-trimtab-arm"), tries, seconds,
        answer.parameters or {},
    )  # fmt: skip


def _array(name: str, values: Any) -> Array:
    if isinstance(values, np.ndarray):
        array = values
    else:
        try:
            array = np.asarray(values)
            if array.dtype == object and not any(isinstance(value, (str, bytes)) for value in array.reshape(-1)):
                array = np.asarray(values, np.float32)  # None is NaN
        except (TypeError, ValueError) as error:
            raise ValueError(f"input {name!r} is neither numbers nor texts, or its rows differ: {error}") from error
        if array.dtype == np.float64:
            array = array.astype(np.float32)
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(f"input {name!r} has shape {list(array.shape)}; give at least one row: [rows, …]")
    return array


def _datatype(name: str, array: Array) -> str:
    if array.dtype.kind in "USO":
        return "BYTES"
    found = _DATATYPES.get(array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype)
    if found is None:
        raise ValueError(
            f"input {name!r} has dtype {array.dtype}; use one of {', '.join(map(str, WIRE_TYPES.values()))}"
        )
    return found


def _bytes(array: Array) -> bytes | None:
    """The binary form; None for texts of which one is missing, since it has no binary form."""
    if array.dtype.kind not in "USO":
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    parts = []
    for value in array.reshape(-1).tolist():
        if value is None:
            return None
        text = value if isinstance(value, bytes) else str(value).encode()
        parts.append(struct.pack("<I", len(text)) + text)
    return b"".join(parts)


def _json_values(array: Array) -> list[Any]:
    flat = array.reshape(-1).tolist()
    if array.dtype.kind == "f":
        # JSON has no NaN; null is what the server takes for a missing number.
        return [value if value == value else None for value in flat]
    return [value.decode() if isinstance(value, bytes) else value for value in flat]


def _values(tensor: AnswerTensor, content: bytes | None) -> Array:
    if tensor.datatype == "BYTES":
        texts = tensor.data if content is None else _texts(content)
        return np.array(texts, object).reshape(tensor.shape)
    kind = WIRE_TYPES[tensor.datatype]
    flat = np.array(tensor.data, kind) if content is None else np.frombuffer(content, kind)
    return flat.reshape(tensor.shape)


def _texts(content: bytes) -> list[str]:
    texts, offset = [], 0
    while offset < len(content):
        (length,) = struct.unpack_from("<I", content, offset)
        texts.append(content[offset + 4 : offset + 4 + length].decode())
        offset += 4 + length
    return texts
