"""Less of a network: single weights zeroed, or hidden units and channels taken out, so that matrices become smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.errors import ArtifactError
from serving.optimizing.layers import CONVOLUTION, KINDS, LINEAR, Layer, bias_of, get, operator_name, put
from serving.protocol.tensors import Array

if TYPE_CHECKING:
    import torch

# Kept units come in these steps: vector registers are filled.
_UNIT_STEP = 8
_ROWS_FOR_ACTIVATIONS = 32
# A row of an image has many positions, and its activations take megabytes.
_ROWS_OF_IMAGES = 256
_ELEMENTWISE = frozenset({
    "relu", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "selu", "softplus", "hardswish", "hardtanh", "mish",
    "dropout", "clamp_min", "relu6", "hardsigmoid",
})  # fmt: skip
_POOLS = frozenset({
    f"{kind}_pool{size}d" for kind in ("max", "avg", "adaptive_avg") for size in (1, 2, 3)
})  # fmt: skip
_GONE = "hidden units or channels taken out"
_FEW = f"so few units that none can go: they go in steps of {_UNIT_STEP}"
_ALONE = "its units go to no other such layer alone: it is the last one, or something between or beside needs them all"


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two layers of which the second alone reads the first's units, through batch norms at most.

    `flat`: channels with their positions become one row in between.
    """

    first: Layer
    second: Layer
    norms: tuple[torch.fx.Node, ...]
    flat: bool


def zero_weights(module: torch.fx.GraphModule, share: float, found: list[Layer]) -> list[tuple[Layer, bool, str]]:
    """Zeroes the smallest weights of linear layers and convolutions, in place; without these: ArtifactError."""
    fates = []
    for layer in found:
        if layer.kind not in (LINEAR, CONVOLUTION):
            fates.append((layer, False, "single weights of it are not zeroed here"))
            continue
        if any(user is not layer.node for user in layer.weights[0].users):
            fates.append((layer, False, "something else reads its weights, too"))
            continue
        weight = get(module, layer.weights[0]).clone()
        count = int(weight.numel() * share)
        if count:
            weight[weight.abs() <= weight.abs().flatten().kthvalue(count).values] = 0
        put(module, layer.weights[0], weight)
        fates.append((layer, True, "smallest weights zeroed: no faster"))
    if not any(changed for _, changed, _ in fates):
        raise ArtifactError("the model has no linear layer and no convolution to prune")
    return fates


def prune_units(
    module: torch.fx.GraphModule, share: float, columns: Sequence[Array], found: list[Layer]
) -> list[tuple[Layer, bool, str]]:
    """Takes the units that matter least out of pairs of layers, in place. Raises ArtifactError where there are none.

    A unit's weight is the spread of its activation on the sample times the norm of what it feeds (on few rows: the
    product of both norms); its mean goes into the next layer's bias (cf. Molchanov et al., 2017, arXiv:1611.06440).
    """
    pairs = {pair.first.node: pair for layer in found if (pair := _pair(module, layer, found)) is not None}
    if not pairs:
        raise ArtifactError(
            "the model has no two linear layers or convolutions with only elementwise functions, batch norms and pools "
            "between them: no units to prune; zero single weights instead (--sparsity)"
        )
    seen = _activations(module, list(pairs.values()), columns)
    # Before any of them: a convolution's second layer is often the first of the next pair.
    fates = []
    for layer in found:
        pair = pairs.get(layer.node)
        if pair is not None:
            gone = _prune(module, pair, share, seen[pair.second.node])
            fates.append((layer, gone, _GONE if gone else _FEW))
        elif layer.kind in KINDS:
            fates.append((layer, False, _ALONE if layer.kind in (LINEAR, CONVOLUTION) else "its units stay"))
    return fates


