"""What steps leave on the device for the guards, and how it comes to the host: in one copy, every so many steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from observability.training import TrainingMonitor
from training.guards.activations import ActivationLook, looking, read_look
from training.guards.course import Reading
from training.guards.memory import resident_bytes
from training.replicas import Replicas

# Memory is looked at on every so many readings.
_MEMORY_EVERY = 5


class Signals:
    """Losses, norms and flags of steps that the host has not looked at yet, and what was seen of `layers` meanwhile.

    The layers' outputs are looked at in every `looks_every`-th step; 0 never does.
    """

    def __init__(
        self, monitor: TrainingMonitor, replicas: Replicas, layers: Mapping[str, nn.Module], looks_every: int
    ) -> None:
        self._monitor, self._replicas = monitor, replicas
        self._layers, self._looks_every = layers, looks_every if layers else 0
        self._view, self._spent, self._readings = monitor.ring.view(), (0, 0), 0
        self._kept: list[tuple[Tensor | float, ...]] = []
        self._look: ActivationLook | None = None

    def due(self, step: int) -> bool:
        """Whether the forward pass of step `step`, counted from 0, is to run in what `looking` gives."""
        return self._looks_every > 0 and step % self._looks_every == self._looks_every - 1

    def looking(self) -> AbstractContextManager[ActivationLook]:
        """A look at the layers' outputs, which the next reading has."""
        self._look = ActivationLook(tuple(self._layers))
        return looking(self._layers, self._look)

    def add(self, loss: Tensor | float, norm: Tensor | float, flag: Tensor | float) -> None:
        """Keeps what a step tells, tensors unread."""
        self._kept.append((loss, norm, flag))

    def read(self, step: int) -> Reading:
        """Fetches what the steps up to `step` left, averaged over ranks."""
        losses, norms, flags = self._fetched()
        self._kept.clear()
        own = self._own()
        look, self._look = self._look, None
        seen = [] if look is None else [number for pair in look.read() for number in pair]
        values = [*own, *seen]
        if self._replicas.world_size > 1:
            # One tensor of one dimension: its length is the same in all ranks.
            values = self._replicas.mean(torch.tensor(values, dtype=torch.float64)).tolist()
        (waited, seconds, *memory), seen = values[: len(own)], values[len(own) :]
        looks = {} if look is None else read_look(look.layers, list(zip(seen[0::2], seen[1::2], strict=True)))
        if looks:
            self._monitor.activations({layer: (one.dead, one.rms) for layer, one in looks.items()})
        return Reading(
            step=step,
            losses=losses,
            norms=norms,
            flags=flags,
            looks=looks,
            waited=waited,
            seconds=seconds,
            memory={what: int(size) for what, size in zip(("memory", "memory of the device"), memory, strict=False)},
        )

    def _own(self) -> list[float]:
        """Seconds waited for data, and in all, since the last reading; now and then the bytes in use."""
        spent = self._view.spent()
        own = [(now - before) / 1e9 for now, before in zip(spent, self._spent, strict=True)]
        self._spent = spent
        self._readings += 1
        if self._readings % _MEMORY_EVERY == 0:
            own.append(float(resident_bytes()))
            own += [float(torch.cuda.memory_allocated())] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        return own

    def _fetched(self) -> list[list[float]]:
        """Losses, norms and flags of the steps, averaged over ranks, on the host; of a device in one copy."""
        if all(isinstance(one, Tensor) and one.device.type != "cpu" for one in self._kept[0]):
            columns = [torch.stack(cast(tuple[Tensor, ...], column)) for column in zip(*self._kept, strict=True)]
            told = torch.stack(columns, dim=1).double().cpu()
        elif self._replicas.world_size == 1:
            # No operator of torch's for what the host has, and nobody is to hear of.
            return [[float(one) for one in column] for column in zip(*self._kept, strict=True)]
        else:
            # Torch itself takes several times as long over a list of lists.
            told = torch.from_numpy(np.array([[float(one) for one in step] for step in self._kept]))
        found: list[list[float]] = self._replicas.mean(told).T.tolist()
        return found
