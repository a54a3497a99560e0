"""Smaller and faster forms of a model: layers in int8 and bfloat16, pruned weights, pruned units.

Each change is made on the graph of an exported program and traced again, so that what comes out is an ordinary program
of `aten` operators, which the server's reader takes like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.errors import ArtifactError
from serving.optimizing.bfloat16 import to_bfloat16
from serving.optimizing.int8 import to_int8
from serving.optimizing.layers import Fate, fates, folded_weights, layers, plain_linears, swept
from serving.optimizing.pruning import prune_units, zero_weights
from serving.protocol.tensors import Array

if TYPE_CHECKING:
    import torch


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


def transformed(
    module: torch.fx.GraphModule, recipe: Recipe, columns: Sequence[Array]
) -> tuple[torch.nn.Module, tuple[Fate, ...]]:
    """The module changed as the recipe says, to be exported again, and what became of its layers.

    `columns` are inputs like those it will see. Changes `module` in place. Raises ArtifactError where a step of the
    recipe finds nothing to change.
    """
    import torch

    found: list[Fate] = []
    with torch.no_grad():
        plain_linears(module)
        folded_weights(module)
        if recipe.prune:
            found += fates("prune", prune_units(module, recipe.prune, columns, layers(module)))
        if recipe.sparsity:
            found += fates("sparsity", zero_weights(module, recipe.sparsity, layers(module)))
        if recipe.int8:
            found += fates("int8", to_int8(module, layers(module)))
        elif recipe.bf16:
            found += fates("bf16", to_bfloat16(module, layers(module)))
    for step in dict.fromkeys(fate.step for fate in found):
        _require_change(step, [fate for fate in found if fate.step == step])
    if (recipe.int8 or recipe.bf16) and not found:
        raise ArtifactError(
            "the model has no linear layer, convolution, embedding or recurrent layer: nothing to lower"
        )
    swept(module)
    return _flat(module), tuple(found)


def _require_change(step: str, found: Sequence[Fate]) -> None:
    if not any(fate.changed for fate in found):
        raise ArtifactError(f"{step} changes nothing in this model: {'; '.join(map(str, found))}")


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
