"""The guard against non-finite steps: what is found on the device, and what the run decides from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GuardState:
    """Steps skipped so far, and how many of them in a row up to now."""

    skipped: int = 0
    in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class GuardDecision:
    """What to do, why, and the state to go on with; `newly_skipped` counts the flags just judged."""

    action: Literal["continue", "stop"]
    reason: str
    state: GuardState
    newly_skipped: int


def nonfinite(loss: Tensor, gradient_norm: Tensor | None = None) -> Tensor:
    """1.0 on the device where the loss or the gradient is NaN or infinite, else 0.0; asks nothing of the host.

    Of losses that were begun with `weight_of(outputs, loss)`, the gradient's norm alone tells.
    """
    total = loss.detach() if loss.requires_grad else loss
    if gradient_norm is not None:
        total = total + gradient_norm.detach()
    # What is not finite, less itself, is no number. `isfinite` alone would take four operators, and a cast.
    return (total - total).nan_to_num_(nan=1.0).to(torch.float32)


def weight_of(outputs: Any, loss: Tensor | None = None) -> Tensor | None:
    """What `loss.backward(…)` is to begin with: 1, and NaN where any of the outputs, or the loss, is not finite.

    An output that is infinite may have a finite loss, and an infinite loss finite gradients; begun so, every rank's
    gradients tell of it. None, which means 1, where there is neither a loss nor floating-point outputs.
    """
    told = loss.detach() if loss is not None and loss.requires_grad else loss
    if isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.numel():
        # Not their sum, which may be infinite though they are not: masked logits are as low as numbers go.
        lowest, highest = torch.aminmax(outputs.detach())
        middle = lowest + highest
        told = middle.float() if told is None and middle.itemsize < 4 else middle if told is None else told + middle
    # One less nothing, but for what is not finite, of which nothing is no number.
    return None if told is None else torch.rsub(told, 1.0, alpha=0)


def skip_if(optimizer: torch.optim.Optimizer, flag: Tensor, divisor: Tensor | None = None) -> None:
    """Makes the next step of a *fused* optimizer leave weights and moments alone where `flag` is 1, without a sync.

    It divides gradients by `divisor` on its way through them, see `clipping`. These are the attributes through which
    torch's gradient scaler speaks to fused optimizers.
    """
    optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    optimizer.found_inf = flag  # type: ignore[attr-defined]


def clipping(norm: Tensor, limit: float) -> Tensor:
    """What gradients of that norm are divided by, so that it is at most `limit`.

    A fused optimizer that divides by it saves a pass through all gradients.
    """
    return torch.clamp_min(norm if limit == 1.0 else norm / limit, 1.0).to(torch.float32)


def guarded_step(optimizer: torch.optim.Optimizer, flag: Tensor) -> None:
    """Takes the optimizer's step, which leaves weights, moments and step counts as they are where `flag` is 1.

    A fused optimizer is told on the device and pays nothing. Of any other one, weights and state are copied before
    the step and put back on the device where the step was bad: that takes as much memory again, and no
    synchronisation. ValueError where an optimizer keeps state on the host while `flag` is on a device, which only a
    synchronisation could put back: make it `fused=True` or `capturable=True`.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        skip_if(optimizer, flag)
        optimizer.step()
        return
    with torch.no_grad():
        kept = [(tensor, tensor.clone()) for tensor in _tensors(optimizer)]
        known = {id(tensor) for tensor, _ in kept}
        optimizer.step()
        bad = flag > 0
        # What the first step makes begins at zero in torch's optimizers that keep state.
        kept += [(tensor, torch.zeros_like(tensor)) for tensor in _tensors(optimizer) if id(tensor) not in known]
        for tensor, before in kept:
            if tensor.device != flag.device:
                raise ValueError(
                    f"{type(optimizer).__name__} keeps state on {tensor.device}, the step's flag is on {flag.device}: "
                    "make it fused=True or capturable=True, so that a bad step can be skipped without waiting"
                )
            torch.where(bad, before, tensor, out=tensor)


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Weights and state."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: list[Any] = [value for weight in weights for value in optimizer.state.get(weight, {}).values()]
    return [one for one in (*weights, *state) if isinstance(one, Tensor)]


def judge(state: GuardState, flags: Sequence[bool], limit: int) -> GuardDecision:
    """Goes through the flags of the last steps, oldest first; stops when `limit` steps in a row were skipped."""
    skipped, in_a_row = state.skipped, state.in_a_row
    for position, flag in enumerate(flags):
        skipped += flag
        in_a_row = in_a_row + 1 if flag else 0
        if in_a_row >= limit:
            reason = f"{in_a_row} steps in a row had a loss or gradient that is not finite"
            return GuardDecision("stop", reason, GuardState(skipped, in_a_row), sum(flags[: position + 1]))
    reason = f"{skipped} steps skipped" if skipped else "all steps finite"
    return GuardDecision("continue", reason, GuardState(skipped, in_a_row), sum(flags))
