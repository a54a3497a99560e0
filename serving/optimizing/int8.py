"""Layers with int8 weights: linear ones multiplied in int8, others made floats again when they are called.

Rows never influence each other: a linear layer scales each row by itself, so that an outlier in a batch costs its
neighbours nothing. What is only kept in int8 costs no accuracy beyond the weights' rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.optimizing.layers import (
    EMBEDDING,
    KINDS,
    LINEAR,
    MADE,
    SMALLEST_LAYER,
    Layer,
    bias_of,
    get,
    put_in,
    shared_with,
)  # fmt: skip

if TYPE_CHECKING:
    import torch

_MULTIPLIED = "weights and rows in int8: smaller; faster where layers are wide"
_LOOKED_UP = "rows in int8, made floats as they are looked up: smaller, no faster"
_KEPT = "weights in int8, made floats at each call: smaller, no faster"


def to_int8(module: torch.fx.GraphModule, found: list[Layer]) -> list[tuple[Layer, bool, str]]:
    """Changes the layers that gain by it, in place; says of each whether, and how or why not."""
    return [(layer, *_changed(module, layer, f"{MADE}int8_{place}")) for place, layer in enumerate(found)]


def _changed(module: torch.fx.GraphModule, layer: Layer, name: str) -> tuple[bool, str]:
    if layer.kind not in KINDS:
        return False, "no int8 form of it is known here"
    if layer.size < SMALLEST_LAYER:
        return False, f"fewer than {SMALLEST_LAYER:,} weights: nothing to gain"
    if (other := shared_with(layer)) is not None:
        return False, f"its weights are read by {other}, too"
    node = layer.node
    if layer.kind == LINEAR:
        bias = bias_of(node)
        if bias is not None and bias.op != "get_attr":
            return False, "its bias is computed"
        given = None if bias is None else get(module, bias)
        put_in(module, node, name, _int8_linear(get(module, layer.weights[0]), given), (node.args[0],))
        return True, _MULTIPLIED
    if layer.kind == EMBEDDING:
        put_in(module, node, name, _int8_embedding(get(module, layer.weights[0])), (node.args[1],))
        return True, _LOOKED_UP
    for place, weight in enumerate(layer.weights):
        module.add_submodule(f"{name}_{place}", _int8_weight(get(module, weight)))
        with module.graph.inserting_before(node):
            node.replace_input_with(weight, module.graph.call_module(f"{name}_{place}", ()))
    return True, _KEPT


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 and one scale an output, [outputs, 1, …]."""
    import torch

    # Of a layer in another type only what comes in and goes out is of that type: 16 bits do not hold the scales.
    weight = weight.float()
    scale = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round().to(torch.int8).contiguous(), scale


def _int8_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Module:
    import torch

    rounded, scale = _rounded(weight)

    class Int8Linear(torch.nn.Module):
        """x W^T + b with int8 weights (one scale an output) and int8 inputs (one scale a row), summed in int32."""

        scale: torch.Tensor
        weight: torch.Tensor
        bias: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", scale.flatten())
            self.register_buffer("weight", rounded.t().contiguous())
            self.register_buffer("bias", torch.zeros_like(scale.flatten()) if bias is None else bias.float().clone())

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


def _int8_embedding(weight: torch.Tensor) -> torch.nn.Module:
    import torch

    rounded, scale = _rounded(weight)

    class Int8Embedding(torch.nn.Module):
        """Rows of a table with a scale each."""

        scale: torch.Tensor
        weight: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", scale)
            self.register_buffer("weight", rounded)

        def forward(self, places: torch.Tensor) -> torch.Tensor:
            look_up = torch.nn.functional.embedding
            return (look_up(places, self.weight).float() * look_up(places, self.scale)).to(weight.dtype)

    return Int8Embedding()


def _int8_weight(weight: torch.Tensor) -> torch.nn.Module:
    import torch

    rounded, scale = _rounded(weight)

    class Int8Weight(torch.nn.Module):
        """A weight as floats, for the operators that know no int8."""

        scale: torch.Tensor
        weight: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", scale)
            self.register_buffer("weight", rounded)

        def forward(self) -> Any:
            return self.weight.float().mul_(self.scale).to(weight.dtype)

    return Int8Weight()
