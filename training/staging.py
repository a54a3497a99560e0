"""Memory of a store's own, into which a state is copied that is to be written while the training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where one tensor is copied to: this rank's part, and the whole that it is a part of."""

    own: Tensor
    shown: Tensor
    layout: tuple[Any, ...]


class Staging:
    """Copies of tensors on the CPU, whose memory is kept from save to save."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}

    def taken(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of all, by the same names; of a divided one, of this rank's part. They are good until the next call
        with these names."""
        return {name: self._copied(name, value) for name, value in tensors.items()}

    def _copied(self, name: str, value: Tensor) -> Tensor:
        local = value.to_local() if isinstance(value, DTensor) else value
        layout = (local.shape, local.dtype, *_division(value))
        place = self._places.get(name)
        if place is None or place.layout != layout:
            own = torch.empty(local.shape, dtype=local.dtype, device="cpu")
            place = self._places[name] = _Place(own, _as_divided(own, value), layout)
        place.own.copy_(local)
        return place.shown


def flat(tensors: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Tensors in dicts of dicts by one name each, the names joined by a slash."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        else:
            found[prefix + name] = value
    return found


def nested(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `flat` was given."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, last = name.split("/")
        inside = found
        for part in path:
            inside = inside.setdefault(part, {})
        inside[last] = tensor
    return found


def is_tensors(value: Any) -> bool:
    """Whether a value is tensors by name (or dicts of such), and there is at least one."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(one, Tensor) or is_tensors(one) for one in value.values())


def _division(value: Tensor) -> tuple[Any, ...]:
    if not isinstance(value, DTensor):
        return ()
    return value.device_mesh, value.placements, value.shape, value.stride()


def _as_divided(own: Tensor, value: Tensor) -> Tensor:
    if not isinstance(value, DTensor):
        return own
    return DTensor.from_local(
        own, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
    )
