"""The guard against non-finite steps: what is found on the device, and what the run decides from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from training.guards.host_tensors import host_tensors


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
    gradients tell of it. None, which means 1, where the host sees that all are finite, and where there is neither a
    loss nor floating-point outputs.
    """
    told = loss.detach() if loss is not None and loss.requires_grad else loss
    seen = outputs if isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.numel() else None
    if told is None and seen is None:
        return None
    if all(one is None or one.device.type == "cpu" for one in (told, seen)):
        # The host need not wait for itself, and makes nothing where all is well.
        if (told is None or _is_finite(told)) and (seen is None or _is_finite(seen)):
            return None
        like = seen if told is None else told
        assert like is not None
        return torch.full(() if told is None else told.shape, math.nan, dtype=like.dtype)
    if seen is not None:
        # Not their sum, which may be infinite though they are not: masked logits are as low as numbers go.
        lowest, highest = torch.aminmax(seen.detach())
        middle = lowest + highest
        told = middle.float() if told is None and middle.itemsize < 4 else middle if told is None else told + middle
    assert told is not None
    # One less nothing, but for what is not finite, of which nothing is no number.
    return torch.rsub(told, 1.0, alpha=0)


def _is_finite(values: Tensor) -> bool:
    """Whether all values, which the host has, are finite."""
    made = host_tensors()
    found = None if made is None else made.is_finite(values)
    if found is not None:
        return found
    # A sum is finite only where all are; not the other way round, see `weight_of`.
    values = values.detach()
    total = values.sum() if values.dim() else values
    return math.isfinite(total.item()) or bool(torch.isfinite(values).all())


def begin(outputs: Any, loss: Tensor) -> tuple[Tensor | float, Tensor | None]:
    """The loss without its graph, a number where it is the host's, and what `loss.backward(…)` is to begin with.

    See `weight_of`. A number costs less than a tensor that is detached.
    """
    made = host_tensors()
    known = None if made is None else made.begin(outputs, loss)
    if known is not None:
        return known, None
    found = loss.detach()
    begun = weight_of(outputs, found)
    return found.item() if found.device.type == "cpu" and found.numel() == 1 else found, begun


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


def clipped_step(
    optimizer: torch.optim.Optimizer, norm: Tensor | float, limit: float, ceiling: float = math.inf
) -> tuple[Tensor | float, Tensor | float]:
    """Takes a *fused* optimizer's step with the gradients of that norm clipped to `limit`; gives norm and flag.

    The flag is 1 where the norm is not finite. Then, and where the norm is above `ceiling`, weights, moments and step
    count stay as they are. On a device that is decided there. On a CPU the host has the norm already: it takes no step
    where it must not, gives plain numbers, and tells the optimizer to divide only where the norm is above the limit.
    """
    if isinstance(norm, float) or norm.device.type == "cpu":
        known = norm if isinstance(norm, float) else norm.item()
        is_finite = math.isfinite(known)
        optimizer.found_inf = None  # type: ignore[attr-defined]
        optimizer.grad_scale = torch.tensor(known / limit) if known > limit else None  # type: ignore[attr-defined]
        if is_finite and not known > ceiling:
            optimizer.step()
        return known, 0.0 if is_finite else 1.0
    flag = odd = nonfinite(norm)
    if ceiling < math.inf:
        odd = torch.maximum(flag, (norm > ceiling).to(flag.dtype))
    skip_if(optimizer, odd, clipping(norm, limit))
    optimizer.step()
    return norm, flag


def total_norm(gradients: Sequence[Tensor]) -> Tensor | float:
    """The 2-norm of all gradients together: on their device, or a number where that is the host's.

    `torch.nn.utils.get_total_norm` gives the same and takes twice as long: it sorts them by device and type first. Of
    what is not finite torch is asked again, since squares of finite numbers in double precision may be infinite.
    """
    if not gradients:
        return 0.0
    made = host_tensors()
    known = None if made is None else made.norm(list(gradients))
    if known is not None and math.isfinite(known):
        return known
    norms = torch._foreach_norm(list(gradients))
    if norms[0].device.type == "cpu":
        # A few numbers are sooner added by the host than by an operator.
        return math.hypot(*[norm.item() for norm in norms])
    try:
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return total
    except RuntimeError:  # they lie on several devices
        return torch.nn.utils.get_total_norm(gradients)


def gradient_norm(parameters: list[Tensor]) -> Tensor | float:
    """The `total_norm` of the gradients of these parameters; 0 where none of them has any."""
    made = host_tensors()
    known = None if made is None else made.gradient_norm(parameters)
    if known is not None and math.isfinite(known):
        return known
    return total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


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
    if flags and not any(flags):
        return GuardDecision("continue", _told(skipped), GuardState(skipped, 0), 0)
    for position, flag in enumerate(flags):
        skipped += flag
        in_a_row = in_a_row + 1 if flag else 0
        if in_a_row >= limit:
            reason = f"{in_a_row} steps in a row had a loss or gradient that is not finite"
            return GuardDecision("stop", reason, GuardState(skipped, in_a_row), sum(flags[: position + 1]))
    return GuardDecision("continue", _told(skipped), GuardState(skipped, in_a_row), sum(flags))


def _told(skipped: int) -> str:
    return f"{skipped} steps skipped" if skipped else "all steps finite"
