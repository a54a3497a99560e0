"""What serving counts and records: metrics, prediction events, spans."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.telemetry.event_maker import EventMaker

__all__ = ["EventMaker"]


def __getattr__(name: str) -> Any:
    """What makes events, when there are any to make: a server without a collector does without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("serving.telemetry.event_maker"), name)
