"""Layers in bfloat16: half the bytes, and faster where the processor multiplies it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serving.optimizing.layers import (
    CONVOLUTION,
    EMBEDDING,
    KINDS,
    LINEAR,
    LSTM,
    MADE,
    SMALLEST_LAYER,
    Layer,
    bias_of,
    get,
    put,
    put_in,
    shared_with,
)  # fmt: skip

if TYPE_CHECKING:
    import torch

    _Lower = Callable[[torch.Tensor], torch.Tensor]

_COMPUTED = "in bfloat16: half the size; faster where layers are wide and the processor multiplies bfloat16"
_LOOKED_UP = "rows in bfloat16: half the size, no faster"


def to_bfloat16(module: torch.fx.GraphModule, found: list[Layer]) -> list[tuple[Layer, bool, str]]:
    """Changes the layers that gain by it, in place; says of each whether, and how or why not."""
    import torch

    # One tensor for a table that is an embedding and the last layer: it stays one in memory.
    lowered: dict[int, torch.Tensor] = {}

    def lower(weight: torch.Tensor) -> torch.Tensor:
        return lowered.setdefault(weight.data_ptr(), weight.to(torch.bfloat16))

    return [(layer, *_changed(module, layer, f"{MADE}bf16_{place}", lower)) for place, layer in enumerate(found)]


def _changed(module: torch.fx.GraphModule, layer: Layer, name: str, lower: _Lower) -> tuple[bool, str]:
    if (why := _left(module, layer)) is not None:
        return False, why
    node, weight = layer.node, get(module, layer.weights[0])
    if layer.kind == LINEAR:
        bias = bias_of(node)
        given = None if bias is None else get(module, bias)
        put_in(module, node, name, _bf16_linear(lower(weight), given), (node.args[0],))
    elif layer.kind == EMBEDDING:
        put_in(module, node, name, _bf16_embedding(lower(weight), weight.dtype), (node.args[1],))
        return True, _LOOKED_UP
    else:
        _computed(module, layer)
    return True, _COMPUTED


def _left(module: torch.fx.GraphModule, layer: Layer) -> str | None:
    """Why nothing is gained by it; None where something is."""
    import torch

    if layer.kind not in (LINEAR, EMBEDDING, CONVOLUTION, LSTM):
        known = layer.kind in KINDS
        return "torch's kernel for it is slower in bfloat16" if known else "no bfloat16 form of it is known here"
    if layer.size < SMALLEST_LAYER:
        return f"fewer than {SMALLEST_LAYER:,} weights: nothing to gain"
    if all(get(module, weight).element_size() <= 2 for weight in layer.weights):
        return "16 bits a weight already: nothing to gain"
    if (other := shared_with(layer)) is not None:
        return f"its weights are read by {other}, too"
    if layer.kind == LINEAR:
        bias = bias_of(layer.node)
        return "its bias is computed" if bias is not None and bias.op != "get_attr" else None
    if layer.kind == EMBEDDING:
        return None
    # Measured: 10 to 50 times float32's time on a processor without these instructions.
    if not torch.cpu._is_avx512_bf16_supported():
        return "this processor does not multiply bfloat16, and torch's kernel takes many times as long without"
    if layer.kind == LSTM and (recurrent := get(module, layer.weights[1])).shape[0] != 4 * recurrent.shape[1]:
        return "torch's kernel for an LSTM with projections is slower in bfloat16"
    if layer.kind == CONVOLUTION:
        kernel = get(module, layer.weights[0])
        if kernel.shape[2:].numel() == 1 or kernel.shape[1] == 1:
            return "its kernel has one point or one channel: slower in bfloat16"
    return None


def _computed(module: torch.fx.GraphModule, layer: Layer) -> None:
    """Gives the operator everything in bfloat16, and what it gives back in the type that it was."""
    import torch

    node, cast = layer.node, torch.ops.aten.to.dtype
    for given in list(node.all_input_nodes):
        if given.op == "get_attr":
            value = get(module, given)
            if all(user is node for user in given.users):
                put(module, given, value.to(torch.bfloat16))
                continue
        with module.graph.inserting_before(node):
            node.replace_input_with(given, module.graph.call_function(cast, (given, torch.bfloat16)))
    outputs = [node] if not _is_tuple(node) else [user for user in list(node.users) if "getitem" in str(user.target)]
    for output in outputs:
        with module.graph.inserting_after(output):
            back = module.graph.call_function(cast, (output, _kind(node)))
        for user in list(output.users):
            if user is not back:
                user.replace_input_with(output, back)


def _is_tuple(node: torch.fx.Node) -> bool:
    return isinstance(node.meta["val"], tuple | list)


def _kind(node: torch.fx.Node) -> Any:
    value = node.meta["val"]
    return value[0].dtype if isinstance(value, tuple | list) else value.dtype


def _bf16_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Module:
    import torch

    class Bf16Linear(torch.nn.Module):
        """x W^T + b in bfloat16; what goes out is of the type that comes in."""

        weight: torch.Tensor
        bias: torch.Tensor | None

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", weight)
            self.register_buffer("bias", None if bias is None else bias.to(torch.bfloat16))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            outputs = torch.nn.functional.linear(values.to(torch.bfloat16), self.weight, self.bias)
            return outputs.to(values.dtype)

    return Bf16Linear()


def _bf16_embedding(weight: torch.Tensor, given: torch.dtype) -> torch.nn.Module:
    import torch

    class Bf16Embedding(torch.nn.Module):
        """Rows of a table in bfloat16."""

        weight: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", weight)

        def forward(self, places: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.embedding(places, self.weight).to(given)

    return Bf16Embedding()