def _prune(module: torch.fx.GraphModule, pair: _Pair, share: float, entering: torch.Tensor) -> bool:
    """Whether units went. `entering`: what the second layer was given, [rows, units, positions]."""
    first, second = pair.first.node, pair.second.node
    before, after = get(module, first.args[1]), get(module, second.args[1])
    units = before.shape[0]
    kept = min(units, max(1, math.ceil(units * (1 - share) / _UNIT_STEP) * _UNIT_STEP))
    if kept == units:
        return False
    # [outputs, units, positions of a kernel or of a flat row]
    feeds = after.reshape(after.shape[0], units, -1)
    known = entering.shape[0] * entering.shape[2] >= _ROWS_FOR_ACTIVATIONS
    spread = entering.std((0, 2)) if known else before.flatten(1).norm(dim=1)
    keep = (spread * feeds.norm(dim=(0, 2))).topk(kept).indices.sort().values
    gone = after.new_ones(units).index_fill(0, keep, 0.0)
    put(module, first.args[1], before[keep])
    for given in (bias_of(first), *(value for norm in pair.norms for value in norm.args[1:5])):
        if given is not None:
            put(module, given, get(module, given)[keep])
    if known and (bias := bias_of(second)) is not None:
        means = entering.mean(0) if pair.flat else entering.mean((0, 2))[:, None]
        lost = (feeds * (means * gone[:, None]).to(feeds.dtype)).sum((1, 2))
        put(module, bias, get(module, bias) + lost)
    put(module, second.args[1], feeds[:, keep].reshape(after.shape[0], -1, *after.shape[2:]))
    return True


def _pair(module: torch.fx.GraphModule, first: Layer, found: list[Layer]) -> _Pair | None:
    by_node = {layer.node: layer for layer in found}
    if not _prunable(first):
        return None
    node, flat = first.node, False
    norms: list[torch.fx.Node] = []
    image = first.kind == CONVOLUTION
    while len(node.users) == 1:
        last, node = node, next(iter(node.users))
        name = operator_name(node)
        if (second := by_node.get(node)) is not None:
            fits = second.kind == (CONVOLUTION if image and not flat else LINEAR) and node.args[0] is last
            return _Pair(first, second, tuple(norms), flat) if fits and _prunable(second) else None
        if name == "batch_norm" and not flat and (image or first.node.meta["val"].dim() == 2):
            if not all(value is None or _own(value) for value in node.args[1:5]):
                return None
            norms.append(node)
        elif image and not flat and _flattens(node, name):
            flat = True
        elif name not in _ELEMENTWISE and not (image and not flat and name in _POOLS):
            return None
    return None


def _prunable(layer: Layer) -> bool:
    """Whether its units are its own: weights that nothing else reads, and no groups of channels."""
    node = layer.node
    if layer.kind not in (LINEAR, CONVOLUTION) or not _own(node.args[1]) or not _own(bias_of(node), missing=True):
        return False
    if layer.kind == LINEAR:
        return True
    if operator_name(node) == "convolution":
        return not node.args[6] and bool(node.args[8] == 1)
    return bool((node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)) == 1)


def _flattens(node: torch.fx.Node, name: str) -> bool:
    """Whether it makes one row of each row's channels: of their positions, or of their means."""
    if name == "flatten":
        ends = (*node.args[1:], *(() if len(node.args) > 2 else (node.kwargs.get("end_dim", -1),)))
        return list(ends) == [1, -1]
    if name != "mean" or len(node.args) != 2 or node.kwargs.get("keepdim"):
        return False
    given: Any = node.args[0]
    dimensions = given.meta["val"].dim()
    places: Any = node.args[1]
    return bool(sorted(place % dimensions for place in places) == list(range(2, dimensions)))


def _own(node: Any, *, missing: bool = False) -> bool:
    if node is None:
        return missing
    return bool(node.op == "get_attr") and len(node.users) == 1


def _activations(
    module: torch.fx.GraphModule, pairs: Sequence[_Pair], columns: Sequence[Array]
) -> dict[Any, torch.Tensor]:  # fmt: skip
    """What the second layers of pairs are given for the sample, [rows, units, positions] each."""
    import torch

    wanted = {pair.second.node.args[0]: pair for pair in pairs}
    found: dict[Any, torch.Tensor] = {}

    class Recording(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            value = super().run_node(node)
            if (pair := wanted.get(node)) is not None:
                units = get(module, pair.first.node.args[1]).shape[0]
                if pair.first.kind == CONVOLUTION:
                    found[pair.second.node] = value.reshape(len(value), units, -1)
                else:
                    found[pair.second.node] = value.reshape(-1, units, 1)
            return value

    if any(pair.first.kind == CONVOLUTION for pair in pairs):
        columns = [column[:: max(1, len(column) // _ROWS_OF_IMAGES)] for column in columns]
    Recording(module).run(*(torch.from_numpy(np.ascontiguousarray(column)) for column in columns))
    return found
