"""The layers of an exported program's graph: what they are, which weights they read, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Layers below this many weights gain nothing and cost accuracy.
SMALLEST_LAYER = 4096
LINEAR, EMBEDDING, CONVOLUTION, LSTM = "linear layer", "embedding", "convolution", "LSTM"
# By the operator's name behind `aten.`, without its overload: what the layer is, and where its weights are given.
_KINDS: Mapping[str, tuple[str, int]] = {
    "linear": (LINEAR, 1),
    "embedding": (EMBEDDING, 0),
    "conv1d": (CONVOLUTION, 1), "conv2d": (CONVOLUTION, 1), "conv3d": (CONVOLUTION, 1), "convolution": (CONVOLUTION, 1),
    "conv_transpose1d": ("transposed convolution", 1), "conv_transpose2d": ("transposed convolution", 1),
    "conv_transpose3d": ("transposed convolution", 1),
    "lstm": (LSTM, 2), "gru": ("GRU", 2), "rnn_tanh": ("RNN", 2), "rnn_relu": ("RNN", 2),
}  # fmt: skip
KINDS = tuple(dict.fromkeys(kind for kind, _ in _KINDS.values()))


@dataclass(frozen=True, slots=True)
class Layer:
    """An operator of the graph and the nodes of its matrices, [outputs, inputs, …] each."""

    kind: str
    node: torch.fx.Node
    weights: tuple[torch.fx.Node, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Fate:
    """What a step made of layers of one kind: changed as `how` says, or left as they are for that reason."""

    step: str
    kind: str
    layers: int
    weights: int
    changed: bool
    how: str

    def __str__(self) -> str:
        many = self.kind if self.layers == 1 or self.kind not in KINDS else f"{self.kind}s"
        return f"{self.layers} {many} ({self.weights:,} weights): {self.how}"


def layers(module: torch.fx.GraphModule) -> list[Layer]:
    """Every operator that reads matrices of its own program, from the inputs on; of no known kind: by its name."""
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        kind, given = _kind(node)
        matrices = tuple(one for one in given if is_matrix(module, one))
        size = sum(get(module, one).numel() for one in matrices)
        if matrices and (kind in KINDS or size >= SMALLEST_LAYER):
            found.append(Layer(kind, node, matrices, size))
    return found


def _kind(node: torch.fx.Node) -> tuple[str, Sequence[Any]]:
    name = operator_name(node)
    if name not in _KINDS:
        return f"operator {name or node.target}", list(node.all_input_nodes)
    kind, place = _KINDS[name]
    given = node.args[place] if place < len(node.args) else node.kwargs.get("weight")
    return kind, list(given) if isinstance(given, list | tuple) else [given]


def operator_name(node: torch.fx.Node) -> str:
    """Such as `linear`, of `aten.linear.default`; empty for what is not of aten."""
    name = str(node.target)
    return name.split(".")[1] if name.startswith("aten.") else ""


def is_matrix(module: torch.fx.GraphModule, node: Any) -> bool:
    """Whether it is a weight of the program with two dimensions or more, of floats."""
    import torch

    if getattr(node, "op", None) != "get_attr":
        return False
    value = get(module, node)
    return isinstance(value, torch.Tensor) and value.dim() >= 2 and value.is_floating_point()


def shared_with(layer: Layer) -> str | None:
    """What else reads one of the layer's weights and keeps them as they are; None when nothing does.

    A table that is an embedding and the last linear layer becomes both.
    """
    kinds = (LINEAR, EMBEDDING) if layer.kind in (LINEAR, EMBEDDING) else (layer.kind,)
    found = (_kind(user)[0] for weight in layer.weights for user in weight.users)
    return next((kind for kind in found if kind not in kinds), None)


def fates(step: str, each: Iterable[tuple[Layer, bool, str]]) -> tuple[Fate, ...]:
    """What became of each layer, those alike together: the changed ones first."""
    number: Counter[tuple[str, bool, str]] = Counter()
    size: Counter[tuple[str, bool, str]] = Counter()
    for layer, changed, how in each:
        number[layer.kind, changed, how] += 1
        size[layer.kind, changed, how] += layer.size
    found = (Fate(step, kind, number[key], size[key], changed, how) for key in number for kind, changed, how in [key])
    return tuple(sorted(found, key=lambda fate: not fate.changed))


# --- the graph -------------------------------------------------------------------------------------------------------
def folded_weights(module: torch.fx.GraphModule) -> None:
    """Computes once what layers compute of their own weights at each call, as under `weight_norm`."""
    import torch

    for node in list(module.graph.nodes):
        if operator_name(node) not in _KINDS:
            continue
        for given in _kind(node)[1]:
            if getattr(given, "op", "") != "call_function" or _reads_inputs(module, given):
                continue
            name = f"folded_{given.name}"
            value = _computed(module, given)
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                continue
            module.register_parameter(name, torch.nn.Parameter(value.detach().clone(), requires_grad=False))
            with module.graph.inserting_before(given):
                weight = module.graph.get_attr(name)
            weight.meta = dict(given.meta)
            given.replace_all_uses_with(weight)
    module.graph.eliminate_dead_code()


def _reads_inputs(module: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether a value depends on what the program is given, on chance, or on a graph within the graph."""
    import torch

    if node.op == "get_attr":
        return not hasattr(get(module, node), "dtype")
    chance = torch.Tag.nondeterministic_seeded
    if node.op != "call_function" or chance in getattr(node.target, "tags", ()):
        return True
    return any(_reads_inputs(module, one) for one in node.all_input_nodes)


