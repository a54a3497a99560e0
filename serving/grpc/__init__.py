"""The V2 protocol over gRPC: each call becomes a call of the HTTP protocol."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.grpc.service import GrpcServer

__all__ = ["GrpcServer"]


def __getattr__(name: str) -> Any:
    """The server, where gRPC has a port."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("serving.grpc.service"), name)
