"""Requests whose whole body is the bytes of the model's one input: the binary extension without its JSON part.

Protocol: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md, under "Raw
Binary Request"; asked for by `Inference-Header-Content-Length: 0`.
"""

from __future__ import annotations

from math import prod

from serving.errors import InvalidRequest
from serving.protocol.signature import Signature
from serving.protocol.tensors import WIRE_TYPES, BinaryTensor, Tensor
from serving.v2 import InferRequest


def raw_request(body: bytes, signature: Signature) -> InferRequest:
    """The request; its answer is binary, too. Raises InvalidRequest where the body does not say what it is.

    The shape follows from the bytes: as many rows as there are, if the input's shape is fixed; one row, if one of its
    dimensions varies, which is then as long as the bytes make it. A BYTES input is one string, without a length.
    """
    inputs = [column for place, column in enumerate(signature.inputs) if place not in signature.lengths]
    if len(inputs) != 1:
        raise InvalidRequest(
            f"Inference-Header-Content-Length is 0, so the body is the bytes of the one input; the model takes "
            f"{[column.name for column in inputs]}: send a JSON header that says which bytes are whose"
        )
    (column,) = inputs
    name, (_, *dimensions) = column.name, column.wire_shape
    if not body:
        raise InvalidRequest(f"the body is empty: with Inference-Header-Content-Length 0 it is input {name!r}")
    if column.datatype == "BYTES":
        return _text(body, name, dimensions)
    varying = [place for place, length in enumerate(dimensions) if length < 0]
    if len(varying) > 1:
        raise InvalidRequest(
            f"input {name!r} has shape {[-1, *dimensions]}: the bytes alone do not say how long {len(varying)} of its "
            "dimensions are; send a JSON header"
        )
    size = WIRE_TYPES[column.datatype].itemsize * prod(length for length in dimensions if length >= 0)
    count, rest = divmod(len(body), size)
    if rest:
        what = "in the dimension that varies" if varying else "a row"
        raise InvalidRequest(
            f"the body has {len(body)} bytes; input {name!r} of {column.datatype} and shape {[-1, *dimensions]} takes "
            f"{size} bytes {what}, or a multiple"
        )
    rows = 1 if varying else count
    shape = [rows, *(count if length < 0 else length for length in dimensions)]
    tensor = BinaryTensor(name, column.datatype, shape, body)
    return InferRequest("", rows, {name: tensor}, binary_default=True)


def _text(body: bytes, name: str, dimensions: list[int]) -> InferRequest:
    if prod(dimensions) != 1:
        raise InvalidRequest(
            f"input {name!r} holds {prod(dimensions)} strings a row; a body without a header is one: send a header"
        )
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is input {name!r}, a text, and not UTF-8: {error}") from error
    return InferRequest("", 1, {name: Tensor(name, "BYTES", [1, *dimensions], [text])}, binary_default=True)
