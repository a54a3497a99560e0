"""Batched inference: Open Inference Protocol V2, model registry, traffic routing; `serve(ServingConfig(...))` runs it.

Importing it does not import torch: that waits until a model is written or loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from serving.cache import CachePolicy
from serving.callers import Caller, token_digest
from serving.clients.errors import InferenceError
from serving.errors import ArtifactError, Conflict, RegistryError, ServingError
from serving.models import LoadedModel, load_artifact, save_artifact
from serving.mount import MountedServer, asgi
from serving.protocol.signature import Input, Output, Signature
from serving.registry import ModelVersion, Registry
from serving.router import Canary, Choice, Policy, Router, Shadow
from serving.server import Service, ServingConfig, serve

if TYPE_CHECKING:
    from serving.client import Answer, AsyncInferenceClient, InferenceClient, InferResult, QuickClient, Retries

_CLIENT = ("Answer", "AsyncInferenceClient", "InferenceClient", "InferResult", "QuickClient", "Retries")

__all__ = [
    "Answer",
    "ArtifactError",
    "AsyncInferenceClient",
    "CachePolicy",
    "Caller",
    "Canary",
    "Choice",
    "Conflict",
    "InferResult",
    "InferenceClient",
    "InferenceError",
    "Input",
    "LoadedModel",
    "ModelVersion",
    "MountedServer",
    "Output",
    "Policy",
    "QuickClient",
    "Registry",
    "RegistryError",
    "Retries",
    "Router",
    "Service",
    "ServingConfig",
    "ServingError",
    "Shadow",
    "Signature",
    "asgi",
    "load_artifact",
    "save_artifact",
    "serve",
    "token_digest",
]


def __getattr__(name: str) -> Any:
    """The client's names, when they are first used: a server does without an HTTP client."""
    if name not in _CLIENT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("serving.client"), name)
    globals()[name] = value
    return value