def _computed(module: torch.fx.GraphModule, node: torch.fx.Node) -> Any:
    import torch

    if node.op == "get_attr":
        # Operators in place, which some norms use, must not change what the program keeps.
        return get(module, node).clone()
    target: Any = node.target
    arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda one: _computed(module, one))
    return target(*arguments[0], **arguments[1])


def plain_linears(module: torch.fx.GraphModule) -> None:
    """Writes `addmm`, `mm` and `matmul` with a transposed weight as linear layers: decomposed programs have these."""
    import torch

    aten = torch.ops.aten
    for node in module.graph.nodes:
        if node.target is aten.addmm.default and len(node.args) == 3 and not node.kwargs:
            bias, rows, turned = node.args
        elif node.target in (aten.mm.default, aten.matmul.default):
            bias, (rows, turned) = None, node.args
        else:
            continue
        if not _transposed(turned) or not is_matrix(module, turned.args[0]) or rows.meta["val"].dim() < 2:
            continue
        if bias is not None and (getattr(bias, "op", "") != "get_attr" or get(module, bias).dim() != 1):
            continue
        with module.graph.inserting_before(node):
            linear = module.graph.call_function(aten.linear.default, (rows, turned.args[0], bias))
        linear.meta = dict(node.meta)
        node.replace_all_uses_with(linear)
        module.graph.erase_node(node)
        if not turned.users:
            module.graph.erase_node(turned)


def _transposed(node: Any) -> bool:
    """Whether it is a matrix of two dimensions turned."""
    import torch

    aten = torch.ops.aten
    if getattr(node, "op", "") != "call_function" or node.meta["val"].dim() != 2:
        return False
    if node.target in (aten.t.default, aten.numpy_T.default):
        return True
    if node.target is aten.permute.default:
        return list(node.args[1]) in ([1, 0], [-1, -2])
    return node.target is aten.transpose.int and sorted(place % 2 for place in node.args[1:]) == [0, 1]


def get(module: torch.fx.GraphModule, node: Any) -> torch.Tensor:
    """The weight that a `get_attr` node reads; modules (graphs within the graph) are given as they are."""
    import torch

    found: Any = module
    for name in str(node.target).split("."):
        found = getattr(found, name)
    return found.detach() if isinstance(found, torch.Tensor) else found


def bias_of(node: torch.fx.Node) -> Any:
    """The node of a linear layer's or a convolution's bias; None where it has none."""
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def put(module: torch.fx.GraphModule, node: Any, value: torch.Tensor) -> None:
    """Gives the `get_attr` node another weight to read."""
    import torch

    *path, name = str(node.target).split(".")
    owner: Any = module
    for part in path:
        owner = getattr(owner, part)
    if name in owner._buffers:
        owner._buffers[name] = value.contiguous()
    else:
        setattr(owner, name, torch.nn.Parameter(value.contiguous(), requires_grad=False))


def put_in(
    module: torch.fx.GraphModule, node: torch.fx.Node, name: str, layer: torch.nn.Module, given: tuple[Any, ...]
) -> None:
    """Calls `layer` in the place of `node`."""
    module.add_submodule(name, layer)
    with module.graph.inserting_before(node):
        replacement = module.graph.call_module(name, given)
    node.replace_all_uses_with(replacement)
    module.graph.erase_node(node)


def swept(module: torch.fx.GraphModule) -> None:
    """Drops what nothing reads any more: nodes, modules, weights."""
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    read = set(_read(module))
    for prefix, owner in list(module.named_modules()):
        if prefix.partition(".")[0].startswith(MADE):
            continue
        for held in (owner._parameters, owner._buffers):
            for name in list(held):
                if (f"{prefix}.{name}" if prefix else name) not in read:
                    del held[name]
    module.recompile()


# How the names of modules begin that stand in the place of layers.
MADE = "made_of_"


def _read(module: torch.nn.Module) -> Iterator[str]:
    import torch

    for prefix, inner in module.named_modules():
        if isinstance(inner, torch.fx.GraphModule):
            for node in inner.graph.nodes:
                if node.op == "get_attr":
                    yield f"{prefix}.{node.target}" if prefix else str(node.target)
