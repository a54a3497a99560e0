"""Which models the shadows' process takes, and answered calls as a message to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from serving.calls import Call
from serving.protocol.signature import Signature
from serving.shadows.messages import Answers, Batch, Packed
from serving.shadows.runs import output_names

Key = tuple[str, int]


class Held(Protocol):
    """What is asked of a loaded model."""

    manifest: Mapping[str, Any]
    nbytes: int
    device: str
    signature: Signature


def fits(model: Held, max_bytes: int) -> bool:
    """Whether the process may run the model: an exported program on the CPU, not compiled, its inputs' shapes known."""
    manifest, signature = model.manifest, model.signature
    plain = manifest["format"] == "torch.export" and not manifest.get("runtime")
    return plain and model.device == "cpu" and model.nbytes <= max_bytes and not signature.ragged


def batch_of(
    key: Key, calls: Sequence[Call], signature: Signature, *, outputs: bool
) -> tuple[Batch, Sequence[Call]] | None:
    """The calls as a message, and in its order; None where some are of other inputs, or outputs differ in shape."""
    groups: dict[tuple[int, int, bool], list[Call]] = {}
    for call in calls:
        groups.setdefault((call.choice.version, id(call.signature), call.outputs is None), []).append(call)
    if any(group[0].signature != signature for group in groups.values()):
        return None
    try:
        told = [_answers(version, group) for (version, _, _), group in groups.items()]
    except ValueError:
        return None
    ordered = calls if len(groups) == 1 else [call for group in groups.values() for call in group]
    columns = [Packed.of(column) for column in signature.columns([call.values for call in ordered])]
    return Batch(text_of(key), columns, told, outputs), ordered


def _answers(version: int, calls: Sequence[Call]) -> Answers:
    rows, names = [call.rows for call in calls], output_names(calls[0].signature)
    if calls[0].outputs is None:
        return Answers(version, names, rows, None)
    given = [call.outputs for call in calls if call.outputs is not None]
    return Answers(version, names, rows, [Packed.of(np.concatenate(part)) for part in zip(*given, strict=True)])


def text_of(key: Key) -> str:
    """How messages name a version."""
    return f"{key[0]}:{key[1]}"
