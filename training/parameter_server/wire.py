"""What workers and servers say to each other, as bytes: a length, a msgpack header, then the tensors' own bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

_LENGTH = struct.Struct("<I")
_DTYPES = {"f": "<f4", "i": "<i8"}
_CODES = {torch.float32: "f", torch.int64: "i"}


class WireError(ValueError):
    """Bytes that are no message."""


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """A request (`status`, `enter`, `pull`, `push`, `leave`) or an answer (`ok`, `wait`, `error`).

    `clock` counts a worker's steps: of a push it is the step that it ends, and with the worker's name what makes it
    known again when it is sent twice.
    """

    kind: str
    worker: str = ""
    clock: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def encode(message: Message) -> bytes:
    """The bytes of a message; tensors are float32 or int64."""
    described, pieces = [], []
    for name, tensor in message.tensors.items():
        described.append((name, _CODES[tensor.dtype], list(tensor.shape)))
        pieces.append(tensor.detach().contiguous().numpy().tobytes())
    header = msgspec.msgpack.encode([message.kind, message.worker, message.clock, message.facts, described])
    return b"".join([_LENGTH.pack(len(header)), header, *pieces])


def decode(body: bytes | bytearray) -> Message:
    """The message of `encode`. WireError for anything else."""
    try:
        (length,) = _LENGTH.unpack_from(body)
        at = _LENGTH.size + length
        kind, worker, clock, facts, described = msgspec.msgpack.decode(memoryview(body)[_LENGTH.size : at])
        tensors = {}
        for name, code, shape in described:
            dtype, count = np.dtype(_DTYPES[code]), math.prod(shape)
            if min(shape, default=0) < 0 or at + count * dtype.itemsize > len(body):
                raise WireError(f"the tensor {name!r} of shape {shape} does not fit into {len(body) - at} bytes")
            values = np.frombuffer(body, dtype, count, at) if count else np.empty(0, dtype)
            tensors[name] = torch.from_numpy(values.copy()).view(shape)
            at += count * dtype.itemsize
    except (struct.error, msgspec.MsgspecError, KeyError, TypeError, RuntimeError) as error:
        raise WireError(f"{len(body)} bytes are no message: {error}") from error
    except ValueError as error:
        raise error if isinstance(error, WireError) else WireError(str(error)) from error
    return Message(kind, worker, clock, facts, tensors)
