"""What guards ask of tensors that the host has, in one pass over their memory where there is a compiler.

An operator of torch's takes microseconds before it begins, and a step asks several things. Every function gives None
of tensors that it does not know (on a device, of another class than torch's own, strided, of a type other than float32,
float64, bfloat16): then torch is asked, as it is where nothing could be compiled.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from observability.native import extension


class HostTensors(Protocol):
    """The compiled functions."""

    def gradient_norm(self, parameters: list[Tensor], /) -> float | None:
        """The 2-norm of the gradients of these parameters, those without one left out; NaN or infinite where one is."""

    def norm(self, tensors: list[Tensor], /) -> float | None:
        """The 2-norm of all tensors together."""

    def begin(self, outputs: Any, loss: Tensor, /) -> float | None:
        """The loss, where it is one number, and finite, and all outputs are."""

    def is_finite(self, tensor: Tensor, /) -> bool | None:
        """Whether all values are finite."""

    def look(self, output: Tensor, units: int, /) -> tuple[float, float] | None:
        """Share of the units (dimension `units` counts them) that give the same everywhere; root mean square of all."""


@cache
def host_tensors() -> HostTensors | None:
    """The compiled functions, or None where they cannot be had. Half a second the first time on a machine."""
    # Without leave to reorder sums: ranks on different processors must get the same bits.
    made = extension(Path(__file__).with_suffix(".c"), "-O3")
    if made is None:
        return None
    made.know(Tensor, nn.Parameter, torch.get_num_threads, torch.float32, torch.float64, torch.bfloat16)
    return cast(HostTensors, made)
