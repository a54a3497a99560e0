"""Answers of one version in the Open Inference Protocol V2: what does not change between them is encoded once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from serving.signature import Signature
from serving.tensors import WIRE_TYPES, Array
from serving.v2 import InferRequest


class Responder:
    """Writes the bodies of one version's answers."""

    def __init__(self, model: str, version: int, signature: Signature) -> None:
        self._names = [output.name for output in signature.outputs]
        self._kinds = [WIRE_TYPES[output.datatype] for output in signature.outputs]
        self._prefix = f'{{"model_name":{json.dumps(model)},"model_version":"{version}",'.encode()
        self._outputs = [
            f'{{"name":{json.dumps(output.name)},"datatype":"{output.datatype}","shape":'.encode()
            for output in signature.outputs
        ]

    def body(self, request: InferRequest, outputs: Sequence[Array]) -> tuple[bytes, int | None]:
        """The answer's body, and its JSON part's length where binary tensors follow."""
        parts, tail = [], []
        for place, name in enumerate(self._names):
            if request.outputs is not None and name not in request.outputs:
                continue
            values = outputs[place]
            binary = request.binary_default if request.outputs is None else request.outputs[name]
            shape = b",".join([b"%d" % length for length in values.shape])
            if binary:
                content = np.ascontiguousarray(values, self._kinds[place]).tobytes()
                parts.append(
                    b'%b[%b],"parameters":{"binary_data_size":%d}}' % (self._outputs[place], shape, len(content))
                )
                tail.append(content)
            else:
                data = msgspec.json.encode(values.reshape(-1).tolist())
                parts.append(b'%b[%b],"data":%b}' % (self._outputs[place], shape, data))
        named = b'"id":%b,' % msgspec.json.encode(request.id) if request.id else b""
        header = b'%b%b"outputs":[%b]}' % (self._prefix, named, b",".join(parts))
        return (header + b"".join(tail), len(header)) if tail else (header, None)


def error_body(message: str, details: Mapping[str, Any] | None = None) -> bytes:
    """The protocol's error object, with `details` beside its message."""
    return msgspec.json.encode({"error": message, **details} if details else {"error": message})
