"""What spreads a network over ranks, loaded when it is first asked for: `sharding.Spread`.

torch's sharding brings sympy along, two seconds of processor time that a training in one process does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.sharded_checkpoint import ShardedCheckpointStore
    from training.spread import Spread
    from training.tensor_plan import plan_of, styles

_HOMES = {
    "ShardedCheckpointStore": "sharded_checkpoint",
    "Spread": "spread",
    "plan_of": "tensor_plan",
    "styles": "tensor_plan",
}

__all__ = ["ShardedCheckpointStore", "Spread", "load", "plan_of", "styles"]


def load() -> None:
    """Loads all of it, for a process that forks the ranks."""
    for name in _HOMES:
        __getattr__(name)


def __getattr__(name: str) -> Any:
    """A name of `__all__`, from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"training.{_HOMES[name]}"), name)
    return value
