"""A server of several processes: fronts that read HTTP, replicas that infer, a supervisor that keeps them alive."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from serving.fleet.options import FleetOptions

if TYPE_CHECKING:
    from serving.fleet.supervisor import Fleet, run_fleet

_SUPERVISOR = ("Fleet", "run_fleet")
__all__ = ["Fleet", "FleetOptions", "run_fleet"]


def __getattr__(name: str) -> Any:
    """What keeps several processes, where there are several: one does without it."""
    if name not in _SUPERVISOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("serving.fleet.supervisor"), name)
