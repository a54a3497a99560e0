"""Smaller and faster forms of a model: int8 and bfloat16 linear layers, pruned weights, pruned units.

Each change is made on the graph of an exported program and traced again, so that what comes out is an ordinary program
of `aten` operators, which the server's reader takes like any other. Rows never influence each other: int8 scales each
row by itself, so that an outlier in a batch costs its neighbours nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.errors import ArtifactError
from serving.protocol.tensors import Array

if TYPE_CHECKING:
    import torch

# Layers below this many weights gain nothing and cost accuracy.
SMALLEST_LAYER = 4096
# Kept units come in these steps: vector registers are filled.
_UNIT_STEP = 8
_ROWS_FOR_ACTIVATIONS = 32


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to do, in this order: prune units, zero weights, lower precision; `compile` is left to the server."""

    prune: float = 0.0
    sparsity: float = 0.0
    int8: bool = False
    bf16: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.prune < 1 and 0 <= self.sparsity < 1):
            raise ArtifactError(f"prune is {self.prune}, sparsity {self.sparsity}; give shares from 0 to below 1")
        if self.int8 and self.bf16:
            raise ArtifactError("int8 and bf16 exclude each other; choose one")
        if not self.name:
            raise ArtifactError("nothing to do: choose int8, bf16, prune, sparsity or compile")

    @property
    def name(self) -> str:
        """What the variant is called, such as `prune0.5+int8`."""
        parts = [f"prune{self.prune:g}" if self.prune else "", f"sparse{self.sparsity:g}" if self.sparsity else ""]
        parts += [word for word in ("int8", "bf16", "compile") if getattr(self, word)]
        return "+".join(filter(None, parts))

    @property
    def changes_weights(self) -> bool:
        """Whether the program is another one, not only run differently."""
        return bool(self.prune or self.sparsity or self.int8 or self.bf16)


def transformed(module: torch.fx.GraphModule, recipe: Recipe, columns: Sequence[Array]) -> torch.nn.Module:
    """The module changed as the recipe says, to be exported again; `columns` are inputs like those it will see.

    Changes `module` in place. Raises ArtifactError where the recipe finds nothing to change.
    """
    import torch

    with torch.no_grad():
        if recipe.prune:
            _prune_units(module, recipe.prune, columns)
        if recipe.sparsity:
            _zero_weights(module, recipe.sparsity)
        if recipe.int8 or recipe.bf16:
            _lower(module, int8=recipe.int8)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return _flat(module)


