"""How single layers are divided over ranks: plans by name, by the network's own word, or by a callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, SequenceParallel

from training.callables import resolve
from training.parallel_config import FormError

STYLES: Mapping[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "sequence": SequenceParallel,
}
Plan = Mapping[str, "str | ParallelStyle"]
"""From patterns of module names (`*` stands for anything) to `colwise`, `rowwise`, `sequence` or a style of torch."""

_ROWWISE = ("o_proj", "out_proj", "down_proj", "wo", "w2", "fc2", "c_proj")
_COLWISE = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "wq", "wk", "wv", "w1", "w3", "fc1", "c_fc")


def transformer(network: nn.Module) -> Plan:
    """Projections of attention and feed-forward layers by the names that they usually have: in by columns, out by rows.

    The network must take the number of heads from the width that a projection gives, which is divided.
    """
    ends = {**dict.fromkeys(_COLWISE, "colwise"), **dict.fromkeys(_ROWWISE, "rowwise")}
    return {
        name: ends[name.rpartition(".")[2]]
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in ends
    }


def perceptron(network: nn.Module) -> Plan:
    """Linear layers in pairs, the first by columns and the second by rows: right where only elementwise functions are
    between the two. A last one without a partner stays whole."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return dict(zip(linear, ("colwise", "rowwise") * (len(linear) // 2), strict=False))


PLANS: Mapping[str, Callable[[nn.Module], Plan]] = {"transformer": transformer, "perceptron": perceptron}


def plan_of(network: nn.Module, name: str) -> Plan:
    """The plan called `name`, or for "" the one that the network's `tensor_plan()` gives. FormError where none is."""
    if name in PLANS:
        return PLANS[name](network)
    if name:
        try:
            found = resolve(name)(network)
        except ValueError as error:
            raise FormError(f"there is no plan {name!r} ({', '.join(PLANS)}, or module:callable): {error}") from error
    else:
        own: Any = getattr(network, "tensor_plan", None)
        if own is None:
            raise FormError(
                f"{type(network).__name__} does not say how its layers are divided: give it a method tensor_plan() "
                f"that returns {{module name: colwise or rowwise}}, or choose a plan: {', '.join(PLANS)}"
            )
        found = own() if callable(own) else own
    if not isinstance(found, Mapping):
        raise FormError(f"a plan is a mapping from module names to styles, not a {type(found).__name__}")
    return found


def styles(network: nn.Module, plan: Plan, within: Mapping[str, nn.Module] | None = None) -> dict[str, ParallelStyle]:
    """The style of every module that the plan names. FormError for a pattern or a style that there is not.

    `within` are the modules by name that are to be divided here; a pattern must fit one of the network's anyway.
    """
    every = {name: module for name, module in network.named_modules() if name}
    found: dict[str, ParallelStyle] = {}
    for pattern, style in plan.items():
        fitting = [name for name in every if fnmatchcase(name, pattern)]
        if not fitting:
            raise FormError(f"the plan names {pattern!r}, and the network has no such module; it has: {_some(every)}")
        if isinstance(style, str) and style not in STYLES:
            raise FormError(f"the plan divides {pattern!r} by {style!r}: it is one of {', '.join(STYLES)}")
        for name in fitting:
            _check_untied(network, name, every[name])
            if within is None or name in within:
                found[name] = STYLES[style]() if isinstance(style, str) else style
    if not plan:
        raise FormError(f"the plan names no module, so that nothing would be divided; there are: {_some(every)}")
    return found


def _check_untied(network: nn.Module, name: str, module: nn.Module) -> None:
    """FormError where a module that is divided shares a weight: dividing it would part it from the other."""
    own = {id(value) for value in module.parameters()}
    inside = {id(one) for one in module.modules()}
    for other, one in network.named_modules():
        if id(one) not in inside and (tied := [key for key, value in one._parameters.items() if id(value) in own]):
            raise FormError(
                f"the plan divides {name!r}, which shares a weight with {other!r} ({tied[0]}): tied layers cannot be "
                "divided; leave them out of the plan"
            )


def _some(modules: Mapping[str, nn.Module]) -> str:
    known = [name for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None]
    return ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
