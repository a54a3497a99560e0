"""What server and clients say to each other: tasks as JSON, parameters as safetensors, every request signed.

| request | answer |
|---|---|
| `GET /v1/task` | what to do now: see `Task` |
| `GET /v1/model/{round}` | the global parameters (safetensors); 410 where the round is over |
| `GET /v1/setup` | what the federation was given for its clients; 404 where that is nothing |
| `GET /v1/layout` | the reference profile less its counts; 404 where there is none |
| `PUT /v1/updates/{round}/{attempt}` | of an update (safetensors): `{"outcome": "taken", "duplicate" or "late"}` |

A request carries `X-Trimtab-Client: NAME` and `X-Trimtab-Signature` over `METHOD PATH\\nNAME\\n` and the body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from training.federated.local import Learned, LocalPlan

CLIENT_HEADER = "X-Trimtab-Client"
_MOST_ROWS = 10**12
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
State = Literal["train", "wait", "done"]


class ProtocolError(ValueError):
    """A body that is not what it should be; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a client is to do: train for a round, ask again in `seconds`, or end.

    While training is asked, `seconds` are left until the deadline.
    """

    state: State
    round: int = 0
    attempt: int = 0
    seconds: float = 1.0
    seed: int = 0
    plan: LocalPlan = LocalPlan()  # noqa: RUF009 -- frozen

    def to_json(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @staticmethod
    def from_json(body: bytes) -> Task:
        """What `to_json` wrote. ProtocolError for anything else."""
        try:
            return msgspec.json.decode(body, type=Task)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"the server's task cannot be read: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """A contribution as it arrived: the moves as one vector `[parameters]`, in the order of the names."""

    vector: Tensor
    rows: int
    loss: float
    profile: bytes | None


def signed_bytes(method: str, path: str, client: str, body: bytes) -> bytes:
    """What a signature covers."""
    return f"{method} {path}\n{client}\n".encode() + body


def pack_parameters(values: Mapping[str, Tensor]) -> bytes:
    """Parameters as safetensors."""
    packed: bytes = save({name: value.detach().contiguous().cpu() for name, value in values.items()})
    return packed


def unpack_parameters(body: bytes) -> dict[str, Tensor]:
    """What `pack_parameters` gave. ProtocolError for anything else."""
    try:
        return dict(load(body))
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ProtocolError(f"the body is not safetensors: {error}") from error


def pack_update(learned: Learned, profile: bytes | None = None) -> bytes:
    """A contribution as safetensors, with rows, loss and profile in its metadata."""
    said = {"rows": str(learned.rows), "loss": repr(learned.loss)}
    if profile is not None:
        said["profile"] = profile.decode()
    packed: bytes = save({name: value.contiguous() for name, value in learned.delta.items()}, said)
    return packed


def unpack_update(body: bytes, shapes: Mapping[str, tuple[int, ...]]) -> Update:
    """What `pack_update` gave, for parameters of these shapes. ProtocolError names what does not fit."""
    tensors = unpack_parameters(body)
    if tensors.keys() != shapes.keys():
        raise ProtocolError(f"the parameters {sorted(tensors.keys() ^ shapes.keys())[:3]} are on one side only")
    for name, shape in shapes.items():
        found = tensors[name]
        if tuple(found.shape) != shape or found.dtype != torch.float32:
            raise ProtocolError(f"{name} is {found.dtype} {list(found.shape)}, float32 {list(shape)} is needed")
    vector = flat(tensors)
    if not bool(torch.isfinite(vector).all()):
        raise ProtocolError("the update is not finite")
    said = metadata(body)
    try:
        rows, loss = int(said["rows"]), float(said["loss"])
    except (KeyError, ValueError) as error:
        raise ProtocolError(f"the update does not say its rows and loss: {error}") from error
    if not 1 <= rows <= _MOST_ROWS:
        raise ProtocolError(f"the update is of {rows} rows: 1 to {_MOST_ROWS} are believed")
    profile = said.get("profile")
    return Update(vector, rows, loss, None if profile is None else profile.encode())


def flat(values: Mapping[str, Tensor]) -> Tensor:
    """One vector of all parameters, in the order of their names."""
    return torch.cat([torch.empty(0), *(values[name].reshape(-1) for name in sorted(values))])


def unflat(vector: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Parameters by name from the vector of `flat`."""
    values, at = {}, 0
    for name in sorted(shapes):
        count = torch.Size(shapes[name]).numel()
        values[name] = vector[at : at + count].reshape(shapes[name])
        at += count
    return values


def metadata(body: bytes) -> Mapping[str, Any]:
    """What a body of safetensors says of itself: a part of the JSON header, whose length the first eight bytes say."""
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    said: Mapping[str, Any] = header.get("__metadata__") or {}
    return said