def _flat(module: torch.nn.Module) -> torch.nn.Module:
    import torch

    class Columns(torch.nn.Module):
        """Takes the inputs in their order, whatever their names were."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *columns: torch.Tensor) -> Any:
            return self.inner(*columns)

    return Columns()


def _linears(module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    """The linear layers whose weight is a parameter that nothing else uses, from the inputs on."""
    import torch

    return [
        node
        for node in module.graph.nodes
        if node.target is torch.ops.aten.linear.default and _own(node.args[1]) and _own(_bias(node), missing=True)
    ]


def _own(node: Any, *, missing: bool = False) -> bool:
    if node is None:
        return missing
    return bool(node.op == "get_attr") and len(node.users) == 1


def _bias(node: torch.fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def _get(module: torch.fx.GraphModule, node: Any) -> torch.Tensor:
    found: Any = module
    for name in str(node.target).split("."):
        found = getattr(found, name)
    return found.detach()  # type: ignore[no-any-return]


def _set(module: torch.fx.GraphModule, node: Any, value: torch.Tensor) -> None:
    import torch

    *path, name = str(node.target).split(".")
    owner: Any = module
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, name, torch.nn.Parameter(value.contiguous(), requires_grad=False))


# --- precision -------------------------------------------------------------------------------------------------------
def _lower(module: torch.fx.GraphModule, *, int8: bool) -> None:
    layers = [node for node in _linears(module) if _get(module, node.args[1]).numel() >= SMALLEST_LAYER]
    if not layers:
        raise ArtifactError(f"the model has no linear layer of {SMALLEST_LAYER} weights or more: nothing to gain")
    if not int8:
        layers = [node for node in layers if _get(module, node.args[1]).element_size() > 2]
        if not layers:
            raise ArtifactError("the model's linear layers have 16 bits a weight already: bf16 gains nothing")
    for place, node in enumerate(layers):
        weight, bias = _get(module, node.args[1]), _bias(node)
        given = None if bias is None else _get(module, bias)
        layer = _int8_linear(weight, given) if int8 else _bf16_linear(weight, given)
        name = f"low_precision_{place}"
        module.add_submodule(name, layer)
        with module.graph.inserting_before(node):
            replacement = module.graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(replacement)
        module.graph.erase_node(node)


def _int8_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Module:
    import torch

    # Of a layer in another type only what comes in and goes out is of that type: 16 bits do not hold the scales.
    weight, bias = weight.float(), None if bias is None else bias.float()

    class Int8Linear(torch.nn.Module):
        """x W^T + b with int8 weights (one scale an output) and int8 inputs (one scale a row), summed in int32."""

        scale: torch.Tensor
        weight: torch.Tensor
        bias: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            scale = weight.abs().amax(1).clamp_min(1e-12) / 127
            self.register_buffer("scale", scale)
            self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
            self.register_buffer("bias", torch.zeros_like(scale) if bias is None else bias.clone())

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            rows = values if values.dim() == 2 else values.flatten(0, -2)
            rows = rows if rows.dtype is torch.float32 else rows.float()
            # A NaN or an infinity makes its own row's step NaN or infinite, and so the row's outputs.
            step = rows.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
            products = torch._int_mm((rows / step).round().to(torch.int8), self.weight)
            outputs = torch.addcmul(self.bias, products * step, self.scale)
            outputs = outputs if values.dtype is torch.float32 else outputs.to(values.dtype)
            return outputs if values.dim() == 2 else outputs.reshape(*values.shape[:-1], -1)

    return Int8Linear()


def _bf16_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Module:
    import torch

    class Bf16Linear(torch.nn.Module):
        """x W^T + b in bfloat16; what goes out is of the type that comes in."""

        weight: torch.Tensor
        bias: torch.Tensor | None

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", weight.to(torch.bfloat16))
            self.register_buffer("bias", None if bias is None else bias.to(torch.bfloat16))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            outputs = torch.nn.functional.linear(values.to(torch.bfloat16), self.weight, self.bias)
            return outputs.to(values.dtype)

    return Bf16Linear()


# --- pruning ---------------------------------------------------------------------------------------------------------
def _zero_weights(module: torch.fx.GraphModule, share: float) -> None:
    layers = _linears(module)
    if not layers:
        raise ArtifactError("the model has no linear layer to prune")
    for node in layers:
        weight = _get(module, node.args[1]).clone()
        count = int(weight.numel() * share)
        if count:
            weight[weight.abs() <= weight.abs().flatten().kthvalue(count).values] = 0
        _set(module, node.args[1], weight)


def _prune_units(module: torch.fx.GraphModule, share: float, columns: Sequence[Array]) -> None:
    """Takes the hidden units that matter least out of pairs of linear layers: the matrices become smaller.

    A unit's weight is the spread of its activation on the sample times the norm of what it feeds (on few rows: the
    product of both norms); its mean goes into the next layer's bias (cf. Molchanov et al., 2017, arXiv:1611.06440).
    """
    pairs = _pairs(module)
    if not pairs:
        raise ArtifactError(
            "the model has no two linear layers with only elementwise functions between them: no units to prune; "
            "zero single weights instead (--sparsity)"
        )
    seen = _activations(module, [second.args[0] for _, second in pairs], columns)
    for (first, second), activations in zip(pairs, seen, strict=True):
        before, after = _get(module, first.args[1]), _get(module, second.args[1])
        spread = activations.std(0) if len(activations) >= _ROWS_FOR_ACTIVATIONS else before.norm(dim=1)
        units = before.shape[0]
        kept = min(units, max(1, math.ceil(units * (1 - share) / _UNIT_STEP) * _UNIT_STEP))
        keep = (spread * after.norm(dim=0)).topk(kept).indices.sort().values
        gone = after.new_ones(units).index_fill(0, keep, 0.0)
        _set(module, first.args[1], before[keep])
        if _bias(first) is not None:
            _set(module, _bias(first), _get(module, _bias(first))[keep])
        if _bias(second) is not None and len(activations) >= _ROWS_FOR_ACTIVATIONS:
            _set(module, _bias(second), _get(module, _bias(second)) + after @ (activations.mean(0) * gone))
        _set(module, second.args[1], after[:, keep])


def _pairs(module: torch.fx.GraphModule) -> list[tuple[torch.fx.Node, torch.fx.Node]]:
    layers = _linears(module)
    found = []
    for first in layers:
        node = first
        while len(node.users) == 1:
            node = next(iter(node.users))
            if node in layers and node.args[0] is not node.args[1]:
                found.append((first, node))
            if node in layers or not _elementwise(node):
                break
    return found


def _elementwise(node: torch.fx.Node) -> bool:
    name = str(node.target)
    return name.startswith("aten.") and name.split(".")[1].rstrip("_") in {
        "relu", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "selu", "softplus", "hardswish", "hardtanh",
        "mish", "dropout", "clamp_min",
    }  # fmt: skip


def _activations(
    module: torch.fx.GraphModule, wanted: Sequence[Any], columns: Sequence[Array]
) -> list[torch.Tensor]:  # fmt: skip
    """The values of nodes for the sample, [rows, units] each."""
    import torch

    found: dict[Any, torch.Tensor] = {}

    class Recording(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            value = super().run_node(node)
            if node in wanted:
                found[node] = value.flatten(0, -2)
            return value

    Recording(module).run(*(torch.from_numpy(np.ascontiguousarray(column)) for column in columns))
    return [found[node] for node in wanted]
