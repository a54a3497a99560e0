"""Batched inference: Open Inference Protocol V2, model registry, traffic routing; `serve(ServingConfig(...))` runs it.

Importing it does not import torch: that waits until a model is written or loaded.
"""

from __future__ import annotations

from serving.cache import CachePolicy
from serving.client import Answer, InferenceClient, QuickClient
from serving.errors import ArtifactError, Conflict, RegistryError, ServingError
from serving.models import LoadedModel, load_artifact, save_artifact
from serving.registry import ModelVersion, Registry
from serving.router import Canary, Choice, Policy, Router, Shadow
from serving.server import Service, ServingConfig, serve
from serving.signature import Input, Output, Signature

__all__ = [
    "Answer",
    "ArtifactError",
    "CachePolicy",
    "Canary",
    "Choice",
    "Conflict",
    "InferenceClient",
    "Input",
    "LoadedModel",
    "ModelVersion",
    "Output",
    "Policy",
    "Registry",
    "RegistryError",
    "Router",
    "Service",
    "ServingConfig",
    "ServingError",
    "Shadow",
    "Signature",
    "load_artifact",
    "save_artifact",
    "serve",
]
