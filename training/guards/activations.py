"""The guard of activations: layers whose units are dead, or whose values grow out of all proportion.

They are looked at on the device, on a step now and then: hooks are set before such a step and taken off behind it, so
that the other steps pay nothing, and the numbers are read with the losses, so that no step waits for the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from training.guards.host_tensors import host_tensors

_CHANNELS_SECOND = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
# What drops or reshapes says nothing of its own about units.
_PASSED_OVER = (nn.Dropout, nn.Flatten, nn.Identity, nn.Embedding)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRule:
    """When a layer is ill: at `looks` looks in a row at least `dead` of its units give the same for every row of a
    batch, or their root mean square is more than `growth` times the median of the looks before."""

    dead: float = 0.9
    growth: float = 20.0
    looks: int = 3
    least: int = 5
    """Looks that growth is measured against, at least."""

    def __post_init__(self) -> None:
        if not 0 < self.dead <= 1 or not self.growth > 1 or self.looks < 1 or self.least < 1:
            raise ValueError(
                f"dead {self.dead}, growth {self.growth}, looks {self.looks}, least {self.least}: "
                "in (0, 1], above 1, at least 1, at least 1"
            )


@dataclass(frozen=True, slots=True)
class LayerLook:
    """What a layer's outputs were on one batch: share of dead units, and their root mean square."""

    dead: float
    rms: float


@dataclass(frozen=True, slots=True)
class LayerState:
    """Looks in a row at which a layer was dead or too large, and the root mean squares before."""

    dead: int = 0
    large: int = 0
    usual: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Ill:
    """A layer whose activations are dead or exploding."""

    layer: str
    fault: str
    look: LayerLook
    usual: float

    @property
    def reason(self) -> str:
        """In words."""
        if self.fault == "dead":
            return f"{self.look.dead:.0%} of the units of layer {self.layer} give the same for every row"
        return (
            f"the activations of layer {self.layer} have a root mean square of {self.look.rms:.4g}, "
            f"usual is {self.usual:.4g}"
        )


def judge_activations(
    rule: ActivationRule, states: Mapping[str, LayerState], looks: Mapping[str, LayerLook]
) -> tuple[dict[str, LayerState], tuple[Ill, ...]]:
    """Judges one look at all layers; each illness is told when it begins. What is not finite is another guard's."""
    found, after = [], dict(states)
    for layer, look in looks.items():
        state = states.get(layer, LayerState())
        if not math.isfinite(look.rms):
            continue
        usual = median(state.usual) if len(state.usual) >= rule.least else math.inf
        dead = state.dead + 1 if look.dead >= rule.dead else 0
        large = state.large + 1 if look.rms > rule.growth * usual and usual > 0 else 0
        if dead == rule.looks:
            found.append(Ill(layer, "dead", look, usual))
        if large == rule.looks:
            found.append(Ill(layer, "exploding", look, usual))
        # While it is too large it is no measure of what is usual.
        kept = state.usual if large else (*state.usual, look.rms)[-20:]
        after[layer] = LayerState(dead, large, kept)
    return after, tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class LayerBounds:
    """What is kept of a layer's outputs, on their device: the least and the greatest value of each unit `[units]` over
    `rows` rows, and the root mean square of all."""

    low: Tensor
    high: Tensor
    rms: Tensor
    rows: int


@dataclass(frozen=True, slots=True)
class ActivationLook:
    """One look at these layers; what gave nothing to measure is missing in `values` and `known`."""

    layers: tuple[str, ...]
    values: dict[str, LayerBounds] = field(default_factory=dict)
    known: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Dead share and root mean square of what the host has seen at once."""

    def read(self) -> list[tuple[float, float]]:
        """Dead share and root mean square of each of `layers`, on the host; NaN for what is missing."""
        found = dict.fromkeys(self.layers, (math.nan, math.nan)) | self.known
        if self.values:
            told = self._stacked().tolist()
            found |= {layer: (dead, rms) for layer, (dead, rms) in zip(self.values, told, strict=True)}
        return list(found.values())

    def _stacked(self) -> Tensor:
        """float32 [values, 2] on the device."""
        seen = list(self.values.values())
        # The units of all layers at once: one operator takes as long for many as for few.
        low, high = torch.cat([one.low for one in seen]), torch.cat([one.high for one in seen])
        # A ReLU that never fires and a sigmoid that is always at its end have no slope, so that nothing is learned.
        dead = high - low <= 1e-6 * torch.maximum(high.abs(), low.abs())
        parts = torch.split(dead, [len(one.low) for one in seen])
        shares = [
            part.mean(dtype=torch.float32) if one.rows > 1 else torch.zeros_like(one.rms)
            for part, one in zip(parts, seen, strict=True)
        ]
        return torch.stack([torch.stack(shares), torch.stack([one.rms for one in seen])], dim=1)


def judged_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs are looked at: those without modules of their own."""
    return {
        name: module
        for name, module in network.named_modules()
        if not any(True for _ in module.children()) and not isinstance(module, _PASSED_OVER)
    }


@contextmanager
def looking(layers: Mapping[str, nn.Module], into: ActivationLook | None = None) -> Iterator[ActivationLook]:
    """Looks at what these layers give while the block runs. Layers that run several times count the last time."""
    found, made = into or ActivationLook(tuple(layers)), host_tensors()

    def hook(name: str, channels_second: bool) -> Any:
        def take(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 1 and output.numel():
                known = None if made is None else made.look(output, _units(output, channels_second))
                if known is None:
                    found.values[name] = _bounds(output.detach(), channels_second)
                else:
                    found.known[name] = known

        return take

    handles = [
        module.register_forward_hook(hook(name, isinstance(module, _CHANNELS_SECOND)))
        for name, module in layers.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _units(output: Tensor, channels_second: bool) -> int:
    """The dimension that counts a layer's units."""
    return 1 if channels_second or output.dim() > 3 else output.dim() - 1


def _bounds(output: Tensor, channels_second: bool) -> LayerBounds:
    units = output.movedim(_units(output, channels_second), -1)
    rows = units.reshape(-1, units.shape[-1])
    size = torch.linalg.vector_norm(rows, dtype=torch.promote_types(rows.dtype, torch.float32)).float()
    # Not `aminmax`, which takes twice as long as both where it goes down columns.
    return LayerBounds(rows.amin(0), rows.amax(0), size / math.sqrt(rows.numel()), len(rows))


def read_look(layers: Sequence[str], values: Sequence[Sequence[float]]) -> dict[str, LayerLook]:
    """The look whose numbers have come to the host."""
    return {layer: LayerLook(*pair) for layer, pair in zip(layers, values, strict=True)}
