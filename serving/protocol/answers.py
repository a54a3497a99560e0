"""An answer in the Open Inference Protocol V2, as those read it who got one: clients, and gRPC's way back."""

from __future__ import annotations

from typing import Any

import msgspec


class AnswerTensor(msgspec.Struct):
    """An output; its values are in `data`, or behind the JSON part when the parameters have `binary_data_size`."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferAnswer(msgspec.Struct):
    """The JSON part of an answer."""

    model_name: str
    outputs: list[AnswerTensor]
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Any] | None = None


decode_answer = msgspec.json.Decoder(InferAnswer).decode
